"""Implements `verst actors run` and `verst actors submit`: an app of actors on this machine, or on Slurm."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import yaml

from verst.launcher.actors.app import GROUP, AppConfig, default_python, load_app, make_plan
from verst.launcher.plan.machine import this_machine
from verst.launcher.recipe.faults import UserError
from verst.launcher.runs.open import only_launcher
from verst.launcher.runs.prepare import python_path
from verst.launcher.slurm.jobs import GroupJobs, Launch, submit_script
from verst.launcher.slurm.launch import tell_unused_variables
from verst.launcher.slurm.not_started import BEFORE, after_srun
from verst.runtime.run.folder import RunFolder
from verst.slurm import SlurmError
from verst.slurm.executor import ArrayExecutor, write_script
from verst.slurm.site import Site


def run_app(path: Path, overrides: list[str]) -> int:
    """Implements `verst actors run`: runs the app until its main function ends, it fails, or Ctrl-C.

    Returns the exit code.
    """
    from verst.launcher.local.launch import launch  # imports torchx

    app = _load(path, overrides)
    gpus = this_machine().gpus
    wanted = sum(config.gpus * config.count for config in app.actors.values())
    if wanted > len(gpus):
        raise UserError(f"{path}: the actors need {wanted} GPUs, but this machine has {len(gpus)}")
    folder = _prepare(app)
    plan = make_plan(app, sys.executable, python_path(), "127.0.0.1", gpus)
    plan.write(folder.plan)
    with only_launcher(folder):
        folder.start_generation()
        print(f"app folder: {folder.root}; for its logs: `verst logs -f {folder.root}`", flush=True)
        ending = launch(folder, plan, lambda: None)
    if not ending.ok:
        print(f"the app ended early: {ending.reason}", file=sys.stderr)
        for line in ending.lines:
            print(f"  | {line}", file=sys.stderr)
    return ending.exit_code


def submit_app(path: Path, overrides: list[str]) -> int:
    """Implements `verst actors submit`: submits one job for all nodes. When interrupted, it restarts as a run's does.

    Returns the exit code.
    """
    app = _load(path, overrides)
    try:
        site = Site.look()
    except SlurmError as error:
        raise UserError(str(error)) from error
    folder = _prepare(app)
    make_plan(app, default_python(app), python_path(), app.slurm.interface, None).write(folder.plan)
    folder.slurm.mkdir(mode=0o700, exist_ok=True)
    (folder.logs / "slurm").mkdir(mode=0o700, parents=True, exist_ok=True)
    restart = app.slurm.restart
    if restart == "auto":
        restart = site.restart(site.partition_of(app.slurm.sbatch))
    if restart == "chain":
        raise UserError(
            "slurm.restart: is chain, which needs checkpoints, and an app of actors has none: "
            "set it to requeue or resubmit"
        )
    launch = Launch(
        restart=restart,
        stop_lead_s=app.slurm.stop_lead_s,
        kill_wait_s=site.kill_wait_s,
        max_failures=app.slurm.max_failures,
        max_fruitless_lives=None,
        groups={GROUP: GroupJobs(tasks=1, nodes=app.nodes)},
    )
    launch.write(folder)
    write_script(script(app, folder), folder.slurm / f"{GROUP}.sh")
    try:
        job = submit_script(folder, GROUP, "verst submit")
    except SlurmError as error:
        raise UserError(str(error)) from error
    tell_unused_variables()
    print(f"app folder: {folder.root}\njob {job} ({launch.size(GROUP)})")
    print(f"next: `verst logs -f {folder.root}` or `verst cancel {folder.root}`")
    return 0


def script(app: AppConfig, folder: RunFolder) -> str:
    """The text of the sbatch script of the app's job."""
    command = [default_python(app), "-m", "verst.launcher.slurm.job", "--run", str(folder.root)]
    executor = ArrayExecutor(
        folder.logs / "slurm",
        name=app.name,
        tasks=1,
        nodes=app.nodes,
        options={**app.slurm.sbatch, "chdir": str(folder.root)},
        setup=[*app.slurm.setup, BEFORE],
        srun=app.slurm.srun,
        after=after_srun(
            GROUP,
            app.nodes,
            script=GROUP,
            leads=True,
            max_tries=app.slurm.max_failures,
            excluded=str(app.slurm.sbatch.get("exclude", "")),
        ),
        signal_lead_s=app.slurm.stop_lead_s,
    )
    return executor.text(f"{app.slurm.container} {shlex.join([*command, '--group', GROUP])}".strip())


def _load(path: Path, overrides: list[str]) -> AppConfig:
    sys.path.insert(0, os.getcwd())  # to import its actors, as the app's processes do
    return load_app(path, overrides)


def _prepare(app: AppConfig) -> RunFolder:
    from verst.runtime.actors import create_keys

    folder = RunFolder(app.folder)
    if folder.root.exists():
        raise UserError(
            f"{folder.root} already exists; remove it, or choose another name: `… {app.name}.yaml name=…`"
        )
    folder.create()
    create_keys(folder)
    folder.recipe.write_text(yaml.safe_dump(app.model_dump(), sort_keys=False))
    app.hosting().write(folder)
    return folder
