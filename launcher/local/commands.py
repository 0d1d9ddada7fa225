"""What `verst run` and `verst resume` do on this machine."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rich.console import Console

from verst.launcher.check.check import examine
from verst.launcher.plan.machine import this_machine
from verst.launcher.recipe.faults import UserError
from verst.launcher.recipe.load import parse_recipe
from verst.launcher.runs.ending import Ending
from verst.launcher.runs.open import only_launcher
from verst.launcher.runs.prepare import (
    prepare_resume,
    prepare_run,
    recall_python_path,
    refuse_existing,
    refuse_unwritable,
)
from verst.launcher.watch.view import make_view, print_summary
from verst.runtime.run.checkpoints import latest
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Plan


def run_recipe(recipe_path: Path, overrides: list[str]) -> int:
    """`verst run`."""
    machine = this_machine()
    _, draft, faults = parse_recipe(recipe_path, overrides)
    if draft is not None and not faults:
        refuse_existing(RunFolder(draft.run_folder))  # before checks that take a while
    recipe = examine(recipe_path, overrides, machine)
    folder, plan = prepare_run(recipe, machine)
    with only_launcher(folder):
        return launch_and_show(folder, plan)


def resume_here(folder: RunFolder, overrides: list[str]) -> int:
    """`verst resume` of a run on this machine."""
    refuse_unwritable(folder)  # before checks that take a while
    machine = this_machine()
    recall_python_path(folder)
    with only_launcher(folder):
        # The folder may have been moved or renamed since; it is what counts.
        here = [f"name={folder.root.name}", f"runs_dir={json.dumps(str(folder.root.parent))}"]
        for override in overrides:
            if override.partition("=")[0] in ("name", "runs_dir"):
                raise UserError(f"{override}: a run keeps its folder; `verst run` starts another")
        recipe = examine(folder.recipe, [*overrides, *here], machine)
        return launch_and_show(folder, prepare_resume(folder, recipe, machine))


def launch_and_show(folder: RunFolder, plan: Plan) -> int:
    """Starts the run's next life, shows it until it ends, and says how it ended. Returns its exit code."""
    from verst.launcher.local.launch import launch  # torchx: not needed to plan

    console = Console()
    started = time.monotonic()
    folder.start_generation()
    console.print(
        f"run folder {folder.root}; in a browser: verst dash {folder.root}", highlight=False, soft_wrap=True
    )
    with make_view(folder, console) as view:
        ending = launch(folder, plan, view.update)
    if ending.ok:
        print_summary(folder, console, time.monotonic() - started)
    else:
        _explain(folder, ending)
    return ending.exit_code


def _explain(folder: RunFolder, ending: Ending) -> None:
    """Why a run failed, on stderr."""
    print(f"\nthe run ended early: {ending.reason}", file=sys.stderr)
    if ending.lines:
        print("its last lines:", file=sys.stderr)
        for line in ending.lines:
            print(f"  | {line}", file=sys.stderr)
        print(f"all of it: {folder.logs / f'attempt-{folder.generation}'}", file=sys.stderr)
    checkpoint = latest(folder.checkpoints)
    kept = f"from {checkpoint}" if checkpoint else "from the start: there is no checkpoint yet"
    print(f"`verst resume {folder.root}` goes on {kept}", file=sys.stderr)
