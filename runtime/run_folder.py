"""A run folder: everything that a resubmitted job needs, and nothing of the run is anywhere else.

```
runs/NAME/  recipe.yaml (resolved) plan.json  keys/ members/ generation ended
            slurm/ (the scripts as submitted, jobs.jsonl)
            logs/attempt-0/trainer/0/rank-3.log …   metrics.jsonl  events.jsonl
            samples/ (journals)  checkpoints/step-000100/  export/
```
"""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel

Section = TypeVar("Section", bound=BaseModel)


class Life(NamedTuple):
    """One life of a run, from a launch or a (re)start of its Slurm job to its end."""

    generation: int
    started_by: str  # "launcher", or the job and how often it was requeued: "1234.0"
    failures: int  # lives before it that failed in a row without a new checkpoint
    checkpoint: str  # the last one when it began, "-" for none


class RunFolder:
    """Paths and small files of one run."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()
        self.recipe = self.root / "recipe.yaml"
        self.plan = self.root / "plan.json"
        self.keys = self.root / "keys"
        self.members = self.root / "members"
        self.logs = self.root / "logs"
        self.samples = self.root / "samples"
        self.checkpoints = self.root / "checkpoints"
        self.export = self.root / "export"
        self.metrics = self.root / "metrics.jsonl"
        self.events = self.root / "events.jsonl"
        self.slurm = self.root / "slurm"
        self._generation = self.root / "generation"

    def create(self) -> None:
        """Makes the folders, readable by the owner alone. Harmless on a folder that exists."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
        for folder in (self.keys, self.members, self.logs, self.samples, self.checkpoints):
            folder.mkdir(mode=0o700, exist_ok=True)

    def section(self, name: str, type_: type[Section]) -> Section:
        """One section of the resolved recipe, e.g. `section("trainer", TrainerConfig)`."""
        recipe = yaml.safe_load(self.recipe.read_text())
        return type_.model_validate(recipe.get(name) or {})

    @property
    def generation(self) -> int:
        """The life of the run that may speak now: 0 for the first launch, one more for each resumption."""
        life = self.life
        return life.generation if life else 0

    @property
    def life(self) -> Life | None:
        """The present life, or None before the first launch."""
        try:
            generation, started_by, failures, checkpoint = self._generation.read_text().split()
        except FileNotFoundError:
            return None
        return Life(int(generation), started_by, int(failures), checkpoint)

    def start_generation(self, started_by: str = "launcher", failures: int = 0, checkpoint: str = "-") -> int:
        """Begins a new life of the run and fences off every process of the earlier ones."""
        before = self.life
        generation = before.generation + 1 if before else 0
        write_atomically(self._generation, f"{generation} {started_by} {failures} {checkpoint}\n".encode())
        return generation

    def claim(self, group: str, node: int, life: str) -> None:
        """Makes an agent the one of its node; an earlier one there, perhaps cut off, learns that it is not."""
        (self.root / "agents").mkdir(mode=0o700, exist_ok=True)
        write_atomically(self.root / "agents" / f"{group}-{node}", life.encode())

    def claimed_by(self, group: str, node: int) -> str:
        """The agent that runs this node of the plan."""
        return (self.root / "agents" / f"{group}-{node}").read_text()

    @property
    def cancelled(self) -> str | None:
        """Who asked that the run stop for good, and when; None while nobody did."""
        try:
            return (self.root / "cancelled").read_text()
        except FileNotFoundError:
            return None

    def log_folder(self, group: str, node: int, generation: int) -> Path:
        """Where the processes of one node write their logs in one life of the run."""
        folder = self.logs / f"attempt-{generation}" / group / str(node)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def event(self, kind: str, **fields: Any) -> None:
        """Appends one line to events.jsonl: what happened, in words a person reads in `verst status`."""
        append_line(self.events, {"time": time.time(), "generation": self.generation, "kind": kind, **fields})

    def metric(self, **fields: Any) -> None:
        """Appends one line to metrics.jsonl."""
        append_line(self.metrics, {"time": time.time(), **fields})


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends a JSON line with one write call, so that lines of several processes never interleave."""
    line = json.dumps(record, separators=(",", ":")) + "\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def write_atomically(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replaces `path` by `data`: a reader sees the old content or the new, never a part, after a crash too."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)
