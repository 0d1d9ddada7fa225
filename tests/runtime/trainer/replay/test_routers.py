"""The promise, tested from the engine's answer to Megatron's routers in a whole model: in every layer with
experts, every token goes to the engine's experts, weighted by the router's own scores.

It holds for all kinds of scores and numbers of experts, and wherever the layers without experts are.
"""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from tests.runtime.trainer.tiny_models import VOCABULARY, in_default, make_samples
from tests.sync.tiny_models import hf_config
from tests.sync.world import World, run_world
from verst.sync.replay.routing import decode_routed_experts, routing_shape


@dataclasses.dataclass(frozen=True)
class Router:
    """A router by Megatron's own argument names."""

    score: str
    experts: int
    topk: int
    bias: bool = False
    scaling: float = 1.0

    @property
    def arguments(self) -> dict[str, Any]:
        found = {
            "num-experts": self.experts,
            "moe-router-topk": self.topk,
            "moe-router-score-function": self.score,
            "moe-router-dtype": "fp32",
        }
        if self.bias:
            found |= {"moe-router-enable-expert-bias": True, "moe-router-bias-update-rate": 0.0}
        if self.scaling != 1:
            found["moe-router-topk-scaling-factor"] = self.scaling
        return found


ROUTERS = {
    "softmax, 8 bits": Router("softmax", 256, 8),
    "sigmoid, 9 bits": Router("sigmoid", 257, 8, bias=True, scaling=2.5),
    "sqrtsoftplus, 9 bits": Router("sqrtsoftplus", 384, 6, bias=True, scaling=1.5),
    "softmax, 10 bits": Router("softmax", 520, 10),
}
# Layers without experts between others, written as flags and in Qwen3-MoE's way.
LAYERS = {
    "flags": ({"moe_layer_freq": [1, 0, 0, 1, 1]}, "[1,0,0,1,1]"),
    "step, dense alone": ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, "[0,1,0,0,0]"),
}


def engine_answer(tokens: int, layers: int, router: Router, seed: int) -> np.ndarray:
    """Makes SGLang's answer, int32 [tokens, all layers, K]: random experts, the highest index among them."""
    scores = np.random.default_rng(seed).random((tokens, layers, router.experts))
    chosen = np.argsort(scores, axis=-1)[..., : router.topk].astype("<i4")
    chosen[0, :, 0] = router.experts - 1
    chosen[0, :, 1:] = np.arange(router.topk - 1)
    return chosen


def _model(megatron: World, router: Router, layers: str) -> tuple[Any, Any]:
    from megatron.core import parallel_state as mpu
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from verst.recipes.models import qwen3_moe
    from verst.runtime.trainer.model.arguments import parse
    from verst.runtime.trainer.model.model import build_chunks

    mpu.destroy_model_parallel()
    small = {"vocab_size": VOCABULARY, "num_hidden_layers": 5, "hidden_size": 16, "moe_intermediate_size": 4}
    config = hf_config("qwen3_moe", **small).to_dict()
    shape = qwen3_moe.megatron_args(config) | router.arguments | {"moe-layer-freq": layers}
    options = {"use-cpu-initialization": True}
    args, transformer = parse(options, 1, shape, dtype="float32", train_steps=1, routing_replay=True)
    megatron.parallel.split(args)
    model_parallel_cuda_manual_seed(args.seed, force_reset_rng=True)
    (chunk,) = build_chunks(args, transformer)
    with torch.no_grad():
        for parameter in chunk.parameters():
            parameter.normal_(0, 0.3)
        for name, buffer in chunk.named_buffers():
            if name.endswith("expert_bias"):
                buffer.normal_(0, 0.2)
    return chunk, transformer


def _replays(rank: int, world: int, store: str, router: Router, said: str) -> None:
    from tests.runtime.trainer.replay.test_routing_scores import weights_of
    from verst.runtime.messages.step_plan import MicroBatch, SampleRef
    from verst.runtime.trainer.model.packed_sequences import PackedSequences
    from verst.runtime.trainer.replay.routing import RoutingReplay
    from verst.runtime.trainer.share.batch import Collator
    from verst.runtime.trainer.share.routing import cut_all

    megatron = World(rank, world, store)
    from megatron.core.transformer.moe.router import TopKRouter

    in_config, frequency = LAYERS[said]
    chunk, config = _model(megatron, router, frequency)
    counts = {"num_experts": router.experts, "num_experts_per_tok": router.topk, "num_hidden_layers": 5}
    # SGLang's answer has no layer for multi-token prediction.
    shape = routing_shape(counts | in_config | {"num_nextn_predict_layers": 1})
    assert shape is not None
    answers, samples = [], []
    for sample in make_samples(None)[:3]:
        answers.append(engine_answer(sample.length - 1, 5, router, sample.index))
        encoded = base64.b64encode(answers[-1].tobytes()).decode()
        entries = decode_routed_experts(encoded, shape, sample.length - 1)
        samples.append(msgspec.structs.replace(sample, routing=entries))

    replay = RoutingReplay([chunk], config, megatron.parallel)
    micro = MicroBatch([SampleRef(s.group, s.index, 0, s.length, 0.0, 0.0) for s in samples])
    by_name = {(s.group, s.index): s for s in samples}
    cut = cut_all(replay.share, [micro], by_name, replay.entry)[0]
    batch = Collator(0, 1, 1, torch.device("cpu"), replay.share)(samples, None, cut)

    routers = {m.layer_number - 1: m for m in chunk.modules() if isinstance(m, TopKRouter)}
    assert tuple(sorted(routers)) == shape.moe_layers
    seen: dict[int, Any] = {}
    for layer, module in routers.items():
        module.register_forward_hook(
            lambda _, inputs, output, layer=layer: seen.__setitem__(layer, (inputs[0], output))
        )
    chunk.zero_grad_buffer()
    replay.begin_step()
    replay.start([batch])
    replay.load(chunk, batch)
    packed = PackedSequences(batch.padded_lengths, batch.position_ids[0])
    chunk(batch.tokens, batch.position_ids, None, packed_seq_params=packed).float().pow(2).mean().backward()

    options = {"score_function": router.score, "scaling_factor": router.scaling}
    for layer, (hidden, (weights, used)) in seen.items():
        assert 0 < routers[layer].weight.main_grad.norm() < np.inf
        logits = torch.nn.functional.linear(hidden.float(), routers[layer].weight.float())
        lengths = [s.length for s in samples]
        by_place = [t.flatten(0, -2).split(lengths) for t in (logits, weights, used)]
        for row, answer in enumerate(answers):
            experts = torch.from_numpy(answer[:, layer].astype(np.int64))
            logits_tE, weights_tE, used_tE = (t[row][: len(answer)] for t in by_place)
            expected = torch.zeros_like(used_tE).scatter(1, experts, True)
            assert torch.equal(used_tE, expected)
            torch.testing.assert_close(weights_tE.gather(1, experts), weights_of(logits_tE, experts, options))
    found = replay.take_counts()
    tokens = sum(len(answer) for answer in answers)
    assert found.replayed == tokens * len(shape.moe_layers)
    assert found.wrong == 0
    assert found.free == len(samples) * len(shape.moe_layers)
    assert found.would_differ > 0.9 * found.replayed


@pytest.mark.parametrize("name", in_default(ROUTERS, "sigmoid, 9 bits"))
def test_an_engines_answer_reaches_megatrons_routers(name: str) -> None:
    run_world(1, _replays, ROUTERS[name], "flags")


def test_layers_without_experts_may_lie_anywhere() -> None:
    run_world(1, _replays, ROUTERS["sqrtsoftplus, 9 bits"], "step, dense alone")
