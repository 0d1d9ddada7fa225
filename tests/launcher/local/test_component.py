"""`torchx run` understands the component: what it would start. `tests/runs/test_torchx.py` starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher.recipes_for_tests import write_recipe, write_tokenizer

COMPONENT = Path(__file__).parents[3] / "launcher/local/component.py"


@pytest.mark.long
@pytest.mark.timeout(280)
def test_torchx_builds_two_roles_of_node_agents(tmp_path):
    write_recipe(tmp_path)
    write_tokenizer(tmp_path / "model")
    command = [
        str(Path(sys.executable).parent / "torchx"),
        "run",
        "-s",
        "local_cwd",
        "--dryrun",
        f"{COMPONENT}:verst",
    ]
    done = subprocess.run(
        [*command, "--recipe", "recipe.yaml", "rollout.engines=2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=270,
    )
    assert done.returncode == 0, done.stderr
    assert "verst.runtime.node.agent" in done.stdout
    for replica in ("trainer/0", "rollout/0", "rollout/1"):
        assert f"{replica}/stdout.log" in done.stdout
    assert (tmp_path / "runs/test/plan.json").is_file()
