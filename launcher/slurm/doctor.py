"""Implements `verst doctor`: reports what this cluster offers to runs, and what that means for a run.

It asks Slurm from the machine where it is called. With `--on-node` it also submits a short job that examines
a compute node (`node_report`): whether it can call Slurm, its clock, its GPUs and its network interface.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from verst.launcher.plan.slurm_options import group_options
from verst.launcher.recipe.faults import UserError
from verst.launcher.recipe.load import load_recipe
from verst.launcher.recipe.recipe import Recipe
from verst.launcher.slurm.launch import restart_method
from verst.runtime.node.environment import node_address
from verst.runtime.run.folder import write_atomically
from verst.slurm import SlurmError, cancel, job_states, submit
from verst.slurm.config import SlurmConfig
from verst.slurm.executor import ArrayExecutor, write_script
from verst.slurm.job_states import accounting_works
from verst.slurm.site import Partition, Site

_SIGNS = {"good": "[green]ok[/]  ", "note": "[yellow]note[/]", "bad": "[red]bad[/] "}
_NODE_JOB_S = 300.0
_PROBE_MINUTES = 5
# Options of a run that say nothing about a node, or would only make the probe wait.
_NOT_PROBED = {"begin", "deadline", "hold", "mail-type", "mail-user", "time-min"}
_SLOW_WRITE_S = 0.5
_CLOCK_OFF_S = 2.0


@dataclass(frozen=True)
class Finding:
    """One line of the report. "bad": a run cannot work; "note": it works, with a drawback."""

    kind: Literal["good", "note", "bad"]
    text: str


def examine_cluster(recipe_path: Path | None, overrides: list[str], on_node: bool) -> int:
    """Prints the findings. Returns the exit code: 1 if one of them would stop a run, else 0."""
    console = Console()
    findings = []
    for finding in _findings(recipe_path, overrides, on_node):
        findings.append(finding)
        console.print(f"{_SIGNS[finding.kind]} {finding.text}", highlight=False, soft_wrap=True)
    return 1 if any(finding.kind == "bad" for finding in findings) else 0


def _findings(recipe_path: Path | None, overrides: list[str], on_node: bool) -> Iterator[Finding]:
    recipe = None if recipe_path is None else load_recipe(recipe_path, overrides)
    yield from file_system(Path(recipe.runs_dir if recipe else ".").expanduser())
    try:
        site = Site.look()
    except SlurmError as error:
        yield Finding("bad", f"Slurm does not answer: {error}")
        return
    yield from slurm(site)
    for partition in site.partitions.values():
        yield from _partition(site, partition)
    if recipe is not None:
        try:
            method = restart_method(recipe, site)
        except UserError as error:
            yield Finding("bad", str(error))
            return
        yield Finding("good", f"an interrupted run of {recipe.name} comes back by `slurm.restart: {method}`")
    if on_node:
        yield from _on_node(recipe)


def slurm(site: Site) -> Iterator[Finding]:
    """The findings about the cluster's configuration."""
    yield Finding("good", f"Slurm {site.version}, cluster {site.config.get('ClusterName', '?')}")
    if site.config.get("JobRequeue") == "0":
        yield Finding("note", "this cluster does not requeue jobs (JobRequeue=0): a run submits itself again")
    if site.signals_preemption:
        yield Finding("good", "a preempted job first gets a signal (USR2), then the grace time to save")
    elif site.config.get("PreemptMode", "OFF") != "OFF":
        yield Finding(
            "note",
            f"a preempted job gets only SIGTERM, {site.kill_wait_s} s (KillWait) or the partition's GraceTime "
            "before SIGKILL; SlurmctldParameters=preempt_send_user_signal would warn it earlier",
        )
    if accounting_works():
        yield Finding("good", "sacct works: `verst status` can tell how every job ended")
    else:
        yield Finding(
            "note",
            "sacct does not work: `verst status` can tell how a job ended only for "
            f"MinJobAge={site.config.get('MinJobAge')}",
        )
    down = site.config.get("SlurmdTimeout", "?")
    yield Finding("good", f"Slurm notices a dead node after {down} (SlurmdTimeout); then its jobs come back")


def _partition(site: Site, partition: Partition) -> Iterator[Finding]:
    mode = partition.preempt_mode or site.config.get("PreemptMode", "?")
    text = (
        f"partition {partition.name}{' (default)' if partition.default else ''}: {partition.nodes} nodes, "
        f"time limit {partition.max_time}, preemption {mode} with a grace time of {partition.grace_s} s"
    )
    yield Finding("good" if partition.state == "UP" else "note", f"{text}, {partition.state}")


def file_system(folder: Path) -> Iterator[Finding]:
    """The findings about a file system for run folders: whether it can be written, its speed, free space and clock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".verst-doctor-") as name:
            began = time.monotonic()
            write_atomically(Path(name) / "probe", b"x" * 4096)
            took = time.monotonic() - began
            skew = abs((Path(name) / "probe").stat().st_mtime - time.time())
    except OSError as error:
        yield Finding("bad", f"run folders cannot be made in {folder.absolute()}: {error.strerror}")
        return
    free = shutil.disk_usage(folder).free
    yield Finding(
        "note" if took > _SLOW_WRITE_S else "good",
        f"{folder.absolute()}: a small write takes {took * 1000:.0f} ms, {free / 1e9:.0f} GB free",
    )
    if skew > _CLOCK_OFF_S:
        yield Finding(
            "note",
            f"the file server's clock and this machine's differ by {skew:.0f} s; "
            "Verst does not compare clocks of hosts",
        )


def _on_node(recipe: Recipe | None) -> Iterator[Finding]:
    place = Path(recipe.runs_dir).expanduser().absolute() if recipe else Path.cwd()
    try:
        folder = Path(tempfile.mkdtemp(prefix=".verst-doctor-", dir=place))
    except OSError:  # which is a finding of the file system
        return
    try:
        yield from _probe(recipe, folder)
    except SlurmError as error:
        yield Finding("bad", f"cannot submit a job: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _probe(recipe: Recipe | None, folder: Path) -> Iterator[Finding]:
    report = folder / "report.json"
    job = submit(write_script(probe_script(recipe, folder, report), folder / "probe.sh"))
    deadline = time.monotonic() + _NODE_JOB_S
    while not report.exists():
        state = job_states([job])[job][0]
        if state.ended or time.monotonic() > deadline:
            cancel([job])
            log = "".join(path.read_text()[-500:] for path in folder.glob("*_log.out"))
            if state.state == "PENDING":
                text = f"no node has been examined within {_NODE_JOB_S:.0f} s: the job {state.words()}"
                yield Finding(
                    "note", f"{text}; it asks for what the run asks for, for {_PROBE_MINUTES} minutes"
                )
            else:
                text = f"the job that examines a node {state.words()} and wrote no report to {report}"
                yield Finding("bad", f"{text}. {log}")
            return
        time.sleep(1)
    yield from _node_findings(json.loads(report.read_text()))


def probe_script(recipe: Recipe | None, folder: Path, report: Path) -> str:
    """The script of the job that examines a node: the run's trainer job, but one node for a few minutes.

    It has the run's sbatch options, setup, container, Python and srun options.
    """
    slurm = recipe.slurm if recipe else SlurmConfig()
    options = group_options(recipe, "trainer") if recipe else {}
    options = {name: value for name, value in options.items() if name not in _NOT_PROBED}
    command = [
        slurm.python or sys.executable,
        "-m",
        "verst.launcher.slurm.doctor",
        str(report),
        slurm.interface,
    ]
    probe = ArrayExecutor(
        folder,
        name="verst-doctor",
        tasks=1,
        nodes=1,
        options={**options, "time": _PROBE_MINUTES},
        setup=slurm.setup,
        srun=slurm.srun,
    )
    return probe.text(f"{slurm.container} {shlex.join(command)}".strip())


def _node_findings(report: dict[str, Any]) -> Iterator[Finding]:
    where = f"node {report['host']}"
    if report["fault"] is not None:
        yield Finding("bad", f"{where}: {report['fault']}")
    elif ipaddress.ip_address(report["address"]).is_loopback:
        yield Finding(
            "bad", f"{where}: address {report['address']} leads to no other node: set slurm.interface"
        )
    else:
        yield Finding(
            "good", f"{where}: address {report['address']} ({report['interface']}), GPUs {report['gpus']}"
        )
    if report["slurm"] is None:
        yield Finding("good", f"{where} can call Slurm: runs requeue or submit themselves again")
    else:
        yield Finding("note", f"{where} cannot call Slurm ({report['slurm']}): use `slurm.restart: chain`")
    if (off := abs(report["clock"] - report["written"])) > _CLOCK_OFF_S:
        yield Finding("note", f"{where}: its clock and the file server's differ by {off:.0f} s")


def node_report(path: Path, host: str) -> None:
    """Writes a report about this compute node to `path`, as JSON. Runs in the job that `--on-node` submits.

    `host` is the recipe's `slurm.interface`.
    """
    try:
        Site.look()
        refused = None
    except SlurmError as error:
        refused = str(error)
    address, interface, fault = "", None, None
    try:
        address, interface = node_address(host)
    except ValueError as error:
        fault = f"slurm.interface: {error}"
    report = {
        "fault": fault,
        "host": socket.gethostname(),
        "address": address,
        "interface": interface,
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES") or "none requested",
        "slurm": refused,
        "clock": time.time(),
    }
    write_atomically(path.with_suffix(".clock"), b"")
    report["written"] = path.with_suffix(".clock").stat().st_mtime
    write_atomically(path, json.dumps(report).encode())


if __name__ == "__main__":
    node_report(Path(sys.argv[1]), sys.argv[2])
