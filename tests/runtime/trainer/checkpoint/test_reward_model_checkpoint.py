"""A run of a reward model resumes bit for bit, and a checkpoint exports what the run's ranks export."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.trainer.checkpoint.test_critic_checkpoint import run_all
from tests.runtime.trainer.conftest import make_job
from tests.runtime.trainer.test_reward_model import LAYOUTS, of_recipe, tensors
from tests.sync.world import run_world
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.trainer.checkpoint.export import export_checkpoint

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
_LAYOUTS = ("one", "pp2")


@pytest.fixture(scope="module")
def out(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exports, checkpoints and answers of runs of four steps, and of two and then two more."""
    out, jobs = tmp_path_factory.mktemp("reward-model"), {}
    model = models["llama"]
    for name in _LAYOUTS:
        saved, layout = out / name / "step-000002", LAYOUTS[name]
        straight, first, resumed = (f"{name}-{part}" for part in ("straight", "first", "resumed"))
        jobs[straight] = make_job(model, layout, **of_recipe(4, export=out / straight))
        jobs[first] = make_job(model, layout, **of_recipe(2, save=saved, export=out / first))
        jobs[resumed] = make_job(model, layout, **of_recipe(2, load=saved, export=out / resumed))
    run_world(2, run_all, jobs, out, timeout=500)
    return out


def answers(out: Path, name: str) -> list[Any]:
    return [pickle.loads(path.read_bytes()) for path in sorted(out.glob(f"{name}.*"))]


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_a_resumed_run_is_the_same_bit_for_bit(layout: str, out: Path) -> None:
    for whole, rest in zip(
        answers(out, f"{layout}-straight"), answers(out, f"{layout}-resumed"), strict=True
    ):
        for mine, theirs in zip(rest["reports"], whole["reports"][2:], strict=True):
            assert {**mine, "step": 0, "seconds": 0} == {**theirs, "step": 0, "seconds": 0}
        assert whole["reports"][2]["metrics"]["reward_model_margin"] != 0
    assert tensors(out / f"{layout}-resumed") == tensors(out / f"{layout}-straight")


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_a_checkpoint_exports_what_the_ranks_export(
    layout: str, out: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    model = ModelConfig(path=str(models["llama"]), dtype="float32")
    checkpoint = out / layout / "step-000002"
    export_checkpoint(checkpoint, model, tmp_path / "exported", scores=True)
    theirs = out / f"{layout}-first"
    assert tensors(tmp_path / "exported") == tensors(theirs) != tensors(out / f"{layout}-straight")
    assert (tmp_path / "exported/config.json").read_bytes() == (theirs / "config.json").read_bytes()
    with pytest.raises(ValueError, match="holds another model than"):
        export_checkpoint(checkpoint, model, tmp_path / "wrong")
