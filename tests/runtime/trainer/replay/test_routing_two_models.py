"""The promise: models in one process replay their own routing, whatever the others do.

That includes Megatron's own replay.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.runtime.trainer.tiny_models import MOE_LAYERS, ROUTING, make_samples, save_model
from tests.sync.world import World, run_world


def test_models_of_one_process_do_not_disturb_one_another(tmp_path: Path) -> None:
    """Two models interleave forward passes and recomputations.

    Meanwhile Megatron's process-wide recording runs on a third model.
    """
    save_model("qwen3_moe", tmp_path / "model")
    run_world(1, _interleaved, tmp_path / "model")


def _interleaved(rank: int, world: int, store: str, folder: Path) -> None:
    megatron = World(rank, world, store)
    from megatron.core.transformer.moe.router_replay import RouterReplay, RouterReplayAction

    args, config = _arguments(megatron, folder)
    stranger = _model(args, config, folder)
    theirs = list(RouterReplay.global_router_replay_instances)
    assert len(theirs) == MOE_LAYERS
    models = [_Replayed(_model(args, config, folder), config, megatron.parallel, seed) for seed in (0, 1)]
    assert RouterReplay.global_router_replay_instances == theirs

    alone = []
    for model in models:
        outcome = model.forward()
        outcome.sum().backward()
        alone.append((outcome.detach().clone(), model.finish()))

    first = models[0].forward()
    RouterReplay.set_global_router_replay_action(RouterReplayAction.RECORD)
    models[0].call(stranger[0])
    _, topk = ROUTING["qwen3_moe"]
    tokens = models[0].batch.tokens.numel()
    assert [tuple(r.shape) for r in RouterReplay.get_recorded_data()] == [(tokens, topk)] * MOE_LAYERS
    second = models[1].forward()
    first.sum().backward()
    RouterReplay.clear_global_indices()
    second.sum().backward()
    assert not torch.equal(first, second), "the two models are given different experts"
    for model, outcome, (expected, gates) in zip(models, (first, second), alone, strict=True):
        assert torch.equal(outcome, expected)
        assert all(torch.equal(a, b) for a, b in zip(model.finish(), gates, strict=True))


def _arguments(megatron: World, folder: Path) -> tuple[Any, Any]:
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from verst.runtime.trainer.model.arguments import parse
    from verst.sync.hf.folder import read_config
    from verst.sync.layout.mapping import family_for

    hf_config = read_config(folder)
    recompute = {
        "recompute-granularity": "full",
        "recompute-method": "uniform",
        "recompute-num-layers": 1,
        "use-cpu-initialization": True,
    }
    shape = family_for(hf_config).megatron_args(hf_config)
    args, config = parse(recompute, 1, shape, dtype="float32", train_steps=2, routing_replay=True)
    megatron.parallel.split(args)
    model_parallel_cuda_manual_seed(args.seed, force_reset_rng=True)
    return args, config


def _model(args: Any, config: Any, folder: Path) -> list[Any]:
    from verst.runtime.trainer.model.model import build_chunks
    from verst.sync.hf.folder import import_weights, read_config
    from verst.sync.layout.binding import bind
    from verst.sync.layout.layout import Layout, ParallelSizes
    from verst.sync.layout.mapping import family_for

    chunks = build_chunks(args, config)
    hf_config = read_config(folder)
    import_weights(
        folder, bind(Layout(family_for(hf_config), hf_config, ParallelSizes.from_arguments(args), 0), chunks)
    )
    return list(chunks)


class _Replayed:
    """A model with its own replay and a micro-batch whose experts depend on the seed."""

    def __init__(self, chunks: list[Any], config: Any, parallel: Any, seed: int) -> None:
        from verst.runtime.messages.step_plan import MicroBatch, SampleRef
        from verst.runtime.trainer.replay.routing import RoutingReplay
        from verst.runtime.trainer.share.batch import Collator
        from verst.runtime.trainer.share.routing import cut_all

        self._chunk = chunks[0]
        self._replay = RoutingReplay(chunks, config, parallel)
        samples = make_samples(None, "qwen3_moe")[:4]
        if seed:  # the same experts counted from the last
            samples = [_with_experts(s, 7 - s.routing) for s in samples if s.routing is not None]
        refs = [SampleRef(s.group, s.index, 0, s.length, 0.0, 0.0) for s in samples]
        by_name = {(s.group, s.index): s for s in samples}
        entries = cut_all(self._replay.share, [MicroBatch(refs)], by_name, self._replay.entry)[0]
        collate = Collator(0, 1, 1, torch.device("cpu"), self._replay.share)
        self.batch = collate(samples, None, entries)
        self._expected = sum(s.length - 1 for s in samples) * MOE_LAYERS

    def forward(self) -> torch.Tensor:
        self._chunk.zero_grad_buffer()
        self._replay.begin_step()
        self._replay.start([self.batch])
        self._replay.load(self._chunk, self.batch)
        return self.call(self._chunk)

    def call(self, chunk: Any) -> torch.Tensor:
        """Runs a model on the micro-batch."""
        from verst.runtime.trainer.model.packed_sequences import PackedSequences

        packed = PackedSequences(self.batch.padded_lengths, self.batch.position_ids[0])
        return chunk(self.batch.tokens, self.batch.position_ids, None, packed_seq_params=packed)

    def finish(self) -> list[torch.Tensor]:
        """Ends the pass, checks the counts, and returns the gradients of the gates."""
        self._replay.finish()
        counts = self._replay.take_counts()
        assert (counts.replayed, counts.recomputed, counts.wrong) == (self._expected, self._expected, 0)
        gates = [p for name, p in self._chunk.named_parameters() if name.endswith("router.weight")]
        assert all(float(gate.main_grad.norm()) > 0 for gate in gates)
        return [gate.main_grad.clone() for gate in gates]


def _with_experts(sample: Any, routing: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(sample, routing=routing)
