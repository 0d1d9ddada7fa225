"""What a message names as a bundled hook can be written into a recipe."""

from __future__ import annotations

import pytest

from verst.launcher.check.hooks.bundled import PLACES, bundled_hint, bundled_hooks, described_hooks
from verst.launcher.check.hooks.hooks import hook_fault


@pytest.mark.parametrize(
    ("place", "arguments", "name"),
    [
        ("rollout.reward", 1, "math"),
        ("rollout.generate", 1, "single_turn"),
        ("rollout.filter", 1, "nonzero_std"),
        ("algorithm.advantage", 1, "leave_one_out"),
        ("algorithm.loss", 1, "grpo"),
        ("algorithm.correction", 1, "token_masked"),
        ("algorithm.kl", 2, "k3"),
    ],
)
def test_bundled_hooks_are_hooks(place, arguments, name):
    hooks = bundled_hooks(place)
    assert name in hooks
    faults = [fault for path in hooks.values() if (fault := hook_fault(path, arguments))]
    assert [fault for fault in faults if "which is not installed" not in fault] == []


def test_a_key_without_bundled_hooks_has_no_hint():
    assert bundled_hint("model.family", "qwen") == ""


def test_every_bundled_hook_is_described_and_advantages_name_their_papers():
    described = {place: dict(described_hooks(place)) for place in PLACES}
    assert [path for hooks in described.values() for path, told in hooks.items() if not told] == []
    advantages = described["algorithm.advantage"]
    assert len(advantages) == 12
    without = [path.rpartition(":")[2] for path, told in advantages.items() if "arXiv:" not in told]
    assert without == ["group_normalised_sample"], "a variant of group_normalised, whose paper is named there"
