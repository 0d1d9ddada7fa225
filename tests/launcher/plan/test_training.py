"""`verst plan` tells what a run trains with, and what a step and a checkpoint amount to."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.launcher.model_folders import write_safetensors
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
    assert [(source.rows, source.passes) for source in training.sources] == [(6, 6.0)]
    lines = training_lines(training)
    assert "Data: 6 prompts; the run passes over them 6 times" in lines
    most = load().trainer.max_tokens_per_microbatch
    assert f"Micro-batches: packed sequences, at most {most:,} tokens together" in lines


def test_several_sources_are_counted_each_by_its_share():
    """Of 36 prompts 27 are of the six rows of one source, and 9 of the three of another, which repeat as often."""
    Path("few.jsonl").write_text('{"prompt": "1 + 1 =", "label": "2"}\n' * 3)
    sources = "{math: {path: train.jsonl, weight: 3}, code: {path: few.jsonl}}"
    recipe = load("algorithm.steps=9", "data.train.path=null", f"data.train.sources={sources}")
    lines = training_lines(training_of(recipe))
    assert "Data math: 75 % of the prompts, 6 rows; the run passes over them 4.5 times" in lines
    assert "Data code: 25 % of the prompts, 3 rows; the run passes over them 3 times" in lines
    curriculum = load("data.train.curriculum=m:hardest_first")
    assert "Data: 6 prompts; m:hardest_first weighs them before each step" in training_lines(
        training_of(curriculum)
    )


def test_evaluation_sets_updates_and_the_kl_are_told():
    sets = "{math: {path: train.jsonl, samples_per_prompt: 4, temperature: 1.0, k: [2], interval: 5}, code: {path: no}}"
    recipe = load(
        f"data.eval={sets}",
        "algorithm.early_stop={set: math, metric: pass@2, patience: 3}",
        "algorithm.mini_batches=2",
        "algorithm.epochs=3",
        "algorithm.kl_coef=0.1",
        "algorithm.kl_in=reward",
        "algorithm.reference.refresh_interval=7",
    )
    lines = training_lines(training_of(recipe))
    assert (
        "Evaluation math: 6 prompts x 4 answers before and after training, and every 5 steps: reward, pass@2, best@4"
        in lines
    )
    assert "Evaluation code: prompts before and after training: reward" in lines
    assert "Early stop: the run ends once 3 evaluations in a row bring no better pass@2 of math" in lines
    assert "Each step: 8 samples, at most 576 tokens, 6 updates of the weights" in lines
    assert lines[0].endswith(
        "kl_coef 0.1, entropy_coef 0.0 (default), loss_average token (default), loss grpo (default), "
        "advantage group_normalised (default), kl k3 (default), kl_in reward, reference.refresh_interval 7"
    )


def test_recordings_are_told():
    assert "Recording: keeps the groups of all steps in samples/ of the run folder" in training_lines(
        training_of(load("record.keep=true"))
    )
    held_out = "data.eval={path: train.jsonl}"
    only = training_of(load("record.keep=true", "record.generate_only=true", held_out))
    lines = training_lines(only)
    assert "Each step: 8 samples, at most 576 tokens, none of them trained on" in lines
    assert "Recording: keeps the groups of each step and trains on none; no checkpoint, no export" in lines
    told = ("Training:", "Micro-batches:", "Disk:", "Evaluation")
    assert not any(line.startswith(told) for line in lines)
    lines = training_lines(training_of(load("record.source=runs/it", "algorithm.mini_batches=2", held_out)))
    assert (
        "Recording: trains on the groups that runs/it kept, with 2 updates of the weights in each step"
        in lines
    )
    assert lines[0].startswith("Training: ")
    assert any(line.startswith("Disk:") for line in lines)
    assert not any(line.startswith(("Each step:", "Data:", "Evaluation")) for line in lines)


def test_stages_are_told():
    stages = "[{kind: sft, steps: 3, batch_size: 4, data: {path: train.jsonl}}, {kind: policy}]"
    lines = training_lines(training_of(load(f"algorithm.stages={stages}")))
    assert "Stage sft: 3 steps of 4 rows; its file has 6 rows, 2 passes" in lines
    own = stages.replace("steps: 3", "steps: 3, lr: 1e-3")
    lines = training_lines(training_of(load(f"algorithm.stages={own}")))
    assert "Stage sft: 3 steps of 4 rows with lr 0.001; its file has 6 rows, 2 passes" in lines
    assert "Data: 6 prompts; the run passes over them 2 times" in lines


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


def test_a_critic_is_told_and_counts_as_a_second_model(tmp_path):
    write_recipe(tmp_path)
    write_safetensors(tmp_path / "model/model.safetensors", {"a": (1024,)})
    critic = ["algorithm.advantage=verst.runtime.algorithms.advantages:gae"]
    critic += ["algorithm.critic={warmup_steps: 1, optimizer: {weight-decay: 0.1}}"]
    training = training_of(load_recipe(tmp_path / "recipe.yaml", critic))
    assert training.checkpoint_bytes == 2 * 16 * 1024
    line = training_lines(training)[0]
    assert "critic.lr 1e-05 (default)" in line
    assert "critic.warmup_steps 1," in line
    assert line.endswith("critic.weight-decay 0.1")


def test_without_weights_here_nothing_is_said_of_the_disk():
    Path("model/model.safetensors").unlink()
    training = training_of(load())
    assert training.checkpoint_bytes is None
    assert not any("Disk" in line for line in training_lines(training))
