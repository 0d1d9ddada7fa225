"""The folders of reference and critic must hold the tensors of the model that is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.launcher.recipes_for_tests import write_recipe
from verst.launcher.check.model.model_files import model_files_faults
from verst.launcher.recipe.load import load_recipe


def folder(path: Path, **shapes: tuple[int, ...]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text("{}")
    save_file(
        {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, path / "model.safetensors"
    )
    return path


OPTIONS = {
    "algorithm.reference.path": ["algorithm.kl_coef=0.1"],
    "algorithm.critic.path": ["algorithm.advantage=verst.runtime.algorithms.advantages:gae"],
}


def faults(tmp_path: Path, model: Path, place: str, path: Path) -> list[str]:
    given = [f"model.path={model}", f"{place}={path}", *OPTIONS[place]]
    recipe = load_recipe(write_recipe(tmp_path), given)
    return [f.message for f in model_files_faults(recipe) if f.place == place]


@pytest.mark.parametrize("place", OPTIONS)
def test_another_model_has_the_tensors_of_the_model(tmp_path: Path, place: str) -> None:
    model = folder(tmp_path / "one", a=(2, 3), b=(4,))
    assert faults(tmp_path, model, place, folder(tmp_path / "same", a=(2, 3), b=(4,))) == []
    (other,) = faults(tmp_path, model, place, folder(tmp_path / "other", a=(2, 5), b=(4,)))
    assert "1 tensors are not those of model.path, such as a; it must have the same architecture" in other
    (missing,) = faults(tmp_path, model, place, tmp_path / "nowhere")
    assert "there is no such folder" in missing
