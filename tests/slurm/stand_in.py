"""A stand-in for Slurm's commands that misbehaves when told to, which the real ones cannot be made to do.

Its queue is the file `queue`, with a line "12_0|comment" for each job. Each line of `plan` says how one call of
sbatch goes. What the commands were called with is in `calls`, and the environment of the last one in `environment`.
The tests in tests/cluster ask a real Slurm.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_START = """\
#!/bin/sh
cd "$(dirname "$0")"
echo "$(basename "$0") $*" >> calls
env > environment
late() { echo "$(basename "$0"): error: Socket timed out on send/recv operation" >&2; exit 1; }
"""
_SBATCH = """\
mode=$(head -n 1 plan); sed -i 1d plan
id=$(($(cat last) + 1)); echo $id > last
for option in "$@"; do case "$option" in --comment=*) comment=${option#--comment=};; esac; done
line="${id}_0|$comment"
[ -e slow ] && cat slow >> queue && rm slow
case "$mode" in
  answer-lost) echo "$line" >> queue; late;;
  not-reached) late;;
  obeyed-later) echo "$line" > slow; late;;
  wrapped) echo "$line" >> queue; echo "welcome"; echo "$id;cluster"; echo "1 of 10 jobs are used";;
  no-id) echo "$line" >> queue; echo "Submitted.";;
  refused) echo "sbatch: error: Invalid account" >&2; exit 1;;
  *) echo "$line" >> queue; echo $id;;
esac
"""
_SQUEUE = """\
if [ -s away ]; then sed -i 1d away; late; fi
cat queue
"""
_SCANCEL = """\
for job in "$@"; do sed -i "/^${job}_/d" queue; done
"""


class StandIn:
    """The commands sbatch, squeue, scancel and scontrol in `folder`, first in PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        for name, text in (("sbatch", _SBATCH), ("squeue", _SQUEUE), ("scancel", _SCANCEL), ("scontrol", "")):
            self.command(name, text)
        for name, text in (("plan", ""), ("queue", ""), ("last", "10"), ("calls", ""), ("away", "")):
            (folder / name).write_text(text)
        self.pauses: list[float] = []
        monkeypatch.setattr("verst.slurm.programs.time.sleep", self.pauses.append)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def command(self, name: str, text: str) -> None:
        """Makes or replaces one command."""
        path = self.folder / name
        path.write_text(_START + text)
        path.chmod(0o700)

    def plan(self, *modes: str) -> None:
        """How the next calls of sbatch go; those after them go well."""
        (self.folder / "plan").write_text("".join(f"{mode}\n" for mode in modes))

    def squeue_is_away(self, times: int) -> None:
        """squeue does not answer so many times."""
        (self.folder / "away").write_text("x\n" * times)

    def calls(self, command: str) -> list[str]:
        """What the command was called with, each time."""
        lines = (self.folder / "calls").read_text().splitlines()
        return [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == command]

    @property
    def queue(self) -> list[str]:
        """The ids of the jobs in the queue."""
        return [line.partition("_")[0] for line in (self.folder / "queue").read_text().splitlines()]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the last command."""
        lines = (self.folder / "environment").read_text().splitlines()
        return {line.partition("=")[0]: line.partition("=")[2] for line in lines if "=" in line}
