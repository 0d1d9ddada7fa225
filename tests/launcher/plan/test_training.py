"""`verst plan` tells what a run trains with, and what a step and a checkpoint amount to."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.launcher.recipes_for_tests import write_recipe
from verst.launcher.plan.training import training_lines, training_of
from verst.launcher.recipe.load import load_recipe
from verst.launcher.recipe.recipe import Recipe


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    Path("train.jsonl").write_text('{"prompt": "1 + 1 =", "label": "2"}\n' * 6 + "\n")


def load(*overrides: str) -> Recipe:
    return load_recipe(Path("recipe.yaml"), overrides)


def test_given_settings_and_defaults_are_told_apart():
    settings = {s.name: (s.value, s.given) for s in training_of(load("algorithm.clip_high=0.3")).settings}
    assert settings["lr"] == (1e-4, True)
    assert settings["weight-decay"] == (0.01, False)
    assert (settings["adam-beta1"], settings["adam-beta2"]) == ((0.9, False), (0.999, False))
    assert settings["clip-grad"] == (1.0, False)
    assert settings["moe-router-load-balancing-type"] == ("none", False)
    assert (settings["clip_low"], settings["clip_high"]) == ((0.2, False), (0.3, True))
    assert settings["loss"] == ("grpo", False)


def test_the_runs_recipe_has_the_defaults_written_out():
    resolved = load().resolved()["trainer"]["megatron"]
    assert resolved == {
        "optimizer": "adam", "lr": 1e-4, "lr-decay-style": "constant", "lr-warmup-iters": 0, "adam-beta1": 0.9,
        "adam-beta2": 0.999, "adam-eps": 1e-8, "weight-decay": 0.01, "clip-grad": 1.0,
    }  # fmt: skip


def test_a_step_and_the_data_are_counted():
    training = training_of(load("algorithm.steps=9"))
    assert (training.samples_per_step, training.updates_per_step) == (8, 1)
    assert training.tokens_per_step == 8 * (64 + 8)
    assert (training.prompts, training.epochs) == (6, 6.0)
    lines = training_lines(training)
    assert "Data: 6 prompts; the run passes over them 6 times" in lines
    most = load().trainer.max_tokens_per_microbatch
    assert f"Micro-batches: packed sequences, at most {most:,} tokens together" in lines


@pytest.mark.parametrize(("dtype", "per_parameter", "exported"), [("float32", 16, 4), ("bfloat16", 14, 2)])
def test_disk_is_counted_from_the_models_headers(dtype, per_parameter, exported):
    tensor = {"dtype": "F32", "shape": [64, 16], "data_offsets": [0, 4096]}
    header = json.dumps({"model.embed_tokens.weight": tensor}).encode()
    Path("model/model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4096))
    training = training_of(load(f"model.dtype={dtype}", "algorithm.steps=200", "checkpoint.keep_every=100"))
    assert training.checkpoint_bytes == per_parameter * 1024
    # two newest, two of every hundredth step, one that is being written
    assert training.kept_bytes == 5 * per_parameter * 1024 + exported * 1024
    assert training.free_bytes is not None
    training.free_bytes = 100
    assert "warning: that is more than is free" in training_lines(training)[-1]


def test_without_weights_here_nothing_is_said_of_the_disk():
    Path("model/model.safetensors").unlink()
    training = training_of(load())
    assert training.checkpoint_bytes is None
    assert not any("Disk" in line for line in training_lines(training))
