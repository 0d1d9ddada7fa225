"""Implements `verst submit` and `verst cancel`, and `verst resume` for a run on Slurm."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from verst.launcher.check.check import examine
from verst.launcher.plan.slurm_options import cluster_of
from verst.launcher.recipe.faults import UserError
from verst.launcher.recipe.load import parse_recipe
from verst.launcher.runs.ending import read_ending
from verst.launcher.runs.open import is_app, open_run
from verst.launcher.runs.prepare import (
    prepare_resume,
    prepare_run,
    recall_python_path,
    refuse_existing,
    refuse_unwritable,
)
from verst.launcher.runs.resume import carry_out, review
from verst.launcher.slurm.jobs import Launch, Script, group_states, is_on_slurm, states_or_fault, submissions
from verst.launcher.slurm.launch import submit_run, tell_unused_variables, write_launch
from verst.runtime.run.ending import last_end, reopen
from verst.runtime.run.folder import RunFolder, write_atomically
from verst.runtime.run.user import user_name
from verst.slurm import SlurmError, cancel
from verst.slurm.site import Site

_CANCEL_POLL_S = 1.0


def submit_recipe(recipe_path: Path, overrides: list[str]) -> int:
    """Implements `verst submit`. Returns the exit code."""
    _, draft, faults = parse_recipe(recipe_path, overrides)
    if draft is not None and not faults:
        refuse_existing(RunFolder(draft.run_folder))  # here, because the other checks take a while
    site = _site()
    recipe = examine(recipe_path, overrides, None)
    cluster = cluster_of(recipe)
    folder, _ = prepare_run(recipe, cluster)
    launch = write_launch(recipe, folder, cluster, site)
    _tell(folder, launch, submit_run(recipe, folder, launch, "verst submit"))
    return 0


def resume_submitted(run_dir: Path, overrides: list[str]) -> int:
    """Implements `verst resume` for a run on Slurm: submits it again. Raises UserError while it has live jobs."""
    folder = open_run(run_dir)
    alive = [state for states in states_or_fault(folder).values() for state in states if not state.ended]
    if alive:
        jobs = ", ".join(f"{s.job} {s.words()}" for s in alive[:4])
        raise UserError(
            f"{folder.root} still has jobs that have not ended ({jobs}); `verst cancel {run_dir}` ends them"
        )
    refuse_unwritable(folder)  # here, because the other checks take a while
    site = _site()
    recall_python_path(folder)
    here = [f"name={folder.root.name}", f"runs_dir={json.dumps(str(folder.root.parent))}"]
    changed = review(folder, overrides)
    recipe = examine(folder.recipe, [*overrides, *here], None)
    cluster = cluster_of(recipe)
    carry_out(folder, changed)
    prepare_resume(folder, recipe, cluster)
    launch = write_launch(recipe, folder, cluster, site)
    _reopen(folder)
    _tell(folder, launch, submit_run(recipe, folder, launch, "verst resume"))
    return 0


def _reopen(folder: RunFolder) -> None:
    """Removes the marks of the run's end, which a starting job checks first."""
    end = last_end(folder)
    if end is not None:
        reopen(folder, end)
    (folder.root / "cancelled").unlink(missing_ok=True)


def cancel_run(run_dir: Path, now: bool, wait_s: float) -> int:
    """Implements `verst cancel`: stops the run, then cancels its jobs. Returns the exit code.

    A running run stops at a step boundary and saves a checkpoint, unless `now`.
    """
    folder = open_run(run_dir, or_app=True)
    if not is_on_slurm(folder):
        raise UserError(f"{folder.root} does not run on Slurm; stop a run of `verst run` with Ctrl-C")
    said = f"{user_name()} at {time.strftime('%Y-%m-%d %H:%M:%S')}"
    write_atomically(folder.root / "cancelled", said.encode())  # which alone stops the run, without Slurm
    jobs = [s.job for s in submissions(folder)]
    if not now and _runs(folder):
        print(
            f"waiting up to {wait_s:.0f} s for the run to stop at a step boundary and save a checkpoint "
            "(`--now` does not wait)"
        )
        _wait_for_end(folder, wait_s)
    try:
        cancel(jobs)
    except SlurmError as error:
        raise UserError(
            f"{error}\n{folder.root} is marked as cancelled: the run stops at a step boundary, and its waiting jobs "
            f"end when they start. Call `verst cancel {run_dir}` again when Slurm answers, to cancel them now"
        ) from error
    folder.event("cancelled", message=f"cancelled by {said}: jobs {', '.join(jobs)}")
    goes_on = "" if is_app(folder) else f"; `verst resume {run_dir}` continues it"
    print(f"{folder.root}: cancelled{goes_on}")
    return 0


def _runs(folder: RunFolder) -> bool:
    """Whether the leading job runs, or may run while Slurm does not answer."""
    try:
        leading = group_states(folder).get(Launch.read(folder).leading, [])
    except SlurmError as error:
        print(f"{error}", file=sys.stderr)
        return read_ending(folder, folder.generation) is None and folder.life is not None
    return any(state.state == "RUNNING" for state in leading)


def _wait_for_end(folder: RunFolder, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while read_ending(folder, folder.generation) is None:
        if time.monotonic() > deadline:
            print(
                f"the run has not stopped within {wait_s:.0f} s: cancelling its jobs; "
                "it can be resumed from its last checkpoint"
            )
            return
        time.sleep(_CANCEL_POLL_S)


def _tell(folder: RunFolder, launch: Launch, jobs: dict[Script, list[str]]) -> None:
    tell_unused_variables()
    print(f"run folder: {folder.root}")
    for script, ids in jobs.items():
        print(f"{script}: job {', '.join(ids)} ({launch.size(script)})")
    how = {
        "requeue": "it goes back into the queue by itself",
        "resubmit": "it is submitted again from its node",
        "chain": "the next job of the chain continues the run",
    }[launch.restart]
    print(f"if a job is interrupted, {how}")
    print(
        f"next: `verst status {folder.root}`, `verst logs -f {folder.root}` or `verst cancel {folder.root}`"
    )


def _site() -> Site:
    try:
        return Site.look()
    except SlurmError as error:
        raise UserError(str(error)) from error
