"""`verst submit`: from a recipe to two arrays in Slurm's queue."""

from __future__ import annotations

import shlex
from pathlib import Path

from verst.launcher.faults import UserError
from verst.launcher.machine import Cluster
from verst.launcher.recipe import Recipe
from verst.launcher.slurm_jobs import GroupJobs, Launch, submit_group
from verst.launcher.slurm_options import GROUPS, Group, group_options
from verst.runtime.run_folder import RunFolder
from verst.slurm import ArrayExecutor, SlurmError, cancel
from verst.slurm.site import Restart, Site


def executor(recipe: Recipe, folder: RunFolder, group: Group) -> ArrayExecutor:
    """submitit's executor for a group's array."""
    jobs = group_jobs(recipe)[group]
    return ArrayExecutor(
        folder.logs / "slurm",
        name=f"{recipe.name}-{group}",
        tasks=jobs.tasks,
        nodes=jobs.nodes,
        options={**group_options(recipe, group), "chdir": str(folder.root)},
        setup=recipe.slurm.setup,
        srun=recipe.slurm.srun,
        signal_lead_s=recipe.slurm.stop_lead_s,
        throttle=recipe.slurm.throttle if group == "rollout" else None,
    )


def group_jobs(recipe: Recipe) -> dict[str, GroupJobs]:
    """The trainer: one replica, a gang of all its nodes. The rollout: one task an engine."""
    return {
        "trainer": GroupJobs(tasks=1, nodes=recipe.trainer.nodes),
        "rollout": GroupJobs(tasks=recipe.rollout.engines, nodes=recipe.rollout.nodes_per_engine),
    }


def agent_command(recipe: Recipe, folder: RunFolder, group: Group, cluster: Cluster) -> str:
    """What srun starts on each node, as a line of shell."""
    command = [cluster.python, "-m", "verst.launcher.slurm_job", "--run", str(folder.root), "--group", group]
    return f"{recipe.slurm.container} {shlex.join(command)}".strip()


def script(recipe: Recipe, folder: RunFolder, group: Group, cluster: Cluster) -> str:
    """The sbatch script of a group, exactly as submitted."""
    return executor(recipe, folder, group).text(agent_command(recipe, folder, group, cluster))


def restart_method(recipe: Recipe, site: Site) -> Restart:
    """How an interrupted trainer comes back on this cluster. Raises UserError for a partition it has not."""
    for group in GROUPS:
        options = group_options(recipe, group)
        for name in str(options.get("partition", "")).split(","):
            if name and name not in site.partitions:
                known = ", ".join(site.partitions)
                raise UserError(f"slurm.{group}: the cluster has no partition {name!r}; it has: {known}")
    if recipe.slurm.restart != "auto":
        return recipe.slurm.restart
    return site.restart(site.partition_of(group_options(recipe, "trainer")))


def write_launch(recipe: Recipe, folder: RunFolder, cluster: Cluster, site: Site) -> Launch:
    """Writes the scripts and launch.json."""
    folder.slurm.mkdir(mode=0o700, exist_ok=True)
    launch = Launch(
        restart=restart_method(recipe, site),
        stop_lead_s=recipe.slurm.stop_lead_s,
        kill_wait_s=site.kill_wait_s,
        max_failures=recipe.slurm.max_failures,
        groups=group_jobs(recipe),
    )
    for group in GROUPS:
        command = agent_command(recipe, folder, group, cluster)
        executor(recipe, folder, group).write(command, folder.slurm / f"{group}.sh")
    launch.write(folder)
    return launch


def submit_run(recipe: Recipe, folder: RunFolder, launch: Launch, why: str) -> dict[Group, list[str]]:
    """Submits everything, or nothing. Returns the job ids by group. Raises UserError with sbatch's answer."""
    jobs: dict[Group, list[str]] = {"trainer": [], "rollout": []}
    lives = recipe.slurm.chain if launch.restart == "chain" else 1
    try:
        for _ in range(lives):
            for group in GROUPS:
                options = _dependency(recipe, group, jobs)
                jobs[group].append(submit_group(folder, group, why, *options))
    except SlurmError as error:
        submitted = [job for group in GROUPS for job in jobs[group]]
        cancel(submitted)
        undone = f" (cancelled again: {', '.join(submitted)})" if submitted else ""
        raise UserError(f"{error}{undone}") from error
    return jobs


def _dependency(recipe: Recipe, group: Group, jobs: dict[Group, list[str]]) -> list[str]:
    needs = []
    if jobs[group]:
        needs.append(f"afterany:{jobs[group][-1]}")
    if group == "rollout" and recipe.slurm.after_trainer:
        needs.append(f"after:{jobs['trainer'][-1]}")
    return [f"--dependency={','.join(needs)}"] if needs else []


def scripts_of(recipe: Recipe, run_folder: Path, cluster: Cluster) -> dict[str, str]:
    """Both scripts, for `verst plan`."""
    folder = RunFolder(run_folder)
    return {group: script(recipe, folder, group, cluster) for group in GROUPS}
