"""A step trains on what the advantage function says and reports rewards as they were; weights sum to one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.runtime.algorithms.token_batches import config as algorithm_section
from tests.runtime.controller.reporting.test_numbers import group, report
from verst.runtime.algorithms.averages import AverageCall
from verst.runtime.algorithms.stages import SftFileConfig, SftStage, Span, StageEvalConfig
from verst.runtime.controller.happening_hooks import HappeningHooks
from verst.runtime.controller.logprob_filter import LogprobFilter
from verst.runtime.controller.penalties import penalised
from verst.runtime.controller.training import Training
from verst.runtime.data.config import SourceConfig, TrainConfig
from verst.runtime.hooks.config import HooksConfig
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.happenings import StepBegin, StepEnd
from verst.runtime.hooks.hook import Hook
from verst.runtime.messages.sample import GroupMeta
from verst.runtime.messages.step_plan import SampleScore, StepPlan


def shapes_in_place(groups: Sequence[GroupMeta]) -> list[list[float]]:
    for one in groups:
        one.rewards[0] -= 5.0
        one.rewards.sort()
    return [list(one.rewards) for one in groups]


class Trainers:
    """Ranks that keep the plan."""

    def __init__(self) -> None:
        self.plans: list[StepPlan] = []
        self.methods: list[str] = []

    async def all(self, method: str, plan: StepPlan) -> list[Any]:
        self.plans.append(plan)
        self.methods.append(method)
        if method == "score":  # each rank of the data-parallel replicas answers for its own samples
            refs = [r for m in plan.microbatches[0] for r in m.samples]
            found = [
                SampleScore(
                    group=r.group,
                    index=r.index,
                    penalty=0.25 * (r.index + 1),
                    logprobs=-4.0,
                    rollout_logprobs=-4.0 - r.index,
                )
                for r in refs
            ]
            return [found[::2], found[1::2]]
        return [report(plan.step)]


STAGE = SftStage(kind="sft", data=SftFileConfig(path=""), steps=4, eval=StageEvalConfig(path="", interval=2))


class Rows:
    """Two rows of a stage of four steps, and three that are held out."""

    def span(self, version: int) -> Span:
        return Span(0, STAGE, 0)

    def epochs(self, version: int) -> float:
        return 1.0

    def batch(self, version: int) -> list[GroupMeta]:
        return [group(-1, [0.0]), group(-2, [0.0])]

    def held_out(self, span: Span, version: int) -> list[GroupMeta]:
        return [group(-10 - number, [0.0]) for number in range(3)]


@pytest.mark.parametrize(
    ("version", "methods"), [(0, ["evaluate", "train"]), (1, ["train", "evaluate"]), (2, ["train"])]
)
def test_held_out_rows_are_measured_before_the_first_step_and_when_due(
    version: int, methods: list[str]
) -> None:
    trainers = Trainers()
    asyncio.run(training(trainers, []).offline(version))
    assert trainers.methods == methods
    assert [plan.step for plan in trainers.plans] == sorted(plan.step for plan in trainers.plans)
    rows = [len([r for m in plan.microbatches[0] for r in m.samples]) for plan in trainers.plans]
    assert rows == [3 if method == "evaluate" else 2 for method in methods]


def training(
    trainers: Trainers,
    seen: list[GroupMeta],
    train: TrainConfig = TrainConfig(path="t.jsonl"),  # noqa: B008
    hooks: HappeningHooks | None = None,
    logprob_filter: LogprobFilter | None = None,
    **algorithm: Any,
) -> Training:
    config = SimpleNamespace(
        algorithm=algorithm_section(**algorithm),
        rollout=SimpleNamespace(sampling=SimpleNamespace(max_new_tokens=4096)),
        data=SimpleNamespace(train=train),
        trainer=SimpleNamespace(max_tokens_per_microbatch=64, max_logprob_diff=None),
        model=SimpleNamespace(dtype="float32"),
    )

    async def pushed(groups: list[GroupMeta]) -> list[GroupMeta]:
        return groups

    async def nothing(*_: Any) -> None:
        return None

    record = SimpleNamespace(
        step_begins=lambda groups, version: seen.extend(groups),
        step_ends=lambda report: {},
        busy=lambda *_, **__: contextlib.nullcontext(),
    )
    return Training(
        config,  # type: ignore[arg-type]
        Hook("advantage function", f"{__name__}:shapes_in_place", timeout_s=5),
        trainers,  # type: ignore[arg-type]
        SimpleNamespace(dp_size=1, pad_multiple=1, microbatch_multiple=1),  # type: ignore[arg-type]
        SimpleNamespace(push=pushed, discard=nothing),  # type: ignore[arg-type]
        SimpleNamespace(stages=Rows()),  # type: ignore[arg-type]
        record,  # type: ignore[arg-type]
        SimpleNamespace(  # type: ignore[arg-type]
            metric=lambda **_: None, offline_step=lambda *_: None, rows_evaluated=lambda *_: None
        ),
        SimpleNamespace(choose=lambda *_: [], write=lambda *_: None),  # type: ignore[arg-type]
        SimpleNamespace(start=lambda work, name: work.close()),  # type: ignore[arg-type]
        hooks or HappeningHooks(HooksConfig(), None),  # type: ignore[arg-type]
        SimpleNamespace(end_step=nothing),  # type: ignore[arg-type]
        None,
        logprob_filter,
    )


def test_an_advantage_function_that_changes_its_rewards_changes_no_reported_reward() -> None:
    trainers, seen = Trainers(), []
    groups = [group(0, [1.0, 0.0]), group(1, [0.5, 0.25])]
    before = msgspec.json.encode(groups)
    asyncio.run(training(trainers, seen).train(20, groups))
    assert msgspec.json.encode(seen) == before
    refs = {(r.group, r.index): r.advantage for m in trainers.plans[0].microbatches[0] for r in m.samples}
    assert refs == {(0, 0): -4.0, (0, 1): 0.0, (1, 0): -4.5, (1, 1): 0.25}


@pytest.mark.parametrize("average", ["token", "sample"])
def test_the_weights_of_demonstrations_sum_to_one_whatever_the_average(average: str) -> None:
    trainers = Trainers()
    STAGE.loss_average = average  # type: ignore[assignment]
    asyncio.run(training(trainers, []).offline(2))
    (plan,) = trainers.plans
    assert plan.terms == ["sft"]
    weights = [r.weights[0] * 4 for m in plan.microbatches[0] for r in m.samples]  # of four tokens each
    assert sum(weights) == pytest.approx(1)


def test_a_source_weighs_its_tokens_loss_and_leaves_the_others_as_they_are() -> None:
    sources = {"a": SourceConfig(path="a.jsonl", loss_weight=3.0), "b": SourceConfig(path="b.jsonl")}
    trainers = Trainers()
    groups = [msgspec.structs.replace(group(n, [1.0, 0.0]), source=source) for n, source in enumerate("ab")]
    asyncio.run(training(trainers, [], train=TrainConfig(sources=sources)).train(20, groups))
    weights = {(r.group, r.index): r.weights for m in trainers.plans[0].microbatches[0] for r in m.samples}
    one = 1 / 16  # four samples of four tokens, each token the same
    assert weights == {(0, 0): [3 * one], (0, 1): [3 * one], (1, 0): [one], (1, 1): [one]}


ASKED: list[AverageCall] = []


def second_sample_only(call: AverageCall) -> list[list[float]]:
    """Spoils what it gets, too."""
    ASKED.append(call)
    tokens = sum(group.trained_tokens[1] for group in call.groups)
    weights = [[0.0, 0.5 / tokens] for _ in call.groups]
    for one in call.groups:
        one.trained_tokens.clear()
    return weights


def of_whole_samples(call: AverageCall) -> list[list[float]]:
    samples = sum(len(group.rewards) for group in call.groups)
    return [[1 / samples] * len(group.rewards) for group in call.groups]


def test_a_function_of_the_recipes_own_weighs_the_tokens_of_each_mini_batch() -> None:
    ASKED.clear()
    sources = {"a": SourceConfig(path="a.jsonl", loss_weight=3.0), "b": SourceConfig(path="b.jsonl")}
    groups = [msgspec.structs.replace(group(n, [1.0, 0.0]), source="ab"[n % 2]) for n in range(4)]
    groups[2] = msgspec.structs.replace(groups[2], trained_tokens=[4, 1])
    trainers, seen = Trainers(), []
    own: dict[str, Any] = {"loss_average": f"{__name__}:second_sample_only", "mini_batches": 2}
    own |= {"imitation_coef": 0.1, "imitation_reward": 1.0}
    asyncio.run(training(trainers, seen, train=TrainConfig(sources=sources), **own).train(20, groups))
    (plan,) = trainers.plans
    # Each source is dealt in turn: groups 0 and 1 are the first mini-batch.
    assert [[g.id for g in call.groups] for call in ASKED] == [[0, 1], [2, 3]]
    assert [call.longest for call in ASKED] == [4096, 4096]
    refs = {(r.group, r.index): r for m in plan.microbatches[0] for r in m.samples}
    weights = {name: r.weights[plan.terms.index("policy")] for name, r in refs.items()}
    assert weights == {
        (0, 0): 0.0, (0, 1): 3 * 0.5 / 8, (1, 0): 0.0, (1, 1): 0.5 / 8,
        (2, 0): 0.0, (2, 1): pytest.approx(3 * 0.5 / 5), (3, 0): 0.0, (3, 1): 0.5 / 5,
    }  # fmt: skip
    # The right answers are imitated by the mean over their tokens, whatever the policy's average is.
    assert {refs[n, 0].weights[plan.terms.index("sft")] for n in range(4)} == {0.1 / 8}
    assert [one.trained_tokens for one in seen] == [[4, 4], [4, 4], [4, 1], [4, 4]]


def test_a_mini_batch_without_a_trained_token_asks_for_no_weights() -> None:
    ASKED.clear()
    groups = [group(0, [1.0, 0.0]), msgspec.structs.replace(group(1, [1.0, 0.0]), trained_tokens=[0, 0])]
    trainers = Trainers()
    own: dict[str, Any] = {"loss_average": f"{__name__}:second_sample_only", "mini_batches": 2}
    asyncio.run(training(trainers, [], **own).train(20, groups))
    assert [[g.id for g in call.groups] for call in ASKED] == [[0]]
    assert trainers.plans[0].mini_batches == [1]


def test_weights_of_whole_samples_are_refused_with_step_and_mini_batch() -> None:
    own: dict[str, Any] = {"loss_average": f"{__name__}:of_whole_samples", "mini_batches": 2}
    with pytest.raises(HookError, match=r"average function .*, step 21, mini-batch 1: .* add up to 4 over"):
        asyncio.run(training(Trainers(), [], **own).train(20, [group(n, [1.0, 0.0]) for n in range(2)]))


HAPPENED: list[Any] = []


def happened(happening: Any) -> None:
    HAPPENED.append(happening)


def figure(step: StepEnd) -> dict[str, float]:
    return {"groups": len(step.groups)}


def test_a_steps_beginning_and_end_are_told_with_its_groups_and_figures() -> None:
    HAPPENED.clear()
    config = HooksConfig(
        step_begin=f"{__name__}:happened", step_end=f"{__name__}:happened", metrics=f"{__name__}:figure"
    )
    groups = [group(0, [1.0, 0.0]), group(1, [0.5, 0.25])]
    told = HappeningHooks(config, None)  # type: ignore[arg-type]
    asyncio.run(training(Trainers(), [], hooks=told).train(20, groups))
    begin, end = HAPPENED
    assert begin == StepBegin(step=21, groups=tuple(groups))
    assert end == StepEnd(step=21, groups=tuple(groups), line={"own": {"groups": 2}})


def test_a_kl_in_the_reward_changes_advantages_and_no_reported_reward_or_micro_batch() -> None:
    trainers, seen = Trainers(), []
    groups = [group(0, [1.0, 0.0]), group(1, [0.5, 0.25])]
    before = msgspec.json.encode(groups)
    reward = {"kl_coef": 0.1, "kl_in": "reward"}
    asyncio.run(training(trainers, seen, **reward).train(20, groups))
    assert msgspec.json.encode(seen) == before
    scored, trained = trainers.plans
    names = [
        [[[(r.group, r.index) for r in m.samples] for m in rank] for rank in plan.microbatches]
        for plan in (scored, trained)
    ]
    assert names[0] == names[1]
    refs = {(r.group, r.index): r.advantage for m in trained.microbatches[0] for r in m.samples}
    # The function takes 5 off the first reward of each group and sorts them.
    assert refs == {(0, 0): -4.25, (0, 1): -0.5, (1, 0): -4.75, (1, 1): -0.25}


def test_a_critics_term_has_the_policys_weights_and_no_sample_is_scored_before() -> None:
    """Also with a KL in the reward, which each token pays on the ranks; whitening is theirs, too."""
    trainers = Trainers()
    sources = {"a": SourceConfig(path="a.jsonl", loss_weight=3.0), "b": SourceConfig(path="b.jsonl")}
    groups = [msgspec.structs.replace(group(n, [1.0, 0.0]), source=source) for n, source in enumerate("ab")]
    options: dict[str, Any] = {
        "kl_coef": 0.1,
        "kl_in": "reward",
        "advantage_whiten": True,
        "imitation_coef": 0.5,
    }
    options |= {"advantage": "own.module:rewards", "critic": {}}
    asyncio.run(training(trainers, [], train=TrainConfig(sources=sources), **options).train(20, groups))
    (plan,) = trainers.plans
    assert plan.terms == ["policy", "value", "sft"]
    refs = {(r.group, r.index): r for m in plan.microbatches[0] for r in m.samples}
    assert {name: r.advantage for name, r in refs.items()} == {
        (0, 0): -4.0, (0, 1): 0.0, (1, 0): -4.0, (1, 1): 0.0
    }  # fmt: skip
    assert {name: r.weights[:2] for name, r in refs.items()} == {
        (0, 0): [3 / 16, 3 / 16], (0, 1): [3 / 16, 3 / 16], (1, 0): [1 / 16, 1 / 16], (1, 1): [1 / 16, 1 / 16]
    }  # fmt: skip


def test_a_sample_that_the_trainer_did_not_score_is_a_fault() -> None:
    groups = [group(0, [1.0, 0.0])]
    with pytest.raises(ValueError, match="did not score sample 1 of group 0"):
        penalised(groups, [SampleScore(group=0, index=0, penalty=1.0)])
    untrained = [msgspec.structs.replace(groups[0], trained_tokens=[4, 0])]
    assert penalised(untrained, [SampleScore(group=0, index=0, penalty=1.0)]).groups[0].rewards == [0.0, 0.0]


def test_an_episode_pays_for_all_its_samples_and_they_keep_one_reward() -> None:
    one = msgspec.structs.replace(group(0, [1.0, 1.0, 0.5]), episodes=[0, 0, 2])
    paid = penalised([one], [SampleScore(group=0, index=i, penalty=0.25 * (i + 1)) for i in range(3)])
    assert paid.groups[0].rewards == [0.25, 0.25, -0.25]
    assert paid.mean == 0.75  # of two episodes: 0.25 + 0.5 and 0.75
