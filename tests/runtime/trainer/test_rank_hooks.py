"""Functions on the trainer's ranks are called in the order of the work, with the weights that it works on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_layouts import CP, ONE
from tests.runtime.trainer.tiny_models import Layout
from verst.runtime.hooks.config import HooksConfig

OWN = "tests.runtime.trainer.own_hooks"
NOTES = {"before_logprobs": f"{OWN}:before", "before_update": f"{OWN}:begins", "after_update": f"{OWN}:ended"}


def test_each_pass_and_update_is_told_with_the_weights_that_are_in_the_model(
    models: dict[str, Path], ranks: Ranks
) -> None:
    """Two steps of two mini-batches with a reference: in the second step the reference is what the policy was."""
    given: dict[str, Any] = {"mini_batches": 2, "kl_coef": 0.1}
    answers = ranks.run(models["llama"], Layout(2, {CP: 2}), steps=2, algorithm=given, hooks=NOTES)
    for rank, answer in enumerate(answers):
        told = answer["told"]
        kinds = [
            (entry[0], entry[1], entry[3], entry[4] if entry[0] != "logprobs" else None) for entry in told
        ]
        of_step = [("logprobs", "policy", None), ("logprobs", "reference", None)]
        of_step += [(kind, "policy", update) for update in (1, 2) for kind in ("begins", "ended")]
        assert kinds == [(kind, step, weights, n) for step in (1, 2) for kind, weights, n in of_step]
        assert {entry[2] for entry in told} == {rank}
        sums = [entry[-1] for entry in told]
        first, second = sums[:6], sums[6:]
        assert first[0] == first[1] == first[2]  # policy and reference are one, and the update has not begun
        assert len({first[2], first[3], first[5]}) == 3  # each update changes the weights
        assert first[3] == first[4]
        assert second[0] == first[5]
        assert second[1] == first[1]  # the reference's own weights, in the policy's place
        assert second[2] == second[0]  # and they are gone again


@pytest.mark.long
def test_a_critics_updates_are_told_apart(models: dict[str, Path], ranks: Ranks) -> None:
    given = {"advantage": "verst.runtime.algorithms.advantages:gae", "critic": {"lr": 3e-3}}
    (answer,) = ranks.run(models["llama"], ONE, algorithm=given, hooks=NOTES)
    updates = [entry for entry in answer["told"] if entry[0] != "logprobs"]
    assert [entry[:1] + entry[3:4] for entry in updates] == [
        ("begins", "policy"), ("ended", "policy"), ("begins", "critic"), ("ended", "critic")
    ]  # fmt: skip
    assert [entry[5] for entry in updates if entry[0] == "ended"] == pytest.approx([1e-3, 3e-3])


def test_what_a_function_does_to_the_model_stays(models: dict[str, Path], ranks: Ranks) -> None:
    """With weights of zero all tokens are equally likely."""
    (answer,) = ranks.run(models["llama"], ONE, hooks={"after_update": f"{OWN}:zeroes_all"})
    after = np.concatenate(answer["after"])
    assert np.ptp(np.concatenate(answer["before"])) > 0.1
    np.testing.assert_allclose(after, after[0], atol=1e-6)


def test_a_fault_names_the_function_the_rank_and_the_update(models: dict[str, Path], ranks: Ranks) -> None:
    given: dict[str, Any] = {"algorithm": {"mini_batches": 2}}
    with pytest.raises(
        pytest.fail.Exception,
        match=r"HookError: hook before_update '.*:fails_in_the_second_update', step 1, rank 0, update 2 of 2 of the "
        r"policy: raised OSError: the disk is full",
    ):
        ranks.run(models["llama"], ONE, hooks={"before_update": f"{OWN}:fails_in_the_second_update"}, **given)


def test_a_function_on_the_ranks_cannot_only_warn() -> None:
    with pytest.raises(ValueError, match="failure is warn, but before_update works on the model itself"):
        HooksConfig(failure="warn", before_update="a.module:f", step_end="a.module:g")
