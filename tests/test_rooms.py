"""The rules of who may import whom hold, and a broken one is noticed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("launcher", "runtime", "slurm", "sync", "recipes")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Checks the contracts of `folder`'s pyproject.toml on the packages that `folder` holds as verst/."""
    program = (
        "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    )
    return subprocess.run(
        [sys.executable, "-P", "-c", program, "--no-cache", "--no-logo"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, which a test may break."""
    folder = tmp_path_factory.mktemp("rooms")
    for name in FOLDERS:
        shutil.copytree(
            ROOT / name, folder / "verst" / name, ignore=shutil.ignore_patterns("__pycache__", "static")
        )
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_contracts_hold(copy: Path) -> None:
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout
    assert "KEPT" in done.stdout


# What is broken: a file, an import that is added to it, and the contract that must notice.
BROKEN = {
    "sync imports runtime": ("sync/layout/blocks.py", "verst.runtime.messages.sample", "recipes import sync"),
    "runtime imports launcher": ("runtime/node/scratch.py", "verst.launcher.plan.plan", "launcher imports runtime"),
    "slurm knows RL": ("slurm/executor.py", "verst.runtime.messages.sample", "slurm knows no RL"),
    "slurm imports torch": ("slurm/site.py", "torch", "slurm knows no RL"),
    "engines know the trainer": ("runtime/rollout/worker.py", "verst.runtime.trainer.config", "rooms of runtime"),
    "the model knows its steps": (
        "runtime/trainer/model/model.py", "verst.runtime.trainer.step.phases", "rooms of the trainer",
    ),
    "inside SGLang knows the client": (
        "runtime/rollout/inside_sglang/groups.py", "verst.runtime.rollout.engine.client", "rooms of rollout",
    ),
    "layouts know links": ("sync/layout/blocks.py", "verst.sync.links.gather", "rooms of sync"),
    "a plan knows its check": ("launcher/plan/plan.py", "verst.launcher.check.check", "rooms of launcher"),
    "model folders know the hooks": (
        "launcher/check/model/model_files.py", "verst.launcher.check.hooks.bundled", "rooms of check",
    ),
    "the state machine has a clock": (
        "runtime/controller/state_machine/machine.py", "time", "state machine is pure",
    ),
    "a circle of two files": ("runtime/actors/errors.py", "verst.runtime.actors.handle", "in a circle"),
    "the recipe imports torch": ("launcher/recipe/recipe.py", "torch", "A login node needs no torch"),
    "the dashboard imports transformers": ("runtime/dashboard/app.py", "transformers", "A login node needs no torch"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_contract_is_noticed(copy: Path, what: str) -> None:
    name, imported, contract = BROKEN[what]
    path = copy / "verst" / name
    before = path.read_text()
    try:
        path.write_text(before + f"\nimport {imported}  # noqa\n")
        done = lint_imports(copy)
    finally:
        path.write_text(before)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [line for line in done.stdout.splitlines() if line.endswith("BROKEN")]
    assert any(contract in line for line in broken), done.stdout
