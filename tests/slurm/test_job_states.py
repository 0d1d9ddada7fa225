"""What Slurm says of jobs, read right and told in plain words. The cluster's tests ask a real Slurm."""

from __future__ import annotations

import pytest

from verst.slurm.job_states import JobState, _by_job
from verst.slurm.site import _partition

SQUEUE = """\
10_0|RUNNING|None|n[1-2]
11_0|RUNNING|None|n3
11_1|PENDING|Priority|
11_2|COMPLETED|None|n4
"""
SACCT = """\
12_0|CANCELLED by 1000|None|n1
12_1|OUT_OF_MEMORY|None|n1
12_[2-5%2]|PENDING|BeginTime|None assigned
"""


def test_squeue_and_sacct_are_read_alike() -> None:
    found = _by_job(SQUEUE.splitlines()) | _by_job(SACCT.splitlines())
    assert [s.job for s in found["11"]] == ["11_0", "11_1", "11_2"]
    assert [s.ended for s in found["11"]] == [False, False, True]
    assert [s.state for s in found["12"]] == ["CANCELLED", "OUT_OF_MEMORY", "PENDING"]
    assert found["12"][2].job == "12_[2-5]"


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("PENDING", "Priority", "waits in the queue (jobs of higher priority come first)"),
        ("PENDING", "BeginTime", "waits in the queue (Slurm delays a requeued job for a while)"),
        ("PENDING", "SomethingNew", "waits in the queue (SomethingNew)"),
        ("TIMEOUT", "", "reached its time limit"),
        ("PREEMPTED", "", "gave its nodes to a job of higher priority"),
        ("NODE_FAIL", "", "lost a node"),
        ("OUT_OF_MEMORY", "", "was ended because it used more memory than it had asked for (`mem`)"),
        ("CANCELLED", "", "was cancelled"),
        ("GONE", "", "is no longer known to Slurm"),
        ("A_NEW_STATE", "", "a_new_state"),
    ],
)
def test_states_in_words(state: str, reason: str, words: str) -> None:
    assert JobState("1_0", state, reason).words() == words


def test_a_partition_as_scontrol_shows_it() -> None:
    line = (
        "PartitionName=low AllowGroups=ALL Default=YES GraceTime=60 MaxTime=UNLIMITED PriorityTier=1 "
        "PreemptMode=CANCEL State=UP TotalCPUs=48 TotalNodes=6"
    )
    partition = _partition(line)
    assert partition is not None
    assert (partition.name, partition.default, partition.grace_s) == ("low", True, 60)
    assert (partition.preempt_mode, partition.nodes, partition.max_time) == ("CANCEL", 6, "UNLIMITED")
