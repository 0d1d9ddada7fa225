"""Implements `verst run` and `verst resume` on this machine."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from verst.launcher.check.check import examine
from verst.launcher.plan.machine import this_machine
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
from verst.launcher.runs.recording import note_recording
from verst.launcher.runs.resume import carry_out, review
from verst.launcher.watch.view import make_view, print_summary
from verst.runtime.run.checkpoints import latest
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.line_reader import LineReader
from verst.runtime.run.plan import Plan


def run_recipe(recipe_path: Path, overrides: list[str]) -> int:
    """Implements `verst run`. Returns the exit code."""
    machine = this_machine()
    _, draft, faults = parse_recipe(recipe_path, overrides)
    if draft is not None and not faults:
        refuse_existing(RunFolder(draft.run_folder))  # here, because the other checks take a while
    recipe = examine(recipe_path, overrides, machine)
    folder, plan = prepare_run(recipe, machine)
    note_recording(folder, recipe)
    with only_launcher(folder):
        return launch_and_show(folder, plan)


def resume_here(folder: RunFolder, overrides: list[str]) -> int:
    """Implements `verst resume` for a run on this machine. Returns the exit code."""
    refuse_unwritable(folder)  # here, because the other checks take a while
    machine = this_machine()
    recall_python_path(folder)
    with only_launcher(folder):
        # The folder's present path counts: it may have been moved or renamed.
        here = [f"name={folder.root.name}", f"runs_dir={json.dumps(str(folder.root.parent))}"]
        changed = review(folder, overrides)  # before the other checks, which take a while
        recipe = examine(folder.recipe, [*overrides, *here], machine)
        carry_out(folder, changed)
        note_recording(folder, recipe)
        return launch_and_show(folder, prepare_resume(folder, recipe, machine))


def launch_and_show(folder: RunFolder, plan: Plan) -> int:
    """Starts the run's next life, shows it until it ends, and prints how it ended. Returns its exit code."""
    from verst.launcher.local.launch import launch  # imports torchx, which `verst plan` does not need

    console = Console()
    started = time.monotonic()
    folder.start_generation()
    console.print(
        f"run folder: {folder.root}; to watch it in a browser: verst dash {folder.root}",
        highlight=False,
        soft_wrap=True,
    )
    with make_view(folder, console) as view:
        ending = launch(folder, plan, view.update)
    if ending.ok:
        print_throughput(folder)
        print_summary(folder, console, time.monotonic() - started)
    else:
        _explain(folder, ending)
    return ending.exit_code


def print_throughput(folder: RunFolder) -> None:
    """Prints how fast a run that only generates was; nothing for another one."""
    lines = [line for line in LineReader(folder.metrics).records() if line.get("kind") == "rollout"]
    tokens = sum(line["rollout_tokens"] for line in lines)
    seconds = sum(line["seconds"]["rollout"] for line in lines)
    if lines and seconds:
        print(
            f"generated {tokens} tokens for {len(lines)} steps in {seconds:.1f} s: {tokens / seconds:.0f} tokens/s, "
            f"scoring and storing included; kept in {folder.samples}"
        )


def _explain(folder: RunFolder, ending: Ending) -> None:
    """Prints to stderr why the run ended early, and how to resume it."""
    headline = Text.assemble("\nthe run ended early: ", (ending.reason, ending.style))
    Console(stderr=True).print(headline, highlight=False, soft_wrap=True)
    if ending.lines:
        print("the last lines of its log:", file=sys.stderr)
        for line in ending.lines:
            print(f"  | {line}", file=sys.stderr)
        print(f"all logs: {folder.logs / f'life-{folder.generation}'}", file=sys.stderr)
    checkpoint = latest(folder.checkpoints)
    kept = f"from {checkpoint}" if checkpoint else "from the start: there is no checkpoint yet"
    print(f"`verst resume {folder.root}` continues {kept}", file=sys.stderr)
