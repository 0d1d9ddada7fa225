"""Which weights each stage compares its model with, and which of them only a checkpoint has."""

from __future__ import annotations

from typing import Any

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.references import ReferenceSource, needs_reference, reference_at

SFT: dict[str, Any] = {"kind": "sft", "data": {"path": "a"}, "steps": 4}
DPO: dict[str, Any] = {"kind": "dpo", "data": {"path": "b"}, "steps": 3}
POLICY = {"kind": "policy"}


def config(*stages: dict[str, Any], **keys: Any) -> AlgorithmConfig:
    policy = (
        {"steps": 6, "prompts_per_step": 2, "samples_per_prompt": 2, **keys} if POLICY in stages else keys
    )
    return AlgorithmConfig.model_validate({"stages": list(stages), **policy})


def test_a_stage_of_pairs_begins_with_its_reference() -> None:
    algorithm = config(SFT, DPO, {**DPO, "reference": {"path": "/other"}}, POLICY, kl_coef=0.1)
    found = [reference_at(algorithm, version) for version in range(16)]
    assert found[:4] == [None] * 4
    assert found[4:7] == [ReferenceSource(4)] * 3
    assert found[7:10] == [ReferenceSource(7, "/other")] * 3
    assert found[10:] == [ReferenceSource(10)] * 6
    stored = [
        version for version in range(16) if (ref := found[version]) and ref.only_in_checkpoints(version)
    ]
    assert stored == [5, 6, *range(11, 16)]


def test_the_first_stages_reference_is_the_model_that_every_life_reads() -> None:
    algorithm = config(DPO)
    assert needs_reference(algorithm)
    sources = [reference_at(algorithm, version) for version in range(3)]
    assert sources == [ReferenceSource(0)] * 3
    assert not any(source and source.only_in_checkpoints(2) for source in sources)
    assert reference_at(algorithm, 3) is None, "the run is over"


def test_a_refreshed_reference_is_only_in_checkpoints() -> None:
    algorithm = config(POLICY, kl_coef=0.1, reference={"refresh_interval": 2})
    source = reference_at(algorithm, 3)
    assert source is not None
    assert [version for version in range(6) if source.is_due(version)] == [0, 2, 4]
    assert [version for version in range(6) if source.only_in_checkpoints(version)] == [1, 2, 3, 4, 5]
    assert not needs_reference(config(POLICY))
    assert not needs_reference(config(SFT))
