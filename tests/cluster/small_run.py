"""A run on the test cluster whose processes are `small_processes.py`, submitted by Verst's own code."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.cluster import small_processes
from tests.cluster.slurm_cluster import SlurmCluster
from tests.launcher.recipes_for_tests import write_recipe
from verst.launcher.plan.slurm_options import cluster_of
from verst.launcher.recipe.load import load_recipe
from verst.launcher.recipe.recipe import Recipe
from verst.launcher.slurm.jobs import Launch, submissions
from verst.launcher.slurm.launch import submit_run, write_launch
from verst.runtime.run.ending import RunEnd, last_end
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Node, Plan, Process
from verst.slurm.site import Site


def make(
    folder: Path, overrides: Sequence[str], steps: int, seconds: float, nodes: int, engines: int
) -> Made:
    """A run folder with its plan and scripts, ready to be submitted. Asks Slurm of this process's environment."""
    folder.mkdir(exist_ok=True)
    sizes = [f"trainer.nodes={nodes}", f"rollout.engines={engines}", "slurm.sbatch.cpus-per-task=1"]
    recipe = load_recipe(write_recipe(folder), [*sizes, *overrides])
    run = RunFolder(folder / "run")
    run.create()
    _plan(steps, seconds, nodes, engines).write(run.plan)
    return Made(recipe, run, write_launch(recipe, run, cluster_of(recipe), Site.look()))


class Made(NamedTuple):
    """What `submit_run` needs."""

    recipe: Recipe
    folder: RunFolder
    launch: Launch


class SmallRun:
    """Made and submitted in one go; the methods read what its processes have noted."""

    def __init__(
        self,
        cluster: SlurmCluster,
        folder: Path,
        *overrides: str,
        steps: int = 1_000_000,
        seconds: float = 0.1,
        nodes: int = 2,
        engines: int = 2,
    ) -> None:
        self.cluster = cluster
        made = make(folder, overrides, steps, seconds, nodes, engines)
        self.recipe, self.folder, self.launch = made
        self.jobs = submit_run(*made, "verst submit")

    @property
    def trainer(self) -> str:
        """The trainer's job, the last one submitted."""
        return [s.job for s in submissions(self.folder) if s.group == "trainer"][-1]

    def lines(self, name: str) -> list[str]:
        """What the processes noted in a file."""
        path = self.folder.root / name
        return path.read_text().splitlines() if path.exists() else []

    def events(self, kind: str) -> list[dict]:
        """The run's events of a kind."""
        lines = self.folder.events.read_text().splitlines() if self.folder.events.exists() else []
        return [event for event in map(json.loads, lines) if event["kind"] == kind]

    def wait_step(self, generation: int, timeout: float = 60) -> None:
        """Waits until a life of the run has made a step."""
        self.cluster.wait_for(
            lambda: any(line.startswith(f"{generation} ") for line in self.lines("steps")),
            f"a step in generation {generation}; logs: {self.logs()}",
            timeout,
        )

    def wait_end(self, timeout: float = 60) -> RunEnd:
        """Waits until the run is over for good."""

        def over() -> RunEnd | None:
            end = last_end(self.folder)
            return end if end is not None and not end.resumes else None

        return self.cluster.wait_for(over, "the run to end", timeout)  # type: ignore[return-value]

    def wait_gone(self, timeout: float = 60) -> None:
        """Waits until none of the run's jobs waits or runs."""
        mine = {s.job for s in submissions(self.folder)}
        live = "PENDING,RUNNING,COMPLETING,SUSPENDED,CONFIGURING"
        self.cluster.wait_for(
            lambda: not [line for line in self.cluster.queue(live) if re.split("[_+]", line.id)[0] in mine],
            "the run's jobs to leave the queue",
            timeout,
        )

    def logs(self) -> str:
        """What the agents printed."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text()[-2000:]}"
            for path in sorted((self.folder.logs / "slurm").glob("*"))
        )


def _plan(steps: int, seconds: float, nodes: int, engines: int) -> Plan:
    def process(role: str, index: int, *argv: str, **more) -> Process:
        command = [sys.executable, small_processes.__file__, *argv]
        return Process(role=role, index=index, argv=command, **more)

    trainer = [Node(processes=[process("trainer", n, "rank")]) for n in range(nodes)]
    counts = process("controller", 0, "controller", str(steps), str(seconds), str(nodes), on_exit="ends_run")
    trainer[0] = Node(processes=[counts, *trainer[0].processes])
    workers = [
        Node(processes=[process("rollout", n, "worker", on_exit="restart", max_restarts=1)])
        for n in range(engines)
    ]
    return Plan(name="small", groups={"trainer": trainer, "rollout": workers}, host="auto")


if __name__ == "__main__":  # submitted by another user
    submit_run(*make(Path(sys.argv[1]), [], steps=50, seconds=0.1, nodes=2, engines=2), "verst submit")
