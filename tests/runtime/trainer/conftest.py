"""The tiny models and trainer ranks, shared by the trainer's tests."""

from __future__ import annotations

import itertools
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.trainer.tiny_models import FAMILIES, Layout, save_model

_ROOT = Path(__file__).parents[3]
_START_S, _JOB_S = 180, 90


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hugging Face folders by family."""
    root = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        save_model(family, root / family)
    return {family: root / family for family in FAMILIES}


class Ranks:
    """Worker processes, two or as many as a layout needs; `run` gives them a job and returns each rank's answer."""

    def __init__(self, folder: Path, job_s: float = _JOB_S) -> None:
        self._folder = folder
        self._job_s = job_s
        self._numbers = itertools.count()
        self._workers: list[subprocess.Popen[str]] = []

    def run(
        self,
        model: Path,
        layout: Layout,
        *,
        steps: int = 1,
        dtype: str = "float32",
        loss: str = "policy",
        routing: bool = False,
        on_policy: bool = True,
        algorithm: dict[str, Any] | None = None,
        trainer: dict[str, Any] | None = None,
        load: Path | None = None,
        save: Path | None = None,
        shown: list[tuple[int, int]] | None = None,
        unknown: float = 0.0,
    ) -> list[dict[str, Any]]:
        job = {
            "model": str(model),
            "world_size": layout.world_size,
            "megatron": {"lr": 1e-3, "lr-warmup-iters": 0, **layout.megatron},
            "store": str(self._folder / f"store-{next(self._numbers)}"),
            "steps": steps,
            "dtype": dtype,
            "loss": loss,
            "routing": routing,
            "unknown": unknown,
            "on_policy": on_policy,
            "algorithm": algorithm or {},
            "trainer": {"max_tokens_per_microbatch": 64, **(trainer or {})},
            "load": str(load) if load else None,
            "save": str(save) if save else None,
            "shown": shown or [],
        }
        deadline = self._job_s if len(self._workers) >= layout.world_size else _START_S
        self._start(max(2, layout.world_size))
        for worker in self._workers[: layout.world_size]:
            assert worker.stdin is not None
            worker.stdin.write(json.dumps(job) + "\n")
            worker.stdin.flush()
        answers = [self._answer(worker, deadline) for worker in self._workers[: layout.world_size]]
        errors = [f"rank {i}: {a['error']}" for i, a in enumerate(answers) if "error" in a]
        if errors:
            self.stop()
            pytest.fail("\n".join(errors))
        return answers

    def _start(self, count: int) -> None:
        while len(self._workers) < count:
            command = [sys.executable, "-W", "ignore", "-m", "tests.runtime.trainer.worker"]
            with (self._folder / f"rank-{len(self._workers)}.log").open("a") as log:
                worker = subprocess.Popen(
                    [*command, str(len(self._workers))],
                    cwd=_ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
            self._workers.append(worker)

    def _answer(self, worker: subprocess.Popen[str], deadline: float) -> dict[str, Any]:
        assert worker.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(worker.stdout, selectors.EVENT_READ)
            if not selector.select(deadline):
                self.stop()
                pytest.fail(f"a rank did not answer within {deadline} s")
        line = worker.stdout.readline()
        if not line:
            self.stop()
            pytest.fail(f"a rank ended with exit status {worker.wait()}")
        return json.loads(line)

    def stop(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait()
        self._workers.clear()


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    pair = Ranks(tmp_path_factory.mktemp("ranks"))
    yield pair
    pair.stop()
