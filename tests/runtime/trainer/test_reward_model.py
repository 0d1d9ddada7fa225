"""Steps of a reward model are Adam's on transformers' class, in every layout, and its export has the same scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_layouts import CP, PP, SP, TP
from tests.runtime.trainer.tiny_models import Layout, as_pairs, in_default, make_samples, with_margins
from verst.runtime.messages.sample import Sample

# A large epsilon: Adam otherwise makes full steps of gradients that are rounding.
ADAM: dict[str, object] = {"lr": 1e-2, "adam-eps": 1e-4, "weight-decay": 0.0, "clip-grad": 0.0}
STEPS, CENTER = 4, 0.05
LAYOUTS = {
    "one": Layout(1, ADAM),
    "dp2": Layout(2, ADAM),
    "tp2-sp": Layout(2, ADAM | {TP: 2} | SP),
    "cp2": Layout(2, ADAM | {CP: 2}),
    "pp2": Layout(2, ADAM | {PP: 2}),
}
REWARD_MODEL = {
    "stages": [
        {
            "kind": "reward_model",
            "data": {"path": "pairs.jsonl", "margin_key": "m"},
            "steps": 8,
            "center_coef": CENTER,
        }
    ]
}


def of_recipe(steps: int = STEPS, **options: Any) -> dict[str, Any]:
    """What `Ranks.run` needs for a recipe of a reward model."""
    return {"steps": steps, "loss": "reward_model", "algorithm": REWARD_MODEL, **options}


@pytest.mark.parametrize("layout", in_default(LAYOUTS, "cp2"))
def test_four_steps_equal_adam_on_transformers_and_the_export_has_the_same_scores(
    layout: str, models: dict[str, Path], ranks: Ranks, tmp_path: Path
) -> None:
    """In float32 against float64: losses and figures to 1e-3, scores after four steps too.

    The score starts at zero, so the first update reaches the head alone and the later ones all weights.
    """
    out = tmp_path / "export"
    answers = ranks.run(models["llama"], LAYOUTS[layout], **of_recipe(export=out))
    expected, scores = _transformers_loop(models["llama"])
    for answer in answers:
        _same(answer, expected)
        _exported(answer, out, pairs_of(models["llama"]))
    assert expected[0]["loss"] > expected[-1]["loss"] + 0.1, "the steps are large enough to tell a wrong one"
    assert np.abs(scores).max() > 0.1
    np.testing.assert_allclose(scores_of(out, pairs_of(models["llama"])), scores, atol=1e-3)


@pytest.mark.parametrize("family", in_default({"qwen3": 0, "qwen3_moe": 0}, "qwen3"))
def test_other_families_are_exported_as_transformers_reads_them(
    family: str, models: dict[str, Path], ranks: Ranks, tmp_path: Path
) -> None:
    out = tmp_path / "export"
    (answer,) = ranks.run(models[family], LAYOUTS["one"], **of_recipe(3, export=out))
    _exported(answer, out, pairs_of(models[family]))


def _exported(answer: dict[str, Any], out: Path, pairs: list[Sample]) -> None:
    """The trainer's own means of scores, after its last step, are those of the exported folder, to 1e-4."""
    found, figures = scores_of(out, pairs), answer["last"]
    assert abs(figures["reward_model_margin"]) > 1e-2
    assert found[::2].mean() == pytest.approx(figures["reward_model_chosen_score"], abs=1e-4)
    assert found[1::2].mean() == pytest.approx(figures["reward_model_rejected_score"], abs=1e-4)


def pairs_of(folder: Path) -> list[Sample]:
    """The samples that are trained on, chosen and rejected in turn."""
    return with_margins(as_pairs(make_samples(folder)))


def scores_of(exported: Path, samples: list[Sample]) -> np.ndarray:
    """The score of each sample, as transformers reads the folder in float32, one by one."""
    import torch
    from transformers import AutoModelForSequenceClassification

    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert config["pad_token_id"] is None
    model, about = AutoModelForSequenceClassification.from_pretrained(
        exported, dtype=torch.float32, output_loading_info=True
    )
    assert (model.num_labels, model.score.weight.shape[0]) == (1, 1)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    with torch.no_grad():
        return np.array([model(_tokens(s)[None]).logits.item() for s in samples])


def tensors(exported: Path) -> dict[str, bytes]:
    """The bytes of each tensor of a folder."""
    from safetensors.torch import load_file

    files = [load_file(path) for path in sorted(exported.glob("*.safetensors"))]
    return {name: tensor.numpy().tobytes() for file in files for name, tensor in file.items()}


def _tokens(sample: Sample) -> Any:
    import torch

    return torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids])).long()


def _same(answer: dict[str, Any], expected: list[dict[str, float]]) -> None:
    """An evaluation before each step says the same as the step."""
    for reports in (answer["reports"], answer["evaluations"]):
        found = [{"loss": report["loss"], **report["metrics"]} for report in reports]
        for name in expected[0]:
            np.testing.assert_allclose(
                [f[name] for f in found], [e[name] for e in expected], rtol=1e-3, atol=1e-4, err_msg=name
            )


def _transformers_loop(folder: Path) -> tuple[list[dict[str, float]], np.ndarray]:
    """The figures of each step, and each score after the last: eq. 2 of arXiv:2307.09288, with centring."""
    import torch
    from transformers import LlamaForSequenceClassification

    model = LlamaForSequenceClassification.from_pretrained(
        folder, dtype=torch.float64, num_labels=1, pad_token_id=None
    )
    torch.nn.init.zeros_(model.score.weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-4)
    samples = pairs_of(folder)
    margins = torch.tensor([s.group / 2 for s in samples[::2]], dtype=torch.float64)

    def scores() -> torch.Tensor:
        return torch.cat([model(_tokens(sample)[None]).logits[0] for sample in samples])

    figures = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        found = scores()
        chosen, rejected = found[::2], found[1::2]
        loss = -torch.log(torch.sigmoid(chosen - rejected - margins)).mean()
        loss = loss + CENTER * ((chosen + rejected) ** 2).mean()
        loss.backward()
        optimizer.step()
        figures.append(
            {
                "loss": loss.item(),
                "reward_model_accuracy": (chosen > rejected).double().mean().item(),
                "reward_model_margin": (chosen - rejected).mean().item(),
                "reward_model_chosen_score": chosen.mean().item(),
                "reward_model_rejected_score": rejected.mean().item(),
            }
        )
    with torch.no_grad():
        return figures, scores().numpy()
