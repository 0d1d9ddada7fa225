"""An engine that is stopped leaves nothing behind."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from verst.runtime.rollout.config import SamplingConfig
from verst.runtime.rollout.engine.client import EngineError

PROMPT = [5, 9, 17, 30, 8, 8, 21]


def test_stop_leaves_no_process(engine_of: Any, run: Any) -> None:
    """Last of the engines' tests: it ends the folder's server."""
    engine = engine_of("qwen3_moe")
    family = [psutil.Process(engine.pid), *psutil.Process(engine.pid).children(recursive=True)]
    assert len(family) >= 3, "server, scheduler, detokenizer"
    scratch = engine._server._scratch.path
    assert scratch.stat().st_mode & 0o077 == 0
    run(engine.stop())
    assert not [process for process in family if process.is_running() and process.status() != "zombie"]
    assert not engine.alive()
    assert not scratch.exists()
    assert "killed by signal 9" in run(engine.wait_dead())
    with pytest.raises(EngineError):
        run(engine.generate(PROMPT, SamplingConfig(), 1))
