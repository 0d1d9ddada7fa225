"""Which options of sbatch a recipe may set, and which are Verst's own."""

from __future__ import annotations

# sbatch's long options, of Slurm 20.11 to 25.05.
_OF_SBATCH = """
account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment
consolidate-segments constraint container container-id contiguous core-spec cores-per-socket
cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency distribution error exclude
exclusive export export-file extra extra-node-info get-user-env gid gpu-bind gpu-freq gpus
gpus-per-node gpus-per-socket gpus-per-task gres gres-flags heterogeneous hint hold ignore-pbs input
job-name kill-on-invalid-dep licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu
mem-per-gpu mincpus network nice no-kill no-requeue nodefile nodelist nodes ntasks ntasks-per-core
ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode oom-kill-step output overcommit
oversubscribe parsable partition power prefer priority profile propagate qos quiet reboot requeue
reservation resv-ports segment signal sockets-per-node spread-job stepmgr switches test-only
thread-spec threads-per-core time time-min tmp tres-bind tres-per-task uid use-min-nodes verbose
wait wait-all-nodes wckey wrap
"""
KNOWN = frozenset(_OF_SBATCH.split())

OWNED = {
    "array": "trainer.nodes, rollout.engines and slurm.throttle say it",
    "batch": "Verst starts its agents itself",
    "chdir": "the run folder holds everything",
    "dependency": "slurm.after_trainer and slurm.restart make the dependencies",
    "error": "the logs are in the run folder",
    "export": "slurm.setup sets variables",
    "input": "the agents read nothing",
    "nodes": "trainer.nodes and rollout.nodes_per_engine say it",
    "ntasks": "there is one task a node: the agent",
    "ntasks-per-node": "there is one task a node: the agent",
    "open-mode": "the logs are in the run folder",
    "output": "the logs are in the run folder",
    "parsable": "Verst reads sbatch's answer itself",
    "signal": "slurm.stop_lead_s says when",
    "wait": "`verst status` follows the run",
    "wrap": "Verst writes the script",
}

_NUMBERS = {
    "cpus-per-task",
    "cpus-per-gpu",
    "gpus-per-task",
    "ntasks-per-gpu",
    "mincpus",
    "core-spec",
    "thread-spec",
    "priority",
}


def option_fault(option: str, value: object) -> str | None:
    """Why this option cannot be set so, or None. `sbatch` itself judges the rest."""
    if option in OWNED:
        return f"is Verst's own: {OWNED[option]}"
    if option in _NUMBERS and not isinstance(value, bool) and not str(value).isdigit():
        return f"is {value!r}, must be a whole number"
    return None
