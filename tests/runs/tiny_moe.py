"""The tiny mixture-of-experts recipe, cut short for tests."""

from __future__ import annotations

from pathlib import Path

from tests.runs.verst_run import ROOT, VerstRun

RECIPE = ROOT / "recipes/tiny-moe.yaml"
SHORT = (
    "algorithm.stages.0.steps=4",
    "algorithm.stages.0.batch_size=16",
    "trainer.megatron.lr=1e-3",
    "algorithm.steps=4",
    "algorithm.prompts_per_step=4",
    "algorithm.samples_per_prompt=4",
    "checkpoint.interval=1",
    "rollout.sampling.temperature=0.7",
)


def tiny_overrides(model: Path) -> tuple[str, ...]:
    """The recipe's files, in the model's folder."""
    return (
        f"model.path={model}",
        f"data.train.path={model}/train.jsonl",
        f"data.eval.path={model}/eval.jsonl",
        f"algorithm.stages.0.data.path={model}/demonstrations.jsonl",
    )


def tiny_run(model: Path, folder: Path, *overrides: str) -> VerstRun:
    """A run of the recipe with `model` in `folder`."""
    return VerstRun(str(RECIPE), folder, (*tiny_overrides(model), *overrides))
