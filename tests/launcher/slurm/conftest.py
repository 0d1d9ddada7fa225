"""Slurm's commands replaced by ones that misbehave when told to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.stand_in import StandIn


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn(tmp_path / "bin", monkeypatch)
