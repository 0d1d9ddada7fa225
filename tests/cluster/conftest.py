"""A Slurm cluster for the tests that want one; without what it needs they are skipped, save in CI, where they fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.cluster.availability import why_not
from tests.cluster.slurm_cluster import Options, SlurmCluster

StartCluster = Callable[..., SlurmCluster]


def need_cluster(accounting: bool = False) -> None:
    reason = why_not(accounting)
    if reason is None:
        return
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"CI must run the tests on Slurm, and cannot: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def session_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """The one cluster that most tests use in turn; its daemons' logs stay in pytest's folder."""
    need_cluster()
    with SlurmCluster(keep_logs_in=tmp_path_factory.mktemp("slurm-log")) as cluster:
        yield cluster


@pytest.fixture
def cluster(session_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """The session's cluster, with six idle nodes and no job that still runs, before and after each test."""
    yield session_cluster
    session_cluster.reset()


@pytest.fixture
def start_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartCluster]:
    """Starts a cluster of the test's own, with any of `slurm_conf.Options`: `start_cluster(accounting=True)`."""
    with ExitStack() as clusters:

        def start(**options: bool | int) -> SlurmCluster:
            wanted = Options(**options)  # type: ignore[arg-type]
            need_cluster(wanted.accounting)
            logs = tmp_path_factory.mktemp("slurm-log")
            return clusters.enter_context(SlurmCluster(wanted, keep_logs_in=logs))

        yield start
