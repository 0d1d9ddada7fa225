"""What the subcommands of `verst` do."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from verst.launcher.check import examine
from verst.launcher.ending import Ending, read_ending
from verst.launcher.failures import failures, tell_failures
from verst.launcher.faults import UserError
from verst.launcher.load import load_recipe, parse_recipe
from verst.launcher.machine import Cluster, this_machine
from verst.launcher.plan import make_plan
from verst.launcher.prepare import (
    prepare_resume,
    prepare_run,
    python_path,
    recall_python_path,
    refuse_existing,
    refuse_unwritable,
)
from verst.launcher.show_plan import plan_as_data, print_plan
from verst.launcher.slurm_jobs import is_on_slurm
from verst.launcher.slurm_launch import scripts_of
from verst.launcher.slurm_options import cluster_of
from verst.launcher.view import draw, make_view, print_summary
from verst.runtime.plan import Plan
from verst.runtime.run_folder import RunFolder
from verst.runtime.trainer.checkpoint_folder import latest


def run_recipe(recipe_path: Path, overrides: list[str]) -> int:
    """`verst run`."""
    machine = this_machine()
    _, draft, faults = parse_recipe(recipe_path, overrides)
    if draft is not None and not faults:
        refuse_existing(RunFolder(draft.run_folder))  # before checks that take a while
    recipe = examine(recipe_path, overrides, machine)
    folder, plan = prepare_run(recipe, machine)
    with only_launcher(folder):
        return _launch(folder, plan)


def resume_run(run_dir: Path, overrides: list[str]) -> int:
    """`verst resume`."""
    folder = open_run(run_dir)
    ending = read_ending(folder, folder.generation)
    if ending is not None and ending.ok and not overrides:
        steps = load_recipe(folder.recipe).algorithm.steps
        print(f"{folder.root} has finished. For more: `verst resume {run_dir} algorithm.steps={2 * steps}`")
        return show_status(run_dir)
    if is_on_slurm(folder):
        from verst.launcher.slurm_commands import resume_submitted

        return resume_submitted(run_dir, overrides)
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
        return _launch(folder, prepare_resume(folder, recipe, machine))


def show_plan(recipe_path: Path, overrides: list[str], as_json: bool, on_slurm: bool) -> int:
    """`verst plan`."""
    machine = None if on_slurm else this_machine()
    recipe = examine(recipe_path, overrides, machine)
    target = machine or cluster_of(recipe)
    plan = make_plan(recipe, recipe.run_folder, target, python_path())
    scripts: dict[str, str] = (
        scripts_of(recipe, recipe.run_folder, target) if isinstance(target, Cluster) else {}
    )
    if as_json:
        print(json.dumps(plan_as_data(recipe, plan, target, scripts), indent=2))
    else:
        print_plan(Console(), recipe, plan, target, scripts)
    return 0


def show_status(run_dir: Path) -> int:
    """`verst status`."""
    from verst.launcher.progress import ProgressReader

    folder = open_run(run_dir, or_app=True)
    console = Console()
    launched = _print_state(folder, console)
    if is_app(folder):
        from verst.launcher.actors_status import print_actors

        print_actors(folder, console)
        return 0
    reader = ProgressReader(folder)
    reader.update()
    progress = reader.progress
    first, last = progress.first_time, time.time() if launched else progress.last_time
    elapsed = 0.0 if first is None or last is None else last - first
    console.print(draw(progress, elapsed=elapsed, width=min(console.width, 100)))
    checkpoint = latest(folder.checkpoints)
    console.print(f"checkpoint: {checkpoint or 'none yet'}", highlight=False, soft_wrap=True)
    for line in tell_failures(failures(folder, folder.generation)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def _print_state(folder: RunFolder, console: Console) -> bool:
    """Slurm's jobs, if it has any, and a line about the whole. Returns whether it lives."""
    if is_on_slurm(folder):
        from verst.launcher.slurm_commands import print_jobs

        launched = print_jobs(folder, console)
    else:
        launched = _is_launched(folder)
    state = _state_in_words(read_ending(folder, folder.generation), launched)
    console.print(f"{folder.root}: {state}, generation {folder.generation}", highlight=False, soft_wrap=True)
    return launched


def _state_in_words(ending: Ending | None, launched: bool) -> str:
    if ending is None:
        return "running" if launched else "not running"
    if ending.ok:
        return "finished"
    return f"comes back ({ending.reason})" if ending.resumes and launched else ending.reason


def export_run(source: Path, out: Path) -> int:
    """`verst export`: copies the export that a run made at its end."""
    folder = open_run(source)
    if not (folder.export / "config.json").is_file():
        raise UserError(
            f"{folder.root} has no export: a run writes it when it ends well. "
            f"`verst resume {source}` brings it to its end"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; name another")
    shutil.copytree(folder.export, out, dirs_exist_ok=True)
    print(f"{out} is a Hugging Face folder")
    return 0


def open_run(run_dir: Path, or_app: bool = False) -> RunFolder:
    """An existing run folder (or, for what can be done with both, an app's). Raises UserError when it is none."""
    folder = RunFolder(run_dir)
    if is_app(folder) and not or_app:
        raise UserError(
            f"{folder.root} is an app of actors, which trains nothing; `verst status` and `verst logs` show it"
        )
    if not folder.recipe.is_file():
        what = "is not a run folder (it has no recipe.yaml)" if folder.root.exists() else "does not exist"
        raise UserError(f"{folder.root} {what}; `verst run RECIPE` makes one")
    return folder


def is_app(folder: RunFolder) -> bool:
    """Whether the folder is an app's (`verst actors`)."""
    return (folder.root / "actors.json").is_file()


@contextmanager
def only_launcher(folder: RunFolder) -> Iterator[None]:
    """Holds the run: two launchers on one folder would fence each other off. Raises UserError if it is held."""
    fd = os.open(folder.root / "launcher.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"{folder.root} is running; `verst status {folder.root}` shows it") from None
    finally:
        os.close(fd)


def _is_launched(folder: RunFolder) -> bool:
    try:
        with only_launcher(folder):
            return False
    except UserError:
        return True


def _launch(folder: RunFolder, plan: Plan) -> int:
    from verst.launcher.local import launch  # torchx: not needed to plan

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
