"""A task knows who it is from Slurm's variables alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verst.slurm.environment import NotInSlurmError, TaskEnvironment, expand_hosts

FIRST = {
    "SLURM_JOB_ID": "12",
    "SLURM_ARRAY_JOB_ID": "10",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_NODEID": "1",
    "SLURM_JOB_NODELIST": "n[1-2]",
}


def test_a_task_of_an_array() -> None:
    task = TaskEnvironment.read(FIRST)
    assert (task.index, task.node, task.hosts, task.restart) == (3, 1, ("n1", "n2"), 0)
    assert task.name == "10_3"


def test_every_start_of_a_job_is_a_life_of_its_own() -> None:
    lives = [
        TaskEnvironment.read(FIRST | more).life
        for more in ({}, {"SLURM_RESTART_COUNT": "1"}, {"SLURM_JOB_ID": "13"}, {"SLURM_JOB_ID": "121"})
    ]
    assert len(set(lives)) == 4


def test_outside_a_job_step_it_says_so() -> None:
    with pytest.raises(NotInSlurmError, match="SLURM_JOB_ID, SLURM_NODEID not set"):
        TaskEnvironment.read({})


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", ()),
        ("login", ("login",)),
        ("n[1-3,7]", ("n1", "n2", "n3", "n7")),
        ("n[008-011]", ("n008", "n009", "n010", "n011")),
        ("a[1-2],b3,gpu-c[01,10]", ("a1", "a2", "b3", "gpu-c01", "gpu-c10")),
        ("r[1-2]n[1-2]", ("r1n1", "r1n2", "r2n1", "r2n2")),
    ],
)
def test_node_lists(text: str, hosts: tuple[str, ...]) -> None:
    assert expand_hosts(text) == hosts


@given(st.lists(st.integers(0, 9999), min_size=1, max_size=50, unique=True))
def test_a_plain_list_is_itself(numbers: list[int]) -> None:
    names = [f"node{n}" for n in numbers]
    assert expand_hosts(",".join(names)) == tuple(names)
