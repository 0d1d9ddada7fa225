"""The sbatch options that a recipe may set, and those that Verst sets itself."""

from __future__ import annotations

# The long options of sbatch in Slurm 20.11 to 25.05.
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
    "array": "use trainer.nodes, rollout.engines and slurm.throttle",
    "batch": "Verst starts its agents itself",
    "chdir": "jobs run in the run folder",
    "clusters": "call `verst` on a login node of that cluster",
    "dependency": "use slurm.after_trainer and slurm.restart",
    "error": "logs go to the run folder",
    "export": "set environment variables in slurm.setup",
    "export-file": "set environment variables in slurm.setup",
    "gpus-per-socket": "use gpus-per-node",
    "input": "the agents read no input",
    "job-name": "jobs are named after the recipe's `name`",
    "nodes": "use trainer.nodes and rollout.nodes_per_engine",
    "ntasks": "each node has one task, the agent",
    "ntasks-per-core": "each node has one task, the agent",
    "ntasks-per-gpu": "each node has one task, the agent",
    "ntasks-per-node": "each node has one task, the agent",
    "ntasks-per-socket": "each node has one task, the agent",
    "open-mode": "logs go to the run folder",
    "output": "logs go to the run folder",
    "parsable": "Verst parses sbatch's answer itself",
    "signal": "use slurm.stop_lead_s",
    "test-only": "use `verst plan --slurm`, which submits nothing either",
    "wait": "use `verst status` to follow the run",
    "wrap": "Verst writes the script",
}

_NUMBERS = {
    "cpus-per-task",
    "cpus-per-gpu",
    "gpus-per-task",
    "mincpus",
    "core-spec",
    "thread-spec",
    "priority",
}
# Options without a value, and those that have one only if one is wanted. `true` stands for no value.
_FLAGS = {
    "consolidate-segments",
    "contiguous",
    "hold",
    "ignore-pbs",
    "no-requeue",
    "overcommit",
    "quiet",
    "reboot",
    "requeue",
    "spread-job",
    "stepmgr",
    "use-min-nodes",
    "verbose",
}
_VALUE_OPTIONAL = {
    "exclusive",
    "get-user-env",
    "nice",
    "no-kill",
    "oom-kill-step",
    "oversubscribe",
    "propagate",
}
# Options of srun, by their long and short names, that decide how the agents are started and stopped.
_OWNED_BY_SRUN = {
    "error": "logs go to the run folder",
    "e": "logs go to the run folder",
    "het-group": "use slurm.layout",
    "kill-on-bad-exit": "one agent's failure ends the others",
    "K": "one agent's failure ends the others",
    "nodes": "use trainer.nodes and rollout.nodes_per_engine",
    "N": "use trainer.nodes and rollout.nodes_per_engine",
    "ntasks": "each node has one task, the agent",
    "n": "each node has one task, the agent",
    "ntasks-per-node": "each node has one task, the agent",
    "output": "logs go to the run folder",
    "o": "logs go to the run folder",
    "signal": "use slurm.stop_lead_s",
    "time": "set it in slurm.sbatch: srun's own limit would end the agents alone",
    "t": "set it in slurm.sbatch: srun's own limit would end the agents alone",
    "wait": "an agent that ends well leaves the others running",
    "W": "an agent that ends well leaves the others running",
}


def srun_fault(option: str) -> str | None:
    """What is wrong with an option of srun, such as "--signal=USR1@30" or "-n4"; None if Verst does not set it."""
    if option.startswith("--"):
        name = option[2:].partition("=")[0]
    elif option.startswith("-"):
        name = option[1:2]
    else:
        return None
    reason = _OWNED_BY_SRUN.get(name)
    return None if reason is None else f"has {option!r}, which is set by Verst: {reason}"


def option_fault(option: str, value: object) -> str | None:
    """What is wrong with this option, or None. `sbatch` itself checks the rest."""
    if option in OWNED:
        return f"is set by Verst: {OWNED[option]}"
    if value is True and option not in _FLAGS | _VALUE_OPTIONAL:
        return "is true, but sbatch wants a value for it"
    if not isinstance(value, bool) and option in _FLAGS:
        return f"is {value!r}, but sbatch takes no value for it: set it to true or false"
    if option in _NUMBERS and not isinstance(value, bool) and not str(value).isdigit():
        return f"is {value!r}, must be a whole number"
    return None
