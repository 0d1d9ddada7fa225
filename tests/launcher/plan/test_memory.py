"""The memory estimate counts what Megatron and SGLang will hold, from file headers alone."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.launcher.model_folders import write_safetensors
from tests.launcher.recipes_for_tests import write_recipe
from verst.launcher.plan.memory import estimate_memory, in_words
from verst.launcher.plan.parallelism import Parallelism
from verst.launcher.recipe.load import load_recipe

SHAPES = {"a": (10, 100), "m.experts.0.w": (800,)}
PPO = ["algorithm.advantage=verst.runtime.algorithms.advantages:gae", "algorithm.critic={}"]


@pytest.fixture
def model(tmp_path):
    """1000 parameters outside of experts, 800 inside."""
    write_recipe(tmp_path)
    write_safetensors(tmp_path / "model/model.safetensors", SHAPES)
    return tmp_path


@pytest.mark.parametrize(
    ("overrides", "grid", "rank", "engine"),
    [
        ([], Parallelism(1), 1800 * (4 + 4 + 8), 1800 * 4),
        (["model.dtype=bfloat16"], Parallelism(1), 1800 * (2 + 4 + 12), 1800 * 2),
        (["algorithm.kl_coef=0.1"], Parallelism(1), 1800 * (4 + 4 + 8 + 4), 1800 * 4),
        ([*PPO, "algorithm.kl_coef=0.1"], Parallelism(1), 1800 * (2 * (4 + 4 + 8) + 4), 1800 * 4),
        (["rollout.sglang.tp-size=2"], Parallelism(4, tp=2, pp=2, etp=2), 450 * 16, 900 * 4),
        ([], Parallelism(4, ep=4), (1000 + 200) * 16, 1800 * 4),
        (["trainer.megatron.use-distributed-optimizer=true"], Parallelism(4), 1800 * (4 + 4 + 2), 1800 * 4),
    ],
)
def test_bytes_per_process(model, overrides, grid, rank, engine):
    recipe = load_recipe(model / "recipe.yaml", overrides)
    estimate = estimate_memory(recipe, model / "model", grid)
    assert estimate is not None
    assert (estimate.parameters, estimate.trainer_rank, estimate.engine_rank) == (1800, rank, engine)


def test_groups_of_data_parallel_attention_each_have_it_whole(model):
    attention = {"model.layers.0.self_attn.q_proj.weight": (10, 20)}
    write_safetensors(model / "model/model.safetensors", SHAPES | attention)
    sizes = [
        "rollout.sglang.tp-size=4",
        "rollout.sglang.dp-size=2",
        "rollout.sglang.enable-dp-attention=true",
    ]
    estimate = estimate_memory(load_recipe(model / "recipe.yaml", sizes), model / "model", Parallelism(1))
    assert estimate is not None
    assert estimate.engine_rank == (1800 / 4 + 200 / 2) * 4


@pytest.mark.parametrize(("transport", "converted"), [("reshard", 2000 / 4), ("broadcast", 0)])
def test_engines_in_another_format_hold_what_is_stored(model, transport, converted):
    engine = model / "engine"
    engine.mkdir()
    (engine / "config.json").write_text("{}")
    save_file(
        {"a": np.zeros((1000,), np.uint8), "b": np.zeros((250,), np.float32)}, engine / "model.safetensors"
    )
    settings = [f"rollout.model_path={engine}", f"weights.transport={transport}"]
    recipe = load_recipe(model / "recipe.yaml", settings)
    estimate = estimate_memory(recipe, model / "model", Parallelism(4))
    assert estimate is not None
    assert estimate.parameters == 1800
    assert estimate.engine_rank == 2000
    assert estimate.trainer_rank == 1800 * (4 + 4 + 8) + converted


def test_no_weights_at_hand_no_estimate(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path))
    (tmp_path / "model/model.safetensors").unlink()
    assert estimate_memory(recipe, tmp_path / "model", Parallelism(1)) is None


@pytest.mark.parametrize(("count", "words"), [(900, "900 B"), (27 << 20, "27 MiB"), (3 << 31, "6.0 GiB")])
def test_bytes_in_words(count, words):
    assert in_words(count) == words
