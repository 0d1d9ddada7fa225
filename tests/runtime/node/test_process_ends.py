"""A process that has run well for long has its restarts back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from verst.runtime.node import supervise
from verst.runtime.node.agent.failing import Failing
from verst.runtime.node.agent.process_ends import ProcessEnds
from verst.runtime.node.agent.stopping import Stopping
from verst.runtime.node.agent.this_node import ThisNode
from verst.runtime.node.processes import Watched
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Process

HALF_HOUR_S = 1800.0


@pytest.mark.parametrize(
    ("ran_s", "restarts_before", "restarts"),
    [
        (10.0, 2, 3),
        (HALF_HOUR_S + 1, 3, 3),  # one is given back, and used
        (10 * HALF_HOUR_S, 3, 1),
        (10.0, 3, None),  # none is left: the node fails
    ],
)
def test_restarts_are_given_back(
    tmp_path: Path, ran_s: float, restarts_before: int, restarts: int | None
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    child = supervise.start("rollout-0", ["sh", "-c", "exit 7"], {"PATH": "/usr/bin:/bin"}, tmp_path / "log")
    child.popen.wait()
    process = Process(role="rollout", index=0, argv=["sh"], on_exit="restart", max_restarts=3)
    env = {"VERST_ROLE": "rollout", "VERST_INDEX": "0"}
    watched = Watched(process, env, tmp_path / "log", child=child, restarts=restarts_before)
    watched.started_at = time.monotonic() - ran_s
    here = ThisNode(folder, "rollout", 0, 0, follows=True, watched=[watched])
    stopping = Stopping(here, {})
    outcome = ProcessEnds(here, stopping, Failing(here, stopping, 0.0, 0), 60.0).ended(watched)
    if restarts is None:
        assert outcome is not None
        assert outcome.why == "failed"
    else:
        assert outcome is None
        assert watched.restarts == restarts
