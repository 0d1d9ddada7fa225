"""Defines the run folder, which holds everything that a run writes and all that a resubmitted job needs.

```
runs/NAME/  recipe.yaml (resolved) recipes/life-0.yaml … plan.json  data.json (the rows)  model.json  keys/ members/
            life ended
            slurm/ (the submitted scripts, jobs.jsonl)
            logs/life-0/trainer/0/rank-3.log …   metrics.jsonl  events.jsonl
            samples/ (journals)  checkpoints/step-000100/  export/  weights/life-0/ (see sync/versions/folder.py)
            traces/life-0/trainer-0-trainer-3.jsonl  shown/{step,eval}-000012.jsonl
            gpus/trainer-0.json  nodes/trainer-0.json  stacks/trainer-0.txt
```
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from verst.sync.files.durable import naming, write_whole

if TYPE_CHECKING:  # an actor that reads no recipe does not need it
    from pydantic import BaseModel

SPARE_BYTES = 16 << 10


class Life(NamedTuple):
    """One life of a run, from its launch or a (re)start of its Slurm job to its end."""

    generation: int
    started_by: str  # "launcher", or the job and how often it was requeued: "1234.0"
    failures: int  # how many lives in a row before it failed without a new checkpoint
    checkpoint: str  # the newest one when it began, "-" for none
    fruitless: int = 0  # how many lives in a row before it ended, in whatever way, without a new checkpoint


class RunFolder:
    """The paths and small files of one run."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()
        self.recipe = self.root / "recipe.yaml"
        self.recipes = self.root / "recipes"
        self.plan = self.root / "plan.json"
        self.data = self.root / "data.json"
        self.keys = self.root / "keys"
        self.members = self.root / "members"
        self.logs = self.root / "logs"
        self.samples = self.root / "samples"
        self.checkpoints = self.root / "checkpoints"
        self.export = self.root / "export"
        self.shown = self.root / "shown"
        self.traces = self.root / "traces"
        self.metrics = self.root / "metrics.jsonl"
        self.events = self.root / "events.jsonl"
        self.slurm = self.root / "slurm"
        self.spare = self.root / ".ended.spare"
        self._generation = self.root / "life"

    def create(self) -> None:
        """Makes the folders, readable only by the owner. Harmless if they exist."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
        for folder in (self.keys, self.members, self.logs, self.samples, self.checkpoints):
            folder.mkdir(mode=0o700, exist_ok=True)

    def section[Section: BaseModel](self, name: str, type_: type[Section]) -> Section:
        """Reads one section of the resolved recipe, e.g. `section("trainer", TrainerConfig)`."""
        import yaml

        recipe = yaml.safe_load(self.recipe.read_text())
        return type_.model_validate(recipe.get(name) or {})

    @property
    def generation(self) -> int:
        """The number of the run's present life: 0 for the first launch, one more for each resumption."""
        life = self.life
        return life.generation if life else 0

    @property
    def life(self) -> Life | None:
        """The present life, or None before the first launch."""
        try:
            generation, started_by, failures, checkpoint, fruitless = self._generation.read_text().split()
        except FileNotFoundError:
            return None
        return Life(int(generation), started_by, int(failures), checkpoint, int(fruitless))

    def start_generation(
        self, started_by: str = "launcher", failures: int = 0, checkpoint: str = "-", fruitless: int = 0
    ) -> int:
        """Begins a new life of the run, which fences off all processes of earlier ones. Returns its number.

        First sets space aside in which the life's end can be written on a full disk (`ending.py`).
        """
        if not self.spare.exists():
            write_atomically(self.spare, b" " * SPARE_BYTES)
        before = self.life
        generation = before.generation + 1 if before else 0
        life = Life(generation, started_by, failures, checkpoint, fruitless)
        write_atomically(self._generation, (" ".join(map(str, life)) + "\n").encode())
        return generation

    def claim(self, group: str, node: int, life: str) -> None:
        """Makes the agent `life` the one of this node. An earlier one, perhaps cut off, then stops."""
        (self.root / "agents").mkdir(mode=0o700, exist_ok=True)
        write_atomically(self.root / "agents" / f"{group}-{node}", life.encode())

    def claimed_by(self, group: str, node: int) -> str:
        """The name of the agent that runs this node of the plan."""
        return (self.root / "agents" / f"{group}-{node}").read_text()

    @property
    def cancelled(self) -> str | None:
        """Who asked the run to stop for good, and when; None if nobody did."""
        try:
            return (self.root / "cancelled").read_text()
        except FileNotFoundError:
            return None

    def log_folder(self, group: str, node: int, generation: int) -> Path:
        """The folder for the logs of one node's processes in one life of the run. Makes it."""
        folder = self.logs / f"life-{generation}" / group / str(node)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write_fault(self) -> str | None:
        """Why the folder cannot be written at present ("No space left on device: …"), or None if it can."""
        return write_fault(self.root)

    def event(self, kind: str, **fields: Any) -> None:
        """Appends one line to events.jsonl: something that happened, in words for people (`verst status`)."""
        append_line(self.events, {"time": time.time(), "generation": self.generation, "kind": kind, **fields})

    def metric(self, **fields: Any) -> None:
        """Appends one line to metrics.jsonl."""
        append_line(self.metrics, {"time": time.time(), **fields})


def write_fault(folder: Path) -> str | None:
    """Why `folder` cannot be written at present, or None if it can."""
    try:
        write_atomically(folder / ".probe", b" " * 4096)
        (folder / ".probe").unlink(missing_ok=True)
    except OSError as error:
        return f"{error.strerror}: {folder}"
    return None


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends a JSON line with one write call, so that the lines of several processes never interleave.

    If the file has a torn end, which a crash of a node can leave, the record still begins on a new line.
    Raises OSError with the path, and removes what was written of the line.
    """
    line = (json.dumps(record, separators=(",", ":")) + "\n").encode()
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        with naming(path):
            end = os.fstat(fd).st_size
            if end and os.pread(fd, 1, end - 1) != b"\n":
                line = b"\n" + line
            _append(fd, line)
    finally:
        os.close(fd)


def _append(fd: int, line: bytes) -> None:
    written = 0
    try:
        while written < len(line):
            written += os.write(fd, line[written:])
    except OSError:
        end = os.lseek(fd, 0, os.SEEK_CUR)
        if written and os.fstat(fd).st_size == end:  # no other process has written after us
            os.ftruncate(fd, end - written)
        raise


def write_atomically(path: Path, data: bytes, mode: int = 0o600, *, durable: bool = True) -> None:
    """Replaces the content of `path`. Readers see the old or the new content, even after a crash.

    Not `durable`: does not wait for the disk, so after a crash of the machine the file may be empty. For what is soon
    written again.

    If it fails, raises OSError with the path, and removes what it wrote, which would keep a full disk full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with naming(path):
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            try:
                write_whole(fd, data)
                if durable:
                    os.fsync(fd)
            finally:
                os.close(fd)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
