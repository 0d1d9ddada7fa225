"""The rollout worker: it runs one engine and turns the controller's prompts into journalled groups.

Whenever it has room, the worker asks the controller for prompts. It generates with its own engine over loopback HTTP,
scores, filters, and pushes finished groups to a store shard.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections import Counter
from dataclasses import replace

from verst.runtime.actors import ActorError, CallTimeout, Member, MemberLost, StaleGeneration
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.values import Decision
from verst.runtime.messages.apis import ControllerApi, StoreApi
from verst.runtime.messages.jobs import EngineInfo, EvalAnswers, EvalResult, Hold, PromptJob, RolloutStats
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.messages.sample import Group
from verst.runtime.metrics.trace import NO_TRACE, Tracer
from verst.runtime.node.config import PlacementConfig
from verst.runtime.node.member_process import MemberProcess, say
from verst.runtime.rewards import RewardFailedError
from verst.runtime.rollout.admission import admitted
from verst.runtime.rollout.config import RolloutConfig
from verst.runtime.rollout.engine.arguments import tensor_parallel_size
from verst.runtime.rollout.engine.client import EngineError
from verst.runtime.rollout.engine.engine import Engine
from verst.runtime.rollout.engine.memory import EngineMemory
from verst.runtime.rollout.engine.nodes import Meeting, wait_failed
from verst.runtime.rollout.episodes import Episodes
from verst.runtime.rollout.fault_report import tell_controller
from verst.runtime.rollout.sample_check import too_long
from verst.runtime.rollout.sample_filters import Fate
from verst.runtime.rollout.weight_receiver import WeightReceiver
from verst.runtime.run.ending import GAVE_UP, HOPELESS, read_end
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Plan

log = logging.getLogger(__name__)
_TAKE_TIMEOUT_S = 30.0  # the controller answers within 10 s even if it has no prompts
_PUSH_TIMEOUT_S = 60.0  # a flush to a busy shared file system can take long
_PUSH_ATTEMPTS = 3
_NEXT_LIFE_S = 2.0
_ANSWER = 64 << 10  # characters of an answer that are sent for people to read


class Worker(WeightReceiver):
    """The worker in one life of the run: its episode loop. `WeightReceiver` has the weight calls of `RolloutApi`."""

    def __init__(
        self,
        engine_number: int,
        engine: Engine,
        episodes: Episodes,
        stores: int,
        room: int,
        trace: Tracer = NO_TRACE,
    ) -> None:
        super().__init__(engine, trace)
        self._number = engine_number
        self._engine = engine
        self._memory = EngineMemory(engine)
        self._answering: set[asyncio.Task[None]] = set()
        self._episodes = episodes
        self._stores = stores
        self._room = room
        self.served = False  # whether the controller knows this engine
        self._finished = asyncio.Event()

    async def run(self, member: Member) -> None:
        """Works until the engine dies, the controller is lost or the engine is left out of a weight round.

        Always ends by raising an error with the reason.
        """
        self._member = member
        self._controller = member.handle(ControllerApi, "controller", 0, timeout=_TAKE_TIMEOUT_S)
        await self._controller.engine_ready(
            EngineInfo(engine=self._number, incarnation=member.info.incarnation)
        )
        self.served = True
        dead = asyncio.create_task(self._engine.wait_dead())
        asking = asyncio.create_task(self._ask())
        abandoned = asyncio.create_task(self.wait_abandoned())
        tasks = {dead, asking, abandoned}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if dead.done():
                raise EngineError(f"the engine died: {dead.result()}")
            if abandoned.done():
                raise EngineError(f"left out of a weight round: {abandoned.result()}")
            asking.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self) -> None:
        """Asks for prompts whenever there is room, and answers each in a task of its own.

        If the outcome of a prompt cannot be reported, the worker ends, and the controller gives its prompts to others.
        """
        try:
            async with asyncio.TaskGroup() as answers:
                while True:
                    if self._room <= 0:
                        self._finished.clear()
                        await self._finished.wait()  # ends, because every request of an answer has a deadline
                    for job in await self._controller.take(self._number, self._room):
                        self._room -= job.samples
                        answer = answers.create_task(self._answer(job))
                        self._answering.add(answer)
                        answer.add_done_callback(self._answering.discard)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def hold(self, what: Hold) -> None:
        for answer in self._answering:  # usually none, but a run that has to stop does not wait for answers
            answer.cancel()
        await self._memory.hold(what)

    async def _answer(self, job: PromptJob) -> None:
        """Answers one prompt: the group goes to the store, or the error to the controller."""
        try:
            await (self._evaluate(job) if job.evaluation else self._rollout(job))
        except HookError as error:
            log.error("%s", error)
            await self._failed(job, error, fatal=True)
        except EngineError as error:
            log.warning("group %d failed: %s", job.id, error)
            await self._failed(job, error, fatal=False)
        finally:
            self._room += job.samples
            self._finished.set()

    async def _rollout(self, job: PromptJob) -> None:
        began, version = time.monotonic(), self._engine.version
        try:
            group, times = await self._episodes.group(self._engine, job)
        except RewardFailedError as error:
            await self._controller.dropped(self._number, job.id, "reward_failed", str(error), None)
            return
        scored = time.monotonic()
        tokens = sum(len(s.response_ids) for s in group.samples)
        unfit = too_long(group, job.max_tokens)
        kept, reason = (
            await self._episodes.keeps(group) if unfit is None else Decision(kept=False, reason="too_long")
        )
        left, counts = await self._episodes.sifted(group) if kept else (group, Counter[Fate]())
        if kept and left is None:
            kept, reason = Decision(kept=False, reason="sample_filter")
            unfit = f"the sample filter dropped all its {len(group.samples)} samples"
        if kept and left is not None:
            stats = RolloutStats(
                response_tokens=tokens,
                seconds=scored - began,
                reward_seconds=times.reward_seconds,
                failed_rewards=self._episodes.take_failures(),
                masked_samples=counts["mask"],
                dropped_samples=counts["drop"],
            )
            await self._push(left, stats)
        else:
            rewards = group.meta(0).by_episode().rewards
            mean = sum(rewards) / len(rewards)
            await self._controller.dropped(self._number, job.id, reason, unfit or "", mean)
        parts = {"generate": times.generated - began, "reward": scored - times.generated}
        about = {"version": version, "group": job.id, "kept": kept, "tokens": tokens}
        self._trace.add("group", began, time.monotonic(), lane="groups", parts=parts, **about)

    async def _push(self, group: Group, stats: RolloutStats) -> None:
        """Pushes the group to its store shard until the shard acknowledges it; pushing twice is harmless.

        Raises ActorError if the shard is lost or does not answer any attempt.
        """
        store = self._member.handle(StoreApi, "store", group.id % self._stores, timeout=_PUSH_TIMEOUT_S)
        for attempt in range(1, _PUSH_ATTEMPTS + 1):
            try:
                meta = await store.push(group)
                break
            except CallTimeout as error:
                log.warning("group %d, attempt %d of %d: %s", group.id, attempt, _PUSH_ATTEMPTS, error)
                if attempt == _PUSH_ATTEMPTS:
                    raise
        await self._controller.accepted(self._number, meta, stats)

    async def _failed(self, job: PromptJob, error: Exception, *, fatal: bool) -> None:
        await self._controller.failed(
            self._number, job.id, job.evaluation, str(error), fatal=fatal, version=job.version
        )

    async def _evaluate(self, job: PromptJob) -> None:
        group, _ = await self._episodes.group(self._engine, job)
        assert job.version is not None
        for sample in group.samples:
            versions = set(sample.weight_versions[sample.loss_mask > 0].tolist())
            if versions - {job.version}:
                raise EngineError(f"answered with weights {versions}, but {job.version} are to be evaluated")
        number = [s.index if s.episode is None else s.episode for s in group.samples]
        last = dict(zip(number, group.samples, strict=True))  # the answer of each episode
        tokens = Counter[int]()
        for episode, sample in zip(number, group.samples, strict=True):
            tokens[episode] += len(sample.response_ids)
        texts = [str(sample.metadata.get("text", "")) for sample in last.values()]
        result = EvalResult(
            id=job.id,
            version=job.version,
            scored=EvalAnswers(
                rewards=[sample.reward for sample in last.values()],
                tokens=[tokens[episode] for episode in last],
                truncated=[sample.finish == "length" for sample in last.values()],
                votes=await self._episodes.votes(job, texts),
            ),
            answers=[text[:_ANSWER] for text in texts] if job.shown else [],
        )
        await self._controller.scored(self._number, result)


async def main(process: MemberProcess) -> None:
    """Runs engine `process.index`, with a new worker for each life of the run until the run is over.

    Raises HookError if a function of the recipe cannot be loaded.
    """
    folder = process.folder
    episodes = Episodes.from_recipe(folder)
    async with episodes:  # before the engine starts, because a reward that cannot be loaded ends the run
        await serve(process, episodes)


async def serve(process: MemberProcess, episodes: Episodes) -> None:
    """Starts the engine, and serves the run's lives with it."""
    folder = process.folder
    config = folder.section("rollout", RolloutConfig)
    algorithm = folder.section("algorithm", AlgorithmConfig)
    several = config.nodes_per_engine > 1
    colocated = folder.section("placement", PlacementConfig).layout == "colocated"
    async with admitted(process) if colocated else contextlib.nullcontext():
        meeting = Meeting.open(folder, process.index, process.host) if several else None
        if meeting is not None:
            end_with_parts(folder, process.index, meeting)
        engine = await Engine.start(
            folder.section("model", ModelConfig),
            config,
            log=process.log_folder() / f"sglang-{process.index}.log",
            routing=algorithm.routing_replay == "rollout",
            seed=algorithm.seed,
            threads=int(os.environ.get("OMP_NUM_THREADS", "1")),
            meeting=meeting,
            shares_gpus=colocated,
        )
    try:
        stores = Plan.read(folder.plan).count("store")
        details: dict[str, str | int] = {"engine_ranks": tensor_parallel_size(config)}
        patience = Patience(config.wait_for_trainer_s)
        life: MemberProcess | None = process
        while life is not None:
            trace = life.tracer()
            worker = Worker(process.index, engine, episodes, stores, config.concurrency, trace)
            try:
                served = await serve_life(life, worker, details)
            finally:
                worker.close()
                trace.close()
            if served:
                patience = Patience(config.wait_for_trainer_s)
                await engine.reset()
            patience.check()
            life = await next_life(life)
    finally:
        await engine.stop()


def end_with_parts(folder: RunFolder, engine: int, meeting: Meeting) -> None:
    """Cancels the current task when a part of the engine on another node fails, even while the engine starts."""
    working = asyncio.current_task()
    assert working is not None
    watching = asyncio.create_task(wait_failed(folder, engine, meeting))

    def failed(task: asyncio.Task[str]) -> None:
        if not task.cancelled():
            working.cancel(task.result())

    watching.add_done_callback(failed)
    working.add_done_callback(lambda _: watching.cancel())


class Patience:
    """Limits how long an engine waits for an absent trainer."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since = time.monotonic()

    def check(self) -> None:
        """Ends the process if it has waited too long; its node agent then gives the node back."""
        if (waited := time.monotonic() - self._since) > self._limit_s:
            say(f"no trainer for {waited:.0f} s (rollout.wait_for_trainer_s)")
            sys.exit(GAVE_UP)


async def serve_life(process: MemberProcess, worker: Worker, details: dict[str, str | int]) -> bool:
    """Works until the controller is gone. Returns whether the controller knew this engine.

    Raises ActorError or EngineError if the work ends in any other way.
    """
    if not await asyncio.to_thread((process.folder.members / "controller-0.json").exists):
        return False
    try:
        member = await process.join("rollout", worker, details)
    except StaleGeneration:  # the run has a newer generation by now
        return False
    try:
        await worker.run(member)
    except (MemberLost, StaleGeneration) as error:
        log.info("this life of the run is over: %s", error)
    finally:
        await member.leave()
    if isinstance(reason := await member.wait_left(), MemberLost):
        raise reason  # another worker has taken this one's place
    return worker.served


async def next_life(process: MemberProcess) -> MemberProcess | None:
    """Waits a moment, then returns the run's current life, which can be the same; None if the run is over."""
    await asyncio.sleep(_NEXT_LIFE_S)
    end = await asyncio.to_thread(read_end, process.folder, process.generation)
    if end is not None and not end.resumes:
        return None
    generation = await asyncio.to_thread(lambda: process.folder.generation)
    if generation > process.generation:
        log.info("going on with life %d of the run", generation)
        os.environ["VERST_GENERATION"] = str(generation)
    return replace(process, generation=generation)


async def run(process: MemberProcess) -> None:
    """Runs `main`, and reports a failure in plain words on stderr and in the run's events."""
    try:
        await main(process)
    except HookError as error:
        if "VERST_SHIELDED" in os.environ:  # on a cluster, where this node's agent cannot end the run
            await tell_controller(process, str(error))
        if error.frames:
            print(error.frames, file=sys.stderr)
        say(str(error))
        sys.exit(HOPELESS)
    except (EngineError, ActorError, asyncio.CancelledError) as error:
        say(f"rollout worker {process.index}: {error}")
        process.folder.event("worker_ended", message=f"rollout worker {process.index} ends: {error}")
        sys.exit(1)


if __name__ == "__main__":
    MemberProcess.run(run)
