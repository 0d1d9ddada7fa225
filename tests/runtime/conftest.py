"""A run folder with keys, as the launcher leaves it to the members."""

from __future__ import annotations

from pathlib import Path

import pytest

from verst.runtime.actors import create_keys
from verst.runtime.run.folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    run.start_generation()
    create_keys(run)
    return run
