"""How many steps a run has, by its resolved recipe, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class PlannedSteps(NamedTuple):
    """The steps before the policy stage, which need no engine, and all steps."""

    offline: int
    all: int


def planned_steps(algorithm: Mapping[str, Any]) -> PlannedSteps:
    """Reads them from the recipe's `algorithm` section."""
    stages = algorithm.get("stages") or [{"kind": "policy"}]
    offline = sum(int(stage.get("steps") or 0) for stage in stages if stage.get("kind") != "policy")
    generates = any(stage.get("kind") == "policy" for stage in stages)
    return PlannedSteps(offline, offline + (int(algorithm.get("steps") or 0) if generates else 0))
