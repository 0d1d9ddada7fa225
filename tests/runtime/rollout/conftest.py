"""One SGLang server per family for all tests of this folder, on an event loop in a thread of its own.

The thread lives as long as the servers: a server dies with the thread that started it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from tests.runtime.rollout import tiny_models
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.rollout.config import RolloutConfig
from verst.runtime.rollout.engine.engine import Engine

Run = Callable[..., Any]


@pytest.fixture(scope="package")
def run() -> Iterator[Run]:
    """Runs a coroutine on the folder's loop and returns its result, which must come `within_s`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine: Coroutine[Any, Any, Any], within_s: float = 290) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(timeout=within_s)

    yield run
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=10)


@pytest.fixture(scope="package")
def start_engine(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    """Starts engines, and stops them when the folder's tests are over."""
    engines: list[Engine] = []

    def start(family: str, **rollout: Any) -> Engine:
        folder = tmp_path_factory.mktemp(family)
        model = ModelConfig(path=str(tiny_models.save(family, folder)), dtype="float32")
        config = RolloutConfig(reward="unused:here", concurrency=32, start_timeout_s=280, **rollout)
        log = folder / "engine.log"
        engine = run(Engine.start(model, config, log=log, routing=True, seed=1, device="cpu"))
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        run(engine.stop())


@pytest.fixture(scope="package")
def engine_of(run: Run, start_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    """The folder's engine of a family, or one of several ranks with these SGLang arguments: started when it is first
    asked for. There is one of several ranks at a time; all together would not fit into memory."""
    started: dict[str, Engine] = {}
    larger: dict[str, Engine] = {}

    def get(family: str, sglang: dict[str, Any] | None = None) -> Engine:
        mine, key = (larger, f"{family} {sglang}") if sglang else (started, family)
        if key not in mine or not mine[key].alive():
            while larger and mine is larger:
                run(larger.popitem()[1].stop())
            mine[key] = start_engine(family, sglang=sglang or {})
        return mine[key]

    return get
