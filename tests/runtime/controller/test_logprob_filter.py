"""A filter of scored samples: what it sees, whose weights it takes, and what it is refused for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.runtime.algorithms.token_batches import config as algorithm_section
from tests.runtime.controller.reporting.test_numbers import group
from tests.runtime.controller.test_training import Trainers, training
from verst.runtime.controller.batch_plan import Part
from verst.runtime.controller.logprob_filter import LogprobFilter, scored_samples
from verst.runtime.controller.mini_batches import plan_updates, weighted_again
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.scored_step import ScoredStep
from verst.runtime.messages.step_plan import SampleScore, StepPlan

SEEN: list[ScoredStep] = []
CHOICE: Callable[[ScoredStep], Any] = lambda step: [True] * len(step.samples)  # noqa: E731


def chosen(step: ScoredStep) -> Any:
    SEEN.append(step)
    return CHOICE(step)


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()


def filtered(choice: Callable[[ScoredStep], Any], groups: list[Any], **algorithm: Any) -> list[StepPlan]:
    """The plans of a step with this filter: the scored one and the trained one."""
    global CHOICE
    CHOICE = choice
    trainers = Trainers()
    told: list[Any] = []
    step = training(trainers, told, logprob_filter=LogprobFilter(f"{__name__}:chosen"), **algorithm)
    asyncio.run(step.train(20, groups))
    assert trainers.methods == ["score", "train"]
    return trainers.plans


def places(plan: StepPlan) -> list[Any]:
    return [[[(r.group, r.index) for r in m.samples] for m in rank] for rank in plan.microbatches]


def weights(plan: StepPlan) -> dict[tuple[int, int], list[float]]:
    return {(r.group, r.index): r.weights for rank in plan.microbatches for m in rank for r in m.samples}


def second_of_each(step: ScoredStep) -> list[Any]:
    return [(sample.index != 1, "second") for sample in step.samples]


def test_dropped_samples_weigh_nothing_and_the_others_weights_sum_to_one_in_every_term() -> None:
    groups = [group(0, [1.0, 0.0, 1.0]), group(1, [1.0, 1.0, 0.0])]
    scored, trained = filtered(
        second_of_each, groups, imitation_coef=0.5, advantage="own.module:f", critic={}
    )
    assert places(scored) == places(trained)
    assert trained.terms == ["policy", "value", "sft"]
    four = 1 / 16  # four samples of four tokens stay
    # Of the good answers (0, 0), (0, 2), (1, 0) and (1, 1) the last one is dropped: three of four tokens.
    good = 0.5 / 12
    assert weights(trained) == {
        (0, 0): [four, four, pytest.approx(good)],
        (0, 1): [0, 0, 0],
        (0, 2): [four, four, pytest.approx(good)],
        (1, 0): [four, four, pytest.approx(good)],
        (1, 1): [0, 0, 0],
        (1, 2): [four, four, 0],
    }
    assert weights(scored)[0, 1][0] > 0
    # The advantages are those of all samples: what is dropped still counts in its group's baseline.
    advantages = {(r.group, r.index): r.advantage for m in trained.microbatches[0] for r in m.samples}
    assert advantages == {(0, 0): -4, (0, 1): 0, (0, 2): 1, (1, 0): -4, (1, 1): 0, (1, 2): 1}


def test_a_step_is_scored_once_where_the_kl_needs_its_scores_too() -> None:
    groups = [group(0, [1.0, 0.0]), group(1, [0.5, 0.25])]
    scored, trained = filtered(second_of_each, groups, kl_coef=0.1, kl_in="reward")
    assert places(scored) == places(trained)
    # The step's rewards are as they were, and the advantages are those of the rewards less the penalties.
    (step,) = SEEN
    assert [(s.reward, s.advantage) for s in step.samples] == [
        (1.0, -4.25), (0.0, -0.5), (0.5, -4.75), (0.25, -0.25)
    ]  # fmt: skip
    assert weights(trained) == {(0, 0): [1 / 8], (0, 1): [0], (1, 0): [1 / 8], (1, 1): [0]}


def test_the_weights_of_each_mini_batch_sum_to_one_and_an_empty_one_has_no_update() -> None:
    def not_of_group_one(step: ScoredStep) -> list[bool]:
        return [sample.group != 1 and (sample.group, sample.index) != (0, 0) for sample in step.samples]

    groups = [group(i, [1.0, 0.0, 0.5]) for i in range(4)]
    scored, trained = filtered(not_of_group_one, groups, mini_batches=4, epochs=2)
    assert places(scored) == places(trained)
    found = weights(trained)
    of_group = {i: sum(4 * found[i, index][0] for index in range(3)) for i in range(4)}
    assert of_group == {0: pytest.approx(1), 1: 0, 2: pytest.approx(1), 3: pytest.approx(1)}
    assert found[0, 0] == [0]
    assert len(scored.updates) == 8
    empty = [scored.updates[i] for i in range(4) if (1, 0) in places(trained)[0][scored.updates[i].start]]
    assert len(empty) == 1
    assert trained.updates == [part for part in scored.updates if part not in empty]


def test_the_samples_that_stay_weigh_what_a_step_of_them_alone_gives_them() -> None:
    """Whatever the average is, and over episodes; the plan of the others' absence is made by itself."""
    groups = [
        msgspec.structs.replace(group(0, [1.0, 1.0, 0.5]), episodes=[0, 0, 2], trained_tokens=[1, 3, 5]),
        msgspec.structs.replace(group(1, [1.0, 0.0, 0.5]), trained_tokens=[2, 4, 0]),
    ]
    dropped = {(0, 0), (1, 1)}
    left = [
        msgspec.structs.replace(
            g,
            **{
                name: [v for i, v in enumerate(getattr(g, name) or range(3)) if (g.id, i) not in dropped]
                for name in ("lengths", "trained_tokens", "rewards", "finish", "episodes")
            },
        )
        for g in groups
    ]
    options: dict[str, Any] = {"step": 4, "dp_size": 2, "max_tokens": 64, "pad_multiple": 1, "epochs": 1}
    for average in ("token", "sample", "episode", "constant"):
        whole = Part("policy", groups, [[1.0, 2.0, 3.0]] * 2, average, longest=9)
        plan = plan_updates(parts=[whole], mini_batches=1, **options)
        flags = [[(g.id, i) not in dropped for i in range(3)] for g in groups]
        part = Part("policy", groups, whole.advantages, average, longest=9, takes_part=flags)
        mine = weights(weighted_again(plan, [part], 1))
        alone = Part("policy", left, [[0.0] * len(g.rewards) for g in left], average, longest=9)
        theirs = list(weights(plan_updates(parts=[alone], mini_batches=1, **options)).items())
        kept = [name for name in sorted(mine) if name not in dropped]
        assert [mine[name] for name in kept] == [w for _, w in sorted(theirs)], average
        assert all(mine[name] == [0] for name in dropped)


def test_the_filter_sees_what_there_is_to_know_of_each_sample() -> None:
    one = msgspec.structs.replace(
        group(7, [1.0, 0.0, 0.5]),
        trained_tokens=[4, 0, 2],
        finish=["stop", "stop", "length"],
        scores={"right": [1.0, float("nan"), float("nan")]},
        episodes=[0, 1, 1],
        oldest_version=18,
        source="math",
    )
    scores = [
        SampleScore(group=7, index=i, logprobs=-2.0, rollout_logprobs=-3.0, difference=1.5, entropy=0.5)
        for i in range(3)
    ]
    first, last = scored_samples(21, Part("policy", [one], [[0.5, 0.25, -1.0]], "token"), scores)
    assert (first.group, first.index, first.episode, first.source) == (7, 0, 0, "math")
    assert (first.reward, first.advantage, first.scores, first.finish) == (1.0, 0.5, {"right": 1.0}, "stop")
    assert (first.logprobs, first.rollout_logprobs, first.difference, first.entropy) == (-2.0, -3.0, 1.5, 0.5)
    assert (first.staleness, first.length, first.trained_tokens) == (2, 8, 4)
    # The sample without a trained token is not asked about: means over its tokens would divide by 0.
    assert (last.index, last.episode, last.scores, last.finish, last.trained_tokens) == (
        2,
        1,
        {},
        "length",
        2,
    )


def test_a_step_of_which_nothing_stays_ends_the_run_with_the_reasons() -> None:
    with pytest.raises(HookError) as told:
        filtered(lambda step: [(False, "far")] * 3 + [False], [group(0, [1.0, 0.0]), group(1, [0.5, 0.25])])
    assert str(told.value) == (
        f"log-probability filter '{__name__}:chosen', step 21: dropped all 4 samples of the step (far: 3, filter: "
        "1), so that there is nothing to train on; keep some of them, such as the best ones"
    )


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "returned None, not a list with an entry for each sample"),
        ([True], "returned 1 entries for 2 samples"),
        ([True, None], "returned None, neither True nor False nor one of them with a reason"),
        ([True, (False, "no good")], "a reason is a short name"),
        ([(False, "all"), True], "Verst counts its own drops under 'all'"),
        ([1.0, True], "returned 1.0, neither True nor False"),
    ],
)
def test_a_wrong_value_is_refused(value: Any, told: str) -> None:
    with pytest.raises(HookError, match=told.replace("(", r"\(").replace(".", r"\.")):
        filtered(lambda step: value, [group(0, [1.0, 0.0])])


def test_a_sample_that_two_ranks_scored_is_a_fault() -> None:
    class Twice(Trainers):
        async def all(self, method: str, plan: StepPlan) -> list[Any]:
            found = await super().all(method, plan)
            return [found[0], found[0]] if method == "score" else found

    step = training(Twice(), [], logprob_filter=LogprobFilter(f"{__name__}:chosen"))
    with pytest.raises(ValueError, match="step 21: the trainer scored a sample twice"):
        asyncio.run(step.train(20, [group(0, [1.0, 0.0])]))


def test_an_average_of_the_recipes_own_and_a_filter_are_refused_together() -> None:
    with pytest.raises(
        ValueError, match="logprob_filter is m:f, but loss_average is the function m:average, which"
    ):
        algorithm_section(logprob_filter="m:f", loss_average="m:average")
    assert algorithm_section(logprob_filter="m:f", loss_average="sample").own_average is None


def test_without_a_filter_no_sample_is_scored() -> None:
    trainers = Trainers()
    asyncio.run(training(trainers, []).train(20, [group(0, [1.0, 0.0])]))
    assert trainers.methods == ["train"]
