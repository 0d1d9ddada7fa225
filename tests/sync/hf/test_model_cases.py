"""The whole kind: every key of each family's class, with another value or left out, is trained as transformers reads
it, or refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sync.hf.model_cases import _VALUES, ARCHITECTURES, Case, cases, keys, page
from tests.sync.world import World, logits_of, run_world

ROOT = Path(__file__).parents[3]
_TOKENS = 20
# GLM-5 is read as SGLang reads it (`tests/sync/hf/test_import_export.py`), where transformers differs.
_AS_SGLANG = {("glm_moe_dsa", "rms_norm_eps")}


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_key_of_the_class_has_another_value_here(family):
    assert [key for key in keys(family) if key not in _VALUES] == []


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_refusal_names_the_key(family):
    """Or keys that follow from it, which transformers wrote into the same file."""
    unnamed = [f"{case}: {case.refusal}" for case in cases(family) if case.refusal and not _names(case)]
    assert unnamed == []


def test_the_page_of_limits_is_that_of_these_cases():
    assert (ROOT / "docs/model-families.md").read_text() == page()


def _names(case: Case) -> bool:
    assert case.refusal is not None
    words = {case.key, "rope" if "rope" in case.key else case.key}
    return any(re.search(rf"\b{word}", case.refusal) for word in words)


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_what_is_trained_agrees_with_transformers(family, tmp_path):
    """In fp32 on tiny models, to 1e-4 in every log-probability, or 1e-5 of the largest: a case may be wide."""
    run_world(1, _compare, family, tmp_path, timeout=2700)
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    assert {what: outcome for what, outcome in outcomes.items() if outcome.startswith("WRONG")} == {}
    agreed = [what for what, outcome in outcomes.items() if outcome == "agrees"]
    assert len(agreed) >= 25, outcomes


def _compare(rank: int, world: int, store: str, family: str, root: Path) -> None:
    megatron = World(rank, world, store)
    outcomes: dict[str, str] = {}
    for number, case in enumerate(cases(family)):
        if case.refusal is None and (family, case.key) not in _AS_SGLANG:
            outcomes[str(case)] = _outcome(megatron, case, root / str(number))
            print(case, outcomes[str(case)], flush=True)
    (root / "outcomes.json").write_text(json.dumps(outcomes, indent=1))


def _outcome(megatron: World, case: Case, folder: Path) -> str:
    from verst.sync.hf.folder import import_weights

    try:
        reference = _transformers(case, folder)
    except Exception as error:
        return f"transformers cannot run it: {error!r}"[:300]
    tokens = torch.arange(_TOKENS)[None] * 3 % 61
    try:
        *_, chunks, binding = megatron.build(folder, {})
        import_weights(folder, binding)
    except ValueError as error:
        named = case.key in str(error) or "is not read by the family" in str(error)
        return f"refused: {error}"[:300] if named else f"WRONG refusal: {error}"[:600]
    with torch.no_grad():
        logits = logits_of(chunks[0], tokens)[..., : reference.shape[-1]]
    difference = (logits.float().log_softmax(-1) - reference).abs().max().item()
    bound = max(1e-4, 1e-5 * reference.abs().max().item())
    return "agrees" if difference < bound else f"WRONG by {difference}, where {bound} is rounding"


def _transformers(case: Case, folder: Path) -> torch.Tensor:
    """Saves a random model of the case, with its config.json as it is written there; returns its log-probabilities."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    config: Any = CONFIG_MAPPING[case.family](**case.config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.1)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(case.config))
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.arange(_TOKENS)[None] * 3 % 61
    with torch.no_grad():
        return again(tokens).logits.log_softmax(-1)
