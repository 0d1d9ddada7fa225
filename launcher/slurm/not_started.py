"""The last part of a run's scripts: what happens when the agent of a task's first node could not be started.

A container image that is missing on a node, a mount that is not there, a broken Python: no program of Verst's runs
then. So the script itself says what happened, and submits the task again without that node. It does so at most
`slurm.max_failures` times. After that a trainer's script ends the run, and its engines give back their nodes.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from verst.slurm.shell import ALLOWED

RECORD = "not-started-"  # slurm/not-started-GROUP in the run folder: a line with the nodes of each try

# Before srun: where its messages begin in the job's log.
BEFORE = 'log=$(readlink /proc/$$/fd/2); log_start=$(stat -c %s "$log" 2>/dev/null || echo 0)'

_TELL = r"""code=$?
# An agent that has started leaves its name in agents/. One that has not (a missing image, mount or Python) cannot
# tell anybody, so this script does.
agent=$(cat agents/GROUP-$((${SLURM_ARRAY_TASK_ID:-0} * NODES)) 2>/dev/null)
if [ $code -eq 0 ] || [ -e cancelled ] || [ "$agent" = "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" ]; then exit $code; fi
outside() {
    (unset VERST_SUBMISSION $(compgen -v | grep -E '^(SLURM[A-Z]*|SBATCH|SRUN)_' | grep -vxE 'ALLOWED'); "$@")
}
name=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
state=$(outside scontrol show job -o "$name" | grep -o 'JobState=[A-Z_]*' | head -n 1)
if [ "${state:-JobState=RUNNING}" != JobState=RUNNING ]; then exit $code; fi  # scancel, a preemption: srun ends, too
named() { tail -c +$((log_start + 1)) "$log" | sed -nE "$1" | sort -u | paste -sd,; }
# srun ends the tasks of the other nodes when one fails; those are not at fault.
nodes=$(named 's/^srun: error: ([^ :]+): tasks? .*Exited.*/\1/p; s/^srun: error: .* on node ([^ :]+):.*/\1/p')
nodes=${nodes:-$(named 's/^srun: error: ([^ :]+): tasks? .*/\1/p')}
nodes=${nodes:-$SLURMD_NODENAME}
life=$(cut -d' ' -f1 life 2>/dev/null); life=${life:-0}
event() {
    echo "verst GROUP $name: $2" >&2
    printf '{"time":%s,"generation":%s,"kind":"%s","message":"GROUP job %s: %s"}\n' \
        "$(date +%s)" "$life" "$1" "$name" "$2" >> events.jsonl
}
echo "$nodes" >> slurm/RECORDGROUP
event agent_not_started "the agent could not be started on $nodes (exit code $code); log: $log"
"""
_AGAIN = r"""tries=$(wc -l < slurm/RECORDGROUP)
excluded=$(paste -sd, slurm/RECORDGROUP)EXCLUDED
if [ "$tries" -le MOST ]; then
    job=$(outside sbatch --parsable --exclude="$excluded" ${SLURM_ARRAY_TASK_ID:+--array=$SLURM_ARRAY_TASK_ID} \
        slurm/SCRIPT.sh | grep -oE '^[0-9]+' | tail -n 1)
    if [ -n "$job" ]; then
        printf '{"group":"SCRIPT","job":"%s","why":"its agent could not be started","time":%s}\n' \
            "$job" "$(date +%s)" >> slurm/jobs.jsonl
        event comes_back "submitted again as job $job, without $excluded"
        exit $code
    fi
fi
event gave_up "its agent could not be started $tries times; it is not tried again"
"""
_END = r"""printf '{"code":1,"reason":"GROUP job %s: the agent could not be started on %s; log: %s","generation":%s}' \
    "$name" "$excluded" "$log" "$life" > .ended.$$ && mv .ended.$$ ended
"""


def after_srun(
    group: str,
    nodes: int,
    *,
    script: str,
    leads: bool,
    max_tries: int,
    excluded: str = "",
    chained: bool = False,
) -> list[str]:
    """The lines after srun in the script of a group's array, or of the heterogeneous job.

    Args:
        group: the group of the first node.
        nodes: how many nodes a task has.
        script: the script's own name, without .sh.
        leads: whether the run ends when the agent cannot be started.
        max_tries: how often the task is submitted again.
        excluded: the nodes that the recipe excludes.
        chained: another job follows anyhow, so the script only tells what happened.
    """
    text = _TELL + ("" if chained else _AGAIN + (_END if leads else "")) + "exit $code"
    values = {
        "ALLOWED": "|".join(sorted(ALLOWED)),
        "EXCLUDED": f",{shlex.quote(excluded)}" if excluded else "",
        "RECORD": RECORD,
        "GROUP": group,
        "NODES": str(nodes),
        "SCRIPT": script,
        "MOST": str(max_tries),
    }
    for word, value in values.items():
        text = text.replace(word, value)
    return text.splitlines()


def forget_tries(slurm: Path) -> None:
    """Begins the count of tries anew. `slurm`: that folder of the run folder."""
    for path in slurm.glob(f"{RECORD}*"):
        path.unlink()
