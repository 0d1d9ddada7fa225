"""The state of a run in one word, from its folder and from what Slurm says of its jobs, and the figures beside it.

`verst status --json` prints a Summary, and `verst ls` one line of each.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from verst.launcher.runs.failures import failures
from verst.launcher.runs.open import is_app, is_launched
from verst.launcher.slurm.jobs import is_on_slurm, submissions
from verst.runtime.dashboard.run_state import state_of_end
from verst.runtime.run.checkpoints import latest
from verst.runtime.run.ending import read_end
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.line_reader import record_of
from verst.runtime.run.planned_steps import planned_steps
from verst.slurm import JobState, SlurmError, job_states

# Exit codes of `verst status --exit-code`.
FINISHED, FAILED, RUNNING, STOPPED = 0, 1, 3, 4
_CODES = {
    "finished": FINISHED,
    "failed": FAILED,
    "running": RUNNING,
    "waiting": RUNNING,
    "comes back": RUNNING,
}
_TAIL_BYTES = 512 << 10  # of metrics.jsonl, in which the last step and evaluation are looked for
_RATE_STEPS = 20  # the time left is estimated from the last so many steps


class Summary(msgspec.Struct, kw_only=True):
    """A run in short. A step has the number of the weight version that it made."""

    name: str
    folder: str
    kind: str  # "run" | "app" (of actors)
    state: str  # running, waiting, comes back, finished, failed, stopped, cancelled, not running, not started
    reason: str = ""
    life: int | None = None  # None: not started
    steps: int = 0  # the last one trained, or whose groups were kept
    steps_planned: int = 0
    reward: float | None = None  # of the last step
    held_out: float | None = None  # the last score
    held_out_step: int | None = None  # after so many steps
    seconds_per_step: float | None = None
    seconds_left: float | None = None  # an estimate, for a run that is running
    checkpoint: str | None = None
    updated: float | None = None  # seconds since 1970: the last line of metrics or events
    jobs: list[str] = []
    failed_first: str = ""
    last_lines: list[str] = []  # of the process that failed first

    @property
    def exit_code(self) -> int:
        """The exit code of `verst status --exit-code`."""
        return _CODES.get(self.state, STOPPED)


def state_of(folder: RunFolder, jobs: Sequence[JobState] | None) -> tuple[str, str]:
    """The state and its reason. `jobs`: the states of its Slurm jobs, None for a run on this machine."""
    life = folder.life
    alive = is_launched(folder) if jobs is None else any(not job.ended for job in jobs)
    end = None if life is None else read_end(folder, life.generation)
    if end is not None:
        found = state_of_end(end, folder.cancelled)
        if found.word == "comes back" and not alive:
            return "failed", f"{found.why}; it should come back by itself, but has no job left"
        return found.word, found.why
    if not alive:
        return (
            ("not started", "") if life is None else ("not running", "it was killed, or its machine was lost")
        )
    waits = [job for job in jobs or () if job.state == "PENDING"]
    if jobs and not any(job.state == "RUNNING" for job in jobs) and waits:
        return "waiting", f"job {waits[0].job} {waits[0].words()}"
    return "running", ""


def summarise(folder: RunFolder, jobs: Sequence[JobState] | None) -> Summary:
    """Reads a run's summary, of a long run only the end of its figures."""
    state, reason = state_of(folder, jobs)
    life = folder.life
    found = Summary(
        name=folder.root.name,
        folder=str(folder.root),
        kind="app" if is_app(folder) else "run",
        state=state,
        reason=reason,
        life=None if life is None else life.generation,
        updated=_updated(folder),
        jobs=[f"{job.job}: {job.words()}" for job in jobs or () if not job.ended],
    )
    if (
        life is not None
        and state not in ("finished", "running")
        and (first := failures(folder, life.generation))
    ):
        found.failed_first, found.last_lines = first[0].reason, first[0].lines
    if not is_app(folder):
        _add_figures(found, folder)
    return found


def summaries(folders: Iterable[RunFolder]) -> tuple[list[Summary], str]:
    """The summaries of several runs, with one question to Slurm for all of them; and why it did not answer, or ""."""
    listed = list(folders)
    ids = {folder.root: [s.job for s in submissions(folder)] for folder in listed if is_on_slurm(folder)}
    fault = ""
    states: dict[str, list[JobState]] = {}
    try:
        states = job_states(job for of_run in ids.values() for job in of_run)
    except SlurmError as error:
        fault = str(error)
    found = []
    for folder in listed:
        of_run = ids.get(folder.root)
        jobs = None if of_run is None else [state for job in of_run for state in states.get(job, ())]
        summary = summarise(folder, jobs)
        if fault and of_run is not None and summary.state in ("not running", "not started"):
            summary.state, summary.reason = "unknown", fault
        found.append(summary)
    return found, fault


def _add_figures(found: Summary, folder: RunFolder) -> None:
    recipe = yaml.load(folder.recipe.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
    algorithm = recipe.get("algorithm") or {}
    found.steps_planned = planned_steps(algorithm).all
    checkpoint = latest(folder.checkpoints)
    found.checkpoint = None if checkpoint is None else str(checkpoint)
    records = tail_records(folder.metrics)
    steps = [record for record in records if record.get("kind") in ("step", "stage_step", "rollout")]
    of = ((recipe.get("checkpoint") or {}).get("best") or {}).get("set")  # the resolved recipe names it
    scores = [record for record in records if record.get("kind") == "eval" and record.get("set") == of]
    if steps:
        found.steps = int(steps[-1]["step"])
        found.reward = steps[-1].get("reward")
        found.seconds_per_step = seconds_per_step(steps)
        if found.state == "running" and found.seconds_per_step is not None:
            found.seconds_left = found.seconds_per_step * max(0, found.steps_planned - found.steps)
    if scores:
        found.held_out, found.held_out_step = scores[-1].get("reward"), scores[-1].get("step")


def seconds_per_step(steps: Sequence[dict[str, Any]]) -> float | None:
    """The mean seconds of the last steps; None if no record has its time."""
    seconds = [s["seconds"]["step"] for s in steps[-_RATE_STEPS:] if "step" in (s.get("seconds") or {})]
    return sum(seconds) / len(seconds) if seconds else None


def tail_records(path: Path) -> list[dict[str, Any]]:
    """The records at the end of a file of JSON lines."""
    try:
        with path.open("rb") as stream:
            end = stream.seek(0, 2)
            stream.seek(max(0, end - _TAIL_BYTES))
            lines = stream.read().split(b"\n")
    except FileNotFoundError:
        return []
    return [record for line in lines if (record := record_of(line)) is not None]


def _updated(folder: RunFolder) -> float | None:
    times = []
    for path in (folder.metrics, folder.events, folder.root / "life"):
        try:
            times.append(path.stat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times, default=None)


def ago(at: float | None) -> str:
    """How long ago something was, for people: "3 min"."""
    if at is None:
        return ""
    seconds = max(0.0, time.time() - at)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
