"""A rollout worker's promise: a group that it cannot deliver is told, never silently kept."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import msgspec
import pytest

from tests.runtime.actors.conftest import within
from tests.runtime.sample_factory import make_group
from verst.runtime.actors import CallTimeout, Member
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.values import Decision
from verst.runtime.messages.apis import ControllerApi, StoreApi
from verst.runtime.messages.jobs import EngineInfo, EvalAnswers, EvalResult, Prompt, PromptJob, RolloutStats
from verst.runtime.messages.sample import Group, GroupMeta
from verst.runtime.node.member_process import MemberProcess
from verst.runtime.rewards import RewardFailedError
from verst.runtime.rollout import worker as worker_module
from verst.runtime.rollout.engine.client import EngineError
from verst.runtime.rollout.episodes import Times
from verst.runtime.rollout.fault_report import tell_controller
from verst.runtime.rollout.worker import Worker
from verst.runtime.run.folder import RunFolder

JOB = PromptJob(
    id=7,
    prompt=Prompt(text="1 + 1", ids=[1, 2, 3], label="2", metadata={}),
    samples=4,
    evaluation=False,
    seeds=[0, 1, 2, 3],
)


class SlowStore(StoreApi):
    """A shard whose first `silent` pushes outlast the worker's patience, as on a stalled file system."""

    def __init__(self, silent: int) -> None:
        self.silent = silent
        self.pushes = 0

    async def push(self, group: Group) -> GroupMeta:
        self.pushes += 1
        if self.pushes <= self.silent:
            await asyncio.sleep(60)
        return group.meta(0)


class OneJob(ControllerApi):
    """Hands out one prompt and notes what becomes of it."""

    def __init__(self, job: PromptJob = JOB) -> None:
        self.jobs = [job]
        self.metas: list[GroupMeta] = []
        self.drops: list[tuple[int, str, str]] = []
        self.failures: list[tuple[str, bool]] = []
        self.results: list[EvalResult] = []
        self.told = asyncio.Event()

    async def engine_ready(self, info: EngineInfo) -> None:
        pass

    async def take(self, engine: int, room: int) -> list[PromptJob]:
        if not self.jobs:
            await asyncio.sleep(10)
        jobs, self.jobs = self.jobs, []
        return jobs

    async def accepted(self, engine: int, meta: GroupMeta, stats: RolloutStats) -> None:
        self.metas.append(meta)
        self.told.set()

    async def dropped(self, engine: int, group: int, reason: str, detail: str, reward: float | None) -> None:
        self.drops.append((group, reason, detail))
        self.told.set()

    async def failed(
        self, engine: int, id: int, evaluation: bool, reason: str, fatal: bool, version: int | None
    ) -> None:
        self.failures.append((reason, fatal))
        self.told.set()

    async def scored(self, engine: int, result: EvalResult) -> None:
        self.results.append(result)
        self.told.set()

    async def stop_for_good(self, reason: str) -> None:
        self.failures.append((reason, True))


class Idle:
    """An engine and its episodes in one: lives for ever, and its answer is there at once."""

    version = 0

    async def wait_dead(self) -> str:
        return await asyncio.Future()

    async def group(self, engine: Any, job: PromptJob) -> tuple[Group, Times]:
        return make_group(job.id), Times(time.monotonic(), 0.0)

    async def keeps(self, group: Group) -> Decision:
        return Decision(True)

    async def votes(self, job: PromptJob, texts: list[str]) -> list[str | None]:
        return [text.split()[-1] for text in texts]

    async def sifted(self, group: Group) -> tuple[Group | None, Counter[Any]]:
        return group, Counter()

    def take_failures(self) -> int:
        return 0


class Failing(Idle):
    """Episodes that fail with an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def group(self, engine: Any, job: PromptJob) -> tuple[Group, Times]:
        raise self.error


class FailingFilter(Failing):
    """Episodes whose filter fails."""

    async def group(self, engine: Any, job: PromptJob) -> tuple[Group, Times]:
        return await Idle().group(engine, job)

    async def keeps(self, group: Group) -> Decision:
        raise self.error


def deliver(
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    silent: int = 0,
    episodes: Idle | None = None,
    job: PromptJob = JOB,
) -> tuple[SlowStore, OneJob]:
    """Runs a worker until its group is accepted, dropped or has failed. Raises what ended it before that."""
    monkeypatch.setattr(worker_module, "_PUSH_TIMEOUT_S", 0.3)
    store, controller = SlowStore(silent), OneJob(job)

    async def work() -> None:
        members = [
            await Member.join(folder, "store", 0, store),
            await Member.join(folder, "controller", 0, controller),
        ]
        worker = Worker(0, Idle(), episodes or Idle(), stores=1, room=JOB.samples)  # type: ignore[arg-type]
        member = await Member.join(folder, "rollout", 0, worker)
        running = asyncio.create_task(worker.run(member))
        try:
            await asyncio.wait(
                {running, asyncio.create_task(controller.told.wait())}, return_when="FIRST_COMPLETED"
            )
            if running.done():
                running.result()
        finally:
            running.cancel()
            await asyncio.gather(*(m.leave() for m in [member, *members]))

    within(20, work)
    return store, controller


def test_a_group_is_pushed_again_until_its_shard_acknowledges(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, controller = deliver(folder, monkeypatch, silent=2)
    assert store.pushes == 3
    assert [meta.id for meta in controller.metas] == [JOB.id]


def test_a_group_that_the_trainer_could_not_take_is_told_and_never_journalled(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its samples have 3 + 5 tokens."""
    store, controller = deliver(folder, monkeypatch, job=msgspec.structs.replace(JOB, max_tokens=7))
    assert store.pushes == 0
    [(group, reason, detail)] = controller.drops
    assert (group, reason) == (JOB.id, "too_long")
    assert detail.startswith("sample 0 has 8 tokens; the trainer takes 7")


def test_a_group_whose_reward_failed_is_dropped_where_the_recipe_says_so(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, controller = deliver(folder, monkeypatch, episodes=Failing(RewardFailedError("it is too hard")))
    assert (store.pushes, controller.failures) == (0, [])
    assert controller.drops == [(JOB.id, "reward_failed", "it is too hard")]


class ChoosyFilter(Idle):
    """Episodes whose filter gives a reason."""

    async def keeps(self, group: Group) -> Decision:
        return Decision(False, "too_easy")


def test_the_answers_to_an_evaluation_prompt_are_told(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The samples are of weights 3."""
    job = msgspec.structs.replace(JOB, evaluation=True, set="math", version=3, shown=True)
    store, controller = deliver(folder, monkeypatch, job=job)
    assert store.pushes == 0
    scored = EvalAnswers(
        rewards=[0.0, 1.0, 0.0, 1.0], tokens=[5] * 4, truncated=[False] * 4, votes=["0", "1", "2", "3"]
    )
    texts = [f"answer {index}" for index in range(4)]
    assert controller.results == [EvalResult(id=7, version=3, scored=scored, answers=texts)]


def test_answers_of_other_weights_than_are_evaluated_are_refused(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = msgspec.structs.replace(JOB, evaluation=True, set="math", version=2)
    _, controller = deliver(folder, monkeypatch, job=job)
    assert controller.results == []
    assert controller.failures == [("answered with weights {3}, but 2 are to be evaluated", False)]


def test_a_filters_reason_is_told(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    store, controller = deliver(folder, monkeypatch, episodes=ChoosyFilter())
    assert (store.pushes, controller.drops) == (0, [(JOB.id, "too_easy", "")])


def test_a_group_that_just_fits_is_pushed(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    store, controller = deliver(folder, monkeypatch, job=msgspec.structs.replace(JOB, max_tokens=8))
    assert (store.pushes, controller.drops) == (1, [])


def test_a_worker_whose_shard_stays_silent_ends_so_that_its_groups_go_to_others(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CallTimeout, match="push"):
        deliver(folder, monkeypatch, silent=99)


@pytest.mark.parametrize(
    ("error", "fatal"),
    [
        (HookError("group filter 'm:f', group 7: returned None"), True),
        (EngineError("engine: refused"), False),
    ],
)
def test_a_fault_of_the_users_code_is_told_as_final_and_the_worker_goes_on(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, error: Exception, fatal: bool
) -> None:
    for episodes in (Failing(error), FailingFilter(error)):
        _, controller = deliver(folder, monkeypatch, episodes=episodes)
        assert controller.failures == [(str(error), fatal)]
        assert controller.metas == []


def test_a_worker_that_cannot_load_a_hook_tells_the_controller_as_soon_as_there_is_one(
    folder: RunFolder,
) -> None:
    folder.recipe.write_text("rollout: {reward: m:f}\n")
    controller = OneJob()

    async def tell() -> None:
        process = MemberProcess(folder, 0, folder.generation, "127.0.0.1")
        telling = asyncio.create_task(tell_controller(process, "reward function 'm:f': no module"))
        await asyncio.sleep(0.5)
        member = await Member.join(folder, "controller", 0, controller)
        await telling
        await member.leave()

    within(20, tell)
    assert controller.failures == [("reward function 'm:f': no module", True)]
