"""A run with a critic resumes bit for bit, and under another layout with the same next step."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.trainer.conftest import make_job
from tests.runtime.trainer.test_critic import ADAM, LAYOUTS, ONE, PPO
from tests.runtime.trainer.test_layouts import SP, TP
from tests.runtime.trainer.tiny_models import Layout
from tests.sync.world import run_world, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(1000)]

RUNS: dict[str, tuple[Layout, str]] = {
    "one": (ONE, "float32"),
    "one in bf16": (ONE, "bfloat16"),
    "pp2": (LAYOUTS["pp2"], "float32"),
    "dp2-distopt in bf16": (LAYOUTS["dp2-distopt"], "bfloat16"),
    "tp2-sp-distopt": (Layout(2, ADAM | {TP: 2, "use-distributed-optimizer": True} | SP), "float32"),
}


def run_all(rank: int, world: int, store: str, jobs: dict[str, dict[str, Any]], out: Path) -> None:
    from tests.runtime.trainer.worker import run

    before: list[Path] = []
    for number, (name, job) in enumerate(jobs.items()):
        if rank < job["world_size"]:
            wait_for(before)
            try:
                answer = run(job | {"store": f"{store}-{number}"}, rank)
            except ValueError as error:
                answer = {"error": str(error)}
            (out / f"{name}.{rank}").write_bytes(pickle.dumps(answer))
        before = [out / f"{name}.{one}" for one in range(job["world_size"])]


@pytest.fixture(scope="module")
def results(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Each rank's answer to each job, by the job's name."""
    out, jobs = tmp_path_factory.mktemp("critic"), {}
    model = models["llama"]
    for name, (layout, dtype) in RUNS.items():
        saved = out / name / "step-000002"
        given: dict[str, Any] = {"algorithm": PPO, "dtype": dtype}
        jobs[f"{name}, straight"] = make_job(model, layout, steps=4, **given)
        jobs[f"{name}, first"] = make_job(model, layout, steps=2, save=saved, **given)
        jobs[f"{name}, resumed"] = make_job(model, layout, steps=2, load=saved, **given)
    sharded, bare = out / "tp2-sp-distopt" / "step-000002", out / "bare" / "step-000002"
    jobs["other layout"] = make_job(model, LAYOUTS["pp2"], steps=2, load=sharded, algorithm=PPO)
    jobs["bare"] = make_job(model, ONE, save=bare)
    jobs["refused"] = make_job(model, ONE, load=bare, algorithm=PPO)
    jobs["without"] = make_job(model, ONE, steps=1, load=sharded)
    run_world(2, run_all, jobs, out, timeout=900)
    return {
        name: [pickle.loads((out / f"{name}.{rank}").read_bytes()) for rank in range(job["world_size"])]
        for name, job in jobs.items()
    }


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_with_a_critic_is_the_same_bit_for_bit(
    results: dict[str, list[Any]], name: str
) -> None:
    for whole, rest in zip(results[f"{name}, straight"], results[f"{name}, resumed"], strict=True):
        for mine, theirs in zip(rest["reports"], whole["reports"][2:], strict=True):
            assert {**mine, "step": 0, "seconds": 0} == {**theirs, "step": 0, "seconds": 0}
        assert rest["after"] == whole["after"]
        assert rest["values"] == whole["values"]
        assert whole["reports"][2]["metrics"]["value_mean"] != 0


def test_under_another_layout_the_next_steps_are_the_same(results: dict[str, list[Any]]) -> None:
    there, here = results["tp2-sp-distopt, resumed"][-1], results["other layout"][-1]
    for mine, theirs in zip(here["reports"], there["reports"], strict=True):
        assert mine["metrics"] == pytest.approx(theirs["metrics"], rel=1e-2, abs=1e-4)
    for mine, theirs in zip(here["values"], there["values"], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-3)


def test_a_checkpoint_without_a_critic_is_refused_and_one_with_it_serves_a_run_without(
    results: dict[str, list[Any]],
) -> None:
    (refused,) = results["refused"]
    assert "step-000002 holds no critic, and the recipe has one" in refused["error"]
    (without,) = results["without"]
    assert without["before"] != results["bare"][0]["before"]
    assert len(without["reports"]) == 1
