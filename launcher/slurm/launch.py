"""Turns a recipe into sbatch scripts and submits them: two arrays, or one heterogeneous job."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from verst.launcher.plan.machine import Cluster
from verst.launcher.plan.slurm_options import Group, group_options, groups_of
from verst.launcher.recipe.faults import UserError
from verst.launcher.recipe.recipe import Recipe
from verst.launcher.slurm.jobs import GroupJobs, Launch, Script, submit_script
from verst.launcher.slurm.not_started import BEFORE, after_srun, forget_tries
from verst.runtime.run.folder import RunFolder
from verst.slurm import SlurmError, cancel
from verst.slurm.config import OptionValue
from verst.slurm.executor import ArrayExecutor, write_script
from verst.slurm.het import Component, het_script
from verst.slurm.shell import unused_variables
from verst.slurm.site import Restart, Site


def tell_unused_variables() -> None:
    """Says which of the shell's variables for Slurm have no effect on the jobs, so that the recipe alone counts."""
    for line in unused_variables():
        print(line, file=sys.stderr)


def executor(recipe: Recipe, folder: RunFolder, group: Group) -> ArrayExecutor:
    """The submitit executor for a group's array."""
    jobs = group_jobs(recipe)[group]
    return ArrayExecutor(
        folder.logs / "slurm",
        name=f"{recipe.name}-{group}",
        tasks=jobs.tasks,
        nodes=jobs.nodes,
        options=_options(recipe, folder, group),
        setup=[*recipe.slurm.setup, BEFORE],
        srun=recipe.slurm.srun,
        after=_after(recipe, group, group),
        signal_lead_s=recipe.slurm.stop_lead_s,
        throttle=recipe.slurm.throttle if group == "rollout" else None,
    )


def _after(recipe: Recipe, group: Group, script: Script) -> list[str]:
    return after_srun(
        group,
        group_jobs(recipe)[group].nodes,
        script=script,
        leads=group == "trainer",
        max_tries=recipe.slurm.max_failures,
        excluded=str(group_options(recipe, group).get("exclude", "")),
        chained=recipe.slurm.restart == "chain",
    )


def _options(recipe: Recipe, folder: RunFolder, group: Group) -> dict[str, OptionValue]:
    return {**group_options(recipe, group), "chdir": str(folder.root)}


def group_jobs(recipe: Recipe) -> dict[str, GroupJobs]:
    """The size of each group's jobs.

    The trainer is one task with all its nodes. The rollout is one task for each engine or, in the layout
    "het", one with all engines' nodes.
    """
    engines, nodes = recipe.rollout.engines, recipe.rollout.nodes_per_engine
    if recipe.slurm.layout == "het":
        engines, nodes = 1, engines * nodes
    jobs: dict[Group, GroupJobs] = {
        "trainer": GroupJobs(tasks=1, nodes=recipe.trainer.nodes),
        "rollout": GroupJobs(tasks=engines, nodes=nodes),
    }
    return {group: jobs[group] for group in groups_of(recipe)}


def agent_command(recipe: Recipe, folder: RunFolder, group: Group, cluster: Cluster) -> str:
    """The command that srun starts on each node of a group, as a line of shell."""
    command = [cluster.python, "-m", "verst.launcher.slurm.job", "--run", str(folder.root), "--group", group]
    return f"{recipe.slurm.container} {shlex.join(command)}".strip()


def scripts_of(recipe: Recipe, run_folder: Path, cluster: Cluster) -> dict[str, str]:
    """The sbatch scripts by name, exactly as they are submitted."""
    folder = RunFolder(run_folder)
    groups = groups_of(recipe)
    commands = {group: agent_command(recipe, folder, group, cluster) for group in groups}
    if recipe.slurm.layout == "arrays":
        return {group: executor(recipe, folder, group).text(commands[group]) for group in groups}
    components = [
        Component(
            f"{recipe.name}-{group}",
            group_jobs(recipe)[group].nodes,
            _options(recipe, folder, group),
            commands[group],
        )
        for group in groups
    ]
    slurm = recipe.slurm
    text = het_script(
        folder.logs / "slurm",
        components,
        setup=[*slurm.setup, BEFORE],
        srun=slurm.srun,
        after=_after(recipe, "trainer", "het"),
        signal_lead_s=slurm.stop_lead_s,
    )
    return {"het": text}


def restart_method(recipe: Recipe, site: Site) -> Restart:
    """How an interrupted trainer restarts on this cluster. Raises UserError for a partition that does not exist."""
    for group in groups_of(recipe):
        options = group_options(recipe, group)
        for name in str(options.get("partition", "")).split(","):
            if name and name not in site.partitions:
                known = ", ".join(site.partitions)
                raise UserError(f"slurm.{group}: the cluster has no partition {name!r}, only: {known}")
    if recipe.slurm.restart != "auto":
        return recipe.slurm.restart
    options = group_options(recipe, "trainer")
    if options.get("no-requeue") or options.get("requeue") is False:
        return "resubmit"
    return site.restart(site.partition_of(options))


def write_launch(recipe: Recipe, folder: RunFolder, cluster: Cluster, site: Site) -> Launch:
    """Writes the sbatch scripts and launch.json to the run folder."""
    folder.slurm.mkdir(mode=0o700, exist_ok=True)
    forget_tries(folder.slurm)
    launch = Launch(
        restart=restart_method(recipe, site),
        stop_lead_s=recipe.slurm.stop_lead_s,
        kill_wait_s=site.kill_wait_s,
        max_failures=recipe.slurm.max_failures,
        max_fruitless_lives=recipe.slurm.max_fruitless_lives,
        groups=group_jobs(recipe),
        layout=recipe.slurm.layout,
    )
    (folder.logs / "slurm").mkdir(
        mode=0o700, parents=True, exist_ok=True
    )  # Slurm does not make its log folder
    for name, text in scripts_of(recipe, folder.root, cluster).items():
        write_script(text, folder.slurm / f"{name}.sh")
    launch.write(folder)
    return launch


def submit_run(recipe: Recipe, folder: RunFolder, launch: Launch, why: str) -> dict[Script, list[str]]:
    """Submits all scripts. Returns the job ids by script.

    If one fails, it cancels those already submitted and raises UserError with sbatch's answer.
    """
    scripts: tuple[Script, ...] = ("het",) if launch.layout == "het" else groups_of(recipe)
    jobs: dict[Script, list[str]] = {script: [] for script in scripts}
    lives = recipe.slurm.chain if launch.restart == "chain" else 1
    try:
        for _ in range(lives):
            for script in scripts:
                options = _dependency(recipe, script, jobs)
                jobs[script].append(submit_script(folder, script, why, *options))
    except SlurmError as error:
        submitted = [job for ids in jobs.values() for job in ids]
        cancel(submitted)
        undone = (
            f" (jobs already submitted were cancelled again: {', '.join(submitted)})" if submitted else ""
        )
        raise UserError(f"{error}{undone}") from error
    return jobs


def _dependency(recipe: Recipe, script: Script, jobs: dict[Script, list[str]]) -> list[str]:
    needs = []
    if jobs[script]:
        needs.append(f"afterany:{jobs[script][-1]}")
    if script == "rollout" and recipe.slurm.after_trainer:
        needs.append(f"after:{jobs['trainer'][-1]}")
    return [f"--dependency={','.join(needs)}"] if needs else []
