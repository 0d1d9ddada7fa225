"""Tiny models and trainer ranks that the trainer's tests share."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runtime.trainer.tiny_models import FAMILIES, Layout, save_model
from tests.sync.world import forked

_START_S, _JOB_S = 180, 90


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hugging Face folders of tiny models, by family."""
    root = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        save_model(family, root / family)
    return {family: root / family for family in FAMILIES}


def _serve(rank: int, jobs: Connection, log: Path) -> None:
    from tests.runtime.trainer.worker import serve  # it imports Megatron, which pytest's own process must not

    serve(rank, jobs, log)


def make_job(
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
    aside: bool = False,
    unknown: float = 0.0,
    refuses: bool = False,
    noise: float = 0.2,
    split: list[list[list[int]]] | None = None,
    gradient: bool = False,
    export: Path | None = None,
    dropped: list[int] | None = None,
    hooks: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What a rank does, but for its `store` (`worker.run`)."""
    return {
        "model": str(model),
        "world_size": layout.world_size,
        "megatron": {"lr": 1e-3, "lr-warmup-iters": 0, **layout.megatron},
        "steps": steps,
        "dtype": dtype,
        "loss": loss,
        "routing": routing,
        "unknown": unknown,
        "noise": noise,
        "split": split,
        "gradient": gradient,
        "dropped": dropped or [],
        "hooks": hooks or {},
        "on_policy": on_policy,
        "algorithm": algorithm or {},
        # The samples are no engine's: their log-probabilities are made up.
        "trainer": {"max_tokens_per_microbatch": 64, "max_logprob_diff": 1e9, **(trainer or {})},
        "load": str(load) if load else None,
        "save": str(save) if save else None,
        "export": str(export) if export else None,
        "shown": shown or [],
        "aside": aside,
        "refuses": refuses,
    }


class Ranks:
    """Worker processes, at least two and as many as a layout needs.

    `run` sends them a job and returns each rank's answer.
    """

    def __init__(self, folder: Path, job_s: float = _JOB_S) -> None:
        self._folder = folder
        self._job_s = job_s
        self._numbers = itertools.count()
        self._workers: list[tuple[BaseProcess, Connection]] = []

    def run(self, model: Path, layout: Layout, **options: Any) -> list[dict[str, Any]]:
        """Runs a job, whose options are those of `make_job`, and returns each rank's answer."""
        store = {"store": str(self._folder / f"store-{next(self._numbers)}")}
        job = make_job(model, layout, **options) | store
        deadline = self._job_s if len(self._workers) >= layout.world_size else _START_S
        self._start(max(2, layout.world_size))
        taking_part = self._workers[: layout.world_size]
        for _, jobs in taking_part:
            jobs.send(job)
        answers = [self._answer(*worker, deadline) for worker in taking_part]
        errors = [f"rank {i}: {a['error']}" for i, a in enumerate(answers) if "error" in a]
        if errors:
            self.stop()
            pytest.fail("\n".join(errors))
        return answers

    def _start(self, count: int) -> None:
        while len(self._workers) < count:
            rank = len(self._workers)
            # Processes that are forked from the server have no GPU.
            context = multiprocessing.get_context("spawn") if torch.cuda.is_available() else forked()
            ours, theirs = context.Pipe()
            log = self._folder / f"rank-{rank}.log"
            process = context.Process(target=_serve, args=(rank, theirs, log), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))

    def _answer(self, process: BaseProcess, jobs: Connection, deadline: float) -> dict[str, Any]:
        if not jobs.poll(deadline):
            self.stop()
            pytest.fail(f"a rank did not answer within {deadline} s")
        try:
            return jobs.recv()
        except EOFError:
            process.join(10)
            self.stop()
            pytest.fail(f"a rank ended with exit status {process.exitcode}")

    def stop(self) -> None:
        for process, _ in self._workers:
            process.kill()
            process.join()
        self._workers.clear()


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    pair = Ranks(tmp_path_factory.mktemp("ranks"))
    yield pair
    pair.stop()
