"""A whole run started by `torchx run` alone, without the `verst` command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.tiny_moe import RECIPE, SHORT, tiny_overrides, tiny_run
from tests.runs.verst_run import ROOT


@pytest.mark.long
@pytest.mark.timeout(320)
def test_torchx_run_brings_a_recipe_to_its_end(model: Path, tmp_path: Path) -> None:
    run = tiny_run(model, tmp_path / "by-torchx")
    place = (f"runs_dir={run.folder.parent}", f"name={run.folder.name}")
    component = f"{ROOT / 'launcher/local/component.py'}:verst"
    done = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "torchx"), "run", "-s", "local_cwd", "--wait", component),
            *("--recipe", str(RECIPE), *tiny_overrides(model), *SHORT, *place),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert len(run.lines("step")) == 4
    assert [line["message"] for line in run.lines("finished", "events.jsonl")] == ["trained 4 steps"]
    assert (run.folder / "export/config.json").is_file()
    assert run.processes() == []
