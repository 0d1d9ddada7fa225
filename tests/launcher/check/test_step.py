"""What a recipe asks of a training step is possible: every sample fits, and every group can teach something."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launcher.recipes_for_tests import LLAMA, write_recipe
from verst.launcher.check.step import step_faults
from verst.launcher.recipe.load import load_recipe


def faults(tmp_path: Path, *overrides: str) -> list[tuple[str, str]]:
    recipe = load_recipe(write_recipe(tmp_path), overrides)
    return [(fault.place, fault.message) for fault in step_faults(recipe, LLAMA)]


@pytest.mark.parametrize(
    "name", ["group_normalised", "group_normalised_sample", "group_centred", "leave_one_out"]
)
def test_an_advantage_within_the_group_needs_a_group(tmp_path, name):
    hook = f"algorithm.advantage=verst.runtime.algorithms.advantages:{name}"
    assert faults(tmp_path, "algorithm.samples_per_prompt=1", hook) == [
        (
            "algorithm.samples_per_prompt",
            f"is 1: {name} compares a sample with its group, so its advantage would always be 0 and nothing would be "
            "learned; must be at least 2",
        )
    ]
    assert faults(tmp_path, "algorithm.samples_per_prompt=2", hook) == []


def test_a_group_of_one_is_right_for_an_advantage_of_ones_own(tmp_path):
    assert faults(tmp_path, "algorithm.samples_per_prompt=1", "algorithm.advantage=my_hooks:raw") == []


@pytest.mark.parametrize(
    ("ranks", "megatron", "multiple"),
    [
        (1, "", 1),
        (2, "context-parallel-size: 2", 4),
        (2, "tensor-model-parallel-size: 2, sequence-parallel: true", 2),
        (2, "tensor-model-parallel-size: 2", 1),
        (8, "tensor-model-parallel-size: 4, sequence-parallel: true, context-parallel-size: 2", 16),
    ],
)
@pytest.mark.parametrize("longest", [65, 73, 80, 81])
def test_the_longest_sample_must_fit_with_its_padding(tmp_path, ranks, megatron, multiple, longest):
    padded = -(-longest // multiple) * multiple
    for limit, fits in ((padded, True), (padded - 1, False)):
        found = faults(
            tmp_path,
            f"trainer.ranks_per_node={ranks}",
            f"trainer.megatron={{{megatron}}}",
            f"rollout.sampling.max_new_tokens={longest - 64}",
            f"trainer.max_tokens_per_microbatch={limit}",
        )
        assert [place for place, _ in found] == ([] if fits else ["trainer.max_tokens_per_microbatch"])
        assert fits or multiple == 1 or f"multiple of {multiple}, " in found[0][1]
        assert fits or multiple == 1 or f": {padded})" in found[0][1]


def test_a_correction_is_refused_where_its_ratio_is_always_one(tmp_path):
    chosen = "algorithm.correction=verst.runtime.algorithms.corrections:"
    ((place, message),) = faults(tmp_path, f"{chosen}token_truncated", "trainer.old_logprobs=rollout")
    assert (place, message.partition(",")[0]) == ("algorithm.correction", "is token_truncated")
    assert "its importance ratio is always 1" in message
    assert faults(tmp_path, f"{chosen}token_truncated") == []
    assert faults(tmp_path, f"{chosen}negative_masked", "trainer.old_logprobs=rollout") == []


def test_mini_batches_hold_equally_many_whole_groups_for_every_rank(tmp_path):
    ((place, message),) = faults(tmp_path, "algorithm.mini_batches=3")
    assert place == "algorithm.mini_batches"
    assert message == (
        "is 3, which does not divide prompts_per_step 4: mini-batches have equally many whole prompt groups"
    )
    ((place, message),) = faults(
        tmp_path, "algorithm.mini_batches=4", "trainer.ranks_per_node=4", "algorithm.samples_per_prompt=2"
    )
    assert place == "algorithm.mini_batches"
    assert message.startswith("is 4: the 2 samples of a mini-batch leave some of the 4 data-parallel ranks")
    assert faults(tmp_path, "algorithm.mini_batches=2", "algorithm.epochs=3") == []
