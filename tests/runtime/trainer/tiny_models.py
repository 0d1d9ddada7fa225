"""Tiny random models of each family, samples for them, and transformers' log-probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from verst.runtime.algorithms.stages import DpoStage, RewardModelStage
from verst.runtime.controller.batch_plan import plan_step
from verst.runtime.controller.stage_parts import parts_of_stage
from verst.runtime.messages.sample import Group, Sample
from verst.runtime.messages.step_plan import MicroBatch, SampleRef, StepPlan, TermName
from verst.sync.replay import selection
from verst.sync.replay.routing import UNKNOWN, pack

VOCABULARY = 259  # odd, so that tensor parallelism pads it
LAYERS = 4
MOE_LAYERS = 3  # the first of the layers is dense
ROUTING = {
    "qwen3_moe": (8, 2),
    "deepseek_v3": (16, 4),
    "deepseek_v32": (16, 4),
    "glm_moe_dsa": (16, 4),
}  # number of experts, and of experts per token
FAMILIES = ("llama", "qwen3", "qwen3_moe", "deepseek_v3", "deepseek_v32", "glm_moe_dsa")
SELECTED = 5  # number of tokens that sparse attention chooses
SOURCES = {
    "deepseek_v32": (0, 1, 2, 3),
    "glm_moe_dsa": (0, 0, 2, 2),
}  # for each layer, the layer whose choice it attends to
# Prompt and response lengths: uneven, with one response of a single token.
LENGTHS = ((3, 5), (9, 2), (1, 12), (4, 1), (6, 9), (2, 7))
TEMPERATURES = (1.0, 0.7, 0.3, 1.3)  # at which tokens are sampled, one after another

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
}
# Two of four groups, a bias on the router's choice, a shared expert, and a dense first layer.
_DEEPSEEK = {
    "num_key_value_heads": 4,
    "n_routed_experts": ROUTING["deepseek_v3"][0],
    "num_experts_per_tok": ROUTING["deepseek_v3"][1],
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "tie_word_embeddings": False,
}
# Many heads: where no head's score is positive the total is zero, and equal scores have no order.
_SPARSE = {"num_experts": 16, "index_topk": SELECTED, "index_n_heads": 16, "index_head_dim": 16}
# One group; every second layer shares a choice. The norms of compressed states use transformers' own epsilon.
_GLM = {
    "n_group": 1,
    "topk_group": 1,
    "index_topk_freq": 2,
    "index_skip_topk_offset": 1,
    "rms_norm_eps": 1e-6,
    "num_nextn_predict_layers": 1,
}


def save_model(family: str, folder: Path, dense: int = 0) -> None:
    """Saves a random model in fp32. Its weights are large enough that each of them affects the output.

    `dense` is the layer of a Qwen3-MoE model that has no experts.
    """
    import torch
    import transformers as hf

    torch.manual_seed(0)
    if family == "llama":
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**_SHAPE, tie_word_embeddings=True))
    elif family == "qwen3":
        model = hf.Qwen3ForCausalLM(hf.Qwen3Config(**_SHAPE, head_dim=32, tie_word_embeddings=False))
    elif family in ("deepseek_v3", *SOURCES):
        if family == "deepseek_v3":
            model = hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**_SHAPE | _DEEPSEEK))
        elif family == "deepseek_v32":
            model = hf.DeepseekV32ForCausalLM(hf.DeepseekV32Config(**_SHAPE | _DEEPSEEK | _SPARSE))
        else:
            model = hf.GlmMoeDsaForCausalLM(hf.GlmMoeDsaConfig(**_SHAPE | _DEEPSEEK | _SPARSE | _GLM))
        for layer in model.model.layers[1:]:
            layer.mlp.gate.e_score_correction_bias.normal_(0, 0.05)
    else:
        experts, topk = ROUTING[family]
        model = hf.Qwen3MoeForCausalLM(
            hf.Qwen3MoeConfig(
                **_SHAPE,
                head_dim=16,
                num_experts=experts,
                num_experts_per_tok=topk,
                moe_intermediate_size=48,
                norm_topk_prob=True,
                mlp_only_layers=[dense],
                tie_word_embeddings=False,
            )
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter) + float("norm" in name))
    model.float().save_pretrained(folder)
    np.savez(folder / "logprobs.npz", *transformers_logprobs(folder, make_samples(folder=None)))


def temperature_of(sample: Sample) -> np.ndarray:
    """What the logits of each response token are divided by, float32 [R]: 1 where it was not sampled."""
    given = sample.signals["temperature"]
    return np.where(given > 0, given, np.float32(1))


def transformers_logprobs(folder: Path, samples: Sequence[Sample], tempered: bool = True) -> list[np.ndarray]:
    """Returns each response's log-probabilities, fp32 [R], under transformers' own model.

    They are at the temperatures of the samples, or at 1.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    with torch.no_grad():
        for sample in samples:
            tokens = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids])).long()
            start = len(sample.prompt_ids)
            logits = model(tokens[None]).logits[0, start - 1 : -1]
            if tempered:
                logits = logits / torch.from_numpy(temperature_of(sample))[:, None]
            found.append(logits.log_softmax(-1).gather(1, tokens[start:, None])[:, 0].numpy())
    return found


def make_samples(
    folder: Path | None, routing: str | None = None, unknown: float = 0.0, noise: float = 0.2
) -> list[Sample]:
    """Makes one group of samples.

    With a folder, rollout log-probabilities are its model's plus noise of that deviation, so that ratios differ
    from one and some are clipped. `routing` names the family for which experts are chosen at random; the share
    `unknown` of the entries is not known.
    """
    random = np.random.default_rng(7)
    true = list(np.load(folder / "logprobs.npz").values()) if folder else None
    samples = []
    for index, (prompt, response) in enumerate(LENGTHS):
        mask = np.ones(response, np.uint8)
        mask[1:3] = index % 2  # some tokens are not trained on
        off = random.normal(0, noise, response).astype(np.float32)
        temperature = np.resize(np.roll(TEMPERATURES, index), response) * mask
        samples.append(
            Sample(
                group=0,
                index=index,
                prompt_ids=random.integers(0, VOCABULARY, prompt, dtype=np.int32),
                response_ids=random.integers(0, VOCABULARY, response, dtype=np.int32),
                logprobs=true[index] + off if true else off,
                loss_mask=mask,
                weight_versions=np.zeros(response, np.int32),
                reward=float(index % 3),
                finish="stop",
                signals={"temperature": temperature.astype(np.float32)},
                routing=_random_routing(prompt + response - 1, index, unknown, *ROUTING[routing])
                if routing
                else None,
                selected=_random_selection(prompt + response - 1, index, routing)
                if routing in SOURCES
                else None,
            )
        )
    return samples


def random_choices(tokens: int, seed: int, family: str) -> np.ndarray:
    """Random positions that each token attends to in each layer, int32 [tokens, layers, K]; -1 for none."""
    random = np.random.default_rng(seed)
    found = np.full((tokens, LAYERS, SELECTED), -1, np.int32)
    for token, layer in np.ndindex(tokens, LAYERS):
        some = random.permutation(token + 1)[:SELECTED]
        found[token, layer, : len(some)] = some
    return found[:, SOURCES[family]]


def _random_selection(tokens: int, seed: int, family: str) -> np.ndarray:
    choosing = sorted(set(SOURCES[family]))
    return selection.pack(random_choices(tokens, seed, family)[:, choosing], SELECTED)


def with_version(sample: Sample, version: int) -> Sample:
    """Returns the sample as if weights of `version` had generated it."""
    versions = np.full(len(sample.response_ids), version, np.int32)
    return msgspec.structs.replace(sample, weight_versions=versions)


def _random_routing(tokens: int, seed: int, unknown: float, experts: int, topk: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    scores = random.random((tokens, MOE_LAYERS, experts))
    entries = pack(np.argsort(scores, axis=-1)[..., :topk], experts)
    entries[random.random((tokens, MOE_LAYERS)) < unknown] = UNKNOWN
    return entries


def as_pairs(samples: Sequence[Sample]) -> list[Sample]:
    """The same samples two by two, as the chosen and the rejected answers of groups."""
    return [msgspec.structs.replace(s, group=i // 2, index=i % 2) for i, s in enumerate(samples)]


def with_margins(pairs: Sequence[Sample]) -> list[Sample]:
    """The pairs with the margins 0, 0.5, 1, … for a reward model."""
    return [
        msgspec.structs.replace(
            s, signals={**s.signals, "margin": np.full(len(s.response_ids), s.group / 2, np.float32)}
        )
        for s in pairs
    ]


def make_pair_plan(
    pairs: Sequence[Sample], dp_size: int, stage: DpoStage | RewardModelStage, step: int = 0
) -> StepPlan:
    """The controller's plan of a step on all pairs, with a micro-batch for each of the longer ones."""
    metas = [
        Group(id=first.group, samples=[first, second]).meta(0)
        for first, second in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    parts = parts_of_stage(metas, stage)
    plan = plan_step(step=step, parts=parts, dp_size=dp_size, max_tokens=24, pad_multiple=1)
    return msgspec.structs.replace(plan, stage=0)


# The samples of each micro-batch of each data-parallel rank: uneven ranks and an empty micro-batch.
SPLITS = {1: [[[0, 1], [2, 3, 4], [5], []]], 2: [[[0], [1, 2], [3], []], [[4, 5], [], [], []]]}


def make_plan(
    samples: Sequence[Sample],
    dp_size: int,
    term: TermName = "policy",
    step: int = 0,
    split: Sequence[Sequence[Sequence[int]]] | None = None,
) -> StepPlan:
    """A plan with this split, by default that of `SPLITS`. It trains the same tokens however they are split."""
    trained = sum(int(s.loss_mask.sum()) for s in samples)

    def ref(index: int) -> SampleRef:
        return SampleRef(0, index, 0, samples[index].length, ADVANTAGES[index], [1 / trained])

    microbatches = [[MicroBatch([ref(i) for i in cut]) for cut in rank] for rank in split or SPLITS[dp_size]]
    return StepPlan(step=step, terms=[term], microbatches=microbatches)


def make_updates(samples: Sequence[Sample], dp_size: int, step: int = 0, epochs: int = 2) -> StepPlan:
    """A plan of two mini-batches, the first and the last three samples, with uneven ranks and empty micro-batches."""
    split = {
        1: [[[[0, 1], [2]], [[3, 4], [5], []]]],
        2: [[[[0], [2]], [[3], [], [5]]], [[[1], []], [[4], [], []]]],
    }[dp_size]

    def ref(index: int) -> SampleRef:
        own = samples[:3] if index < 3 else samples[3:]
        weight = 1 / sum(int(s.loss_mask.sum()) for s in own)
        return SampleRef(0, index, 0, samples[index].length, ADVANTAGES[index], [weight])

    microbatches = [
        [MicroBatch([ref(i) for i in cut]) for mini_batch in rank for cut in mini_batch] for rank in split
    ]
    return StepPlan(
        step=step, terms=["policy"], microbatches=microbatches, mini_batches=[2, 3], epochs=epochs
    )


def without(plan: StepPlan, samples: Sequence[Sample], dropped: Sequence[int]) -> StepPlan:
    """The plan with weights of 0 for these samples, and the same weight for every other trained token of a mini-batch,
    in each term."""
    sizes, begin = plan.mini_batches or [len(plan.microbatches[0])], 0
    weight: dict[int, float] = {}
    for size in sizes:
        cuts = [cut for rank in plan.microbatches for cut in rank[begin : begin + size]]
        names = [ref.index for cut in cuts for ref in cut.samples]
        kept = sum(int(samples[i].loss_mask.sum()) for i in names if i not in dropped)
        weight |= {i: 0.0 if i in dropped else 1 / kept for i in names}
        begin += size
    microbatches = [
        [
            MicroBatch(
                [msgspec.structs.replace(r, weights=[weight[r.index]] * len(r.weights)) for r in cut.samples]
            )
            for cut in rank
        ]
        for rank in plan.microbatches
    ]
    return msgspec.structs.replace(plan, microbatches=microbatches)


ADVANTAGES = (1.5, -0.7, 0.3, -1.1, 0.9, -0.4)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A parallel layout by Megatron's own argument names."""

    world_size: int
    megatron: dict[str, object]

    @property
    def dp_size(self) -> int:
        model = 1
        for axis in ("tensor-model", "pipeline-model", "context"):
            model *= int(str(self.megatron.get(f"{axis}-parallel-size", 1)))
        return self.world_size // model


def in_default(names: Sequence[str] | dict[str, Any], *default: str) -> list[Any]:
    """The names as parameters of a test. All but `default` are for the long tests."""
    assert set(default) <= set(names)
    return [pytest.param(name, marks=[] if name in default else [pytest.mark.long]) for name in names]
