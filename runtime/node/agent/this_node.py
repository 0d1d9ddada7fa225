"""The state that an agent's parts share: its node, that node's processes, and its log and events."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field

from verst.runtime.node import supervise
from verst.runtime.node.agent.outcome import Outcome
from verst.runtime.node.processes import Watched
from verst.runtime.run.ending import RunEnd, write_end
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.log_lines import stamp


@dataclass
class ThisNode:
    """The node that an agent runs, in the present life of the run.

    `follows`: the node's processes can go on into later lives of the run, and the agent goes with them.
    """

    folder: RunFolder
    group: str
    node: int
    generation: int
    follows: bool = False
    watched: list[Watched] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The node's name in messages: "trainer/0"."""
        return f"{self.group}/{self.node}"

    @property
    def leads(self) -> bool:
        """Whether the process whose end is the run's is on this node."""
        return any(w.process.on_exit == "ends_run" for w in self.watched)

    def reap(self) -> list[Watched]:
        """The processes that have ended since the last call, causes before their consequences."""
        by_child = {id(w.child): w for w in self.watched if w.child is not None}
        ended = [by_child[id(child)] for child in supervise.reap([w.child for w in self.watched if w.child])]
        return sorted(ended, key=lambda watched: watched.echoes_another)

    def end_run(self, code: int, reason: str, *, resumes: bool = False) -> Outcome:
        """Ends the run. If it has ended already, the earlier end holds."""
        return self.run_ended(write_end(self.folder, RunEnd(code, reason, self.generation, resumes=resumes)))

    def run_ended(self, end: RunEnd) -> Outcome:
        """Logs the run's end and returns the outcome for it."""
        self.say(f"the run has ended: {end.reason}")
        return Outcome("run_ended", end.code, end)

    def event(self, kind: str, **fields: object) -> None:
        """Adds an event to the run's events.jsonl. Logs the reason if that fails."""
        try:
            self.folder.event(kind, group=self.group, node=self.node, **fields)
        except OSError as error:
            self.say(f"cannot write {self.folder.events}: {error}")

    def say(self, text: str) -> None:
        """Logs a message, with the node's name in front."""
        self.print(f"verst agent {self.name}: {text}")

    def print(self, line: str) -> None:
        """Writes a line to stderr, the agent's log.

        It is often a file on the run folder's disk, so a failure to write (a full disk) must not end the run.
        """
        with contextlib.suppress(OSError):
            print(stamp() + line, file=sys.stderr, flush=True)
