"""Weights of Qwen3-30B-A3B's shape (61 GB) from one trainer GPU into one SGLang engine: each way beside raw NCCL.

    python benchmarks/gpu/weight_sync.py --out results/ [--layers 48] [--only REGEX]

On a machine with two GPUs. The trainer's side is a rank's memory in Megatron's layout with random weights; the
engine is a real server with dummy weights. Correct first: the checksum kernel against the CPU, then after the first
transfer every engine tensor against the trainer's, by the engine's own loader. Then seconds of `reshard` (idle and
with requests in flight, several bucket sizes), of `broadcast`, of SGLang's own path as others use it (1 GiB buckets,
flattened and not), and of NCCL alone over the same link. `--device cpu --layers 2` tries the script itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import statistics
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import msgspec
import torch

from benchmarks.gpu.one_trainer_one_engine import machine
from benchmarks.gpu.raw_links import measure as raw_links
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.messages.weight_round import Bucket, EngineLink
from verst.runtime.rollout.config import RolloutConfig, SamplingConfig
from verst.runtime.rollout.engine.engine import Engine
from verst.runtime.rollout.weight_receiver import WeightReceiver
from verst.sync.layout.blocks import held_blocks
from verst.sync.layout.layout import Layout, ParallelSizes, Piece
from verst.sync.layout.mapping import family_for
from verst.sync.layout.plan import ALIGN
from verst.sync.links.block_link import BlockLink
from verst.sync.links.broadcast import EngineGroup, broadcast
from verst.sync.wire.checksum import segment_checksums
from verst.sync.wire.groups import NCCL_ENVIRONMENT, Operation, Source, join
from verst.sync.wire.wire import Slots

GIB = 1 << 30
_TIMEOUT_S = 200.0


class TrainerRank:
    """The memory of a trainer of one rank: parameters as Megatron keeps them, with random values."""

    def __init__(self, config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        layout = Layout(family_for(config), config, ParallelSizes(), 0)
        generator = torch.Generator(device).manual_seed(1)
        self.pairs = []
        for local in layout.parameters:
            parameter = torch.empty(local.shape, dtype=dtype, device=device)
            self.pairs.append((local, parameter.normal_(std=0.02, generator=generator)))
        self.blocks, self.parameters = held_blocks(self.pairs)
        self.nbytes = sum(p.numel() * p.element_size() for p in self.parameters)

    def pieces(self) -> Iterator[tuple[Piece, torch.Tensor]]:
        """Each Hugging Face tensor (here always whole) and the parameter that holds it."""
        for local, parameter in self.pairs:
            for piece in local.pieces:
                yield piece, parameter

    def buckets(self, bucket_bytes: int) -> Iterator[list[tuple[Piece, torch.Tensor]]]:
        """Whole tensors, as many as fit."""
        bucket: list[tuple[Piece, torch.Tensor]] = []
        size = 0
        for piece, parameter in self.pieces():
            nbytes = piece.numel * parameter.element_size()
            if bucket and size + nbytes > bucket_bytes:
                yield bucket
                bucket, size = [], 0
            bucket.append((piece, parameter))
            size += nbytes
        yield bucket


class Session:
    """The engine, the trainer's memory and the groups between them."""

    def __init__(self, engine: Engine, trainer: TrainerRank, backend: str) -> None:
        self.engine, self.trainer = engine, trainer
        self.receiver = WeightReceiver(engine)
        self.backend: Any = backend
        self.source = Source("127.0.0.1")
        self.version = 0

    async def link_blocks(
        self, bucket_bytes: int, double_buffer: bool = False
    ) -> tuple[EngineLink, BlockLink, dict[str, float]]:
        began = time.monotonic()
        link = self._link("blocks", bucket_bytes, double_buffer)
        joined = asyncio.create_task(self.receiver.open_link(link))
        operation = BlockLink.open(
            engine=0,
            host=link.host,
            port=link.port,
            name=link.name,
            rank=0,
            trainer_ranks=1,
            engine_ranks=1,
            backend=self.backend,
            bucket_bytes=bucket_bytes,
            timeout_s=_TIMEOUT_S,
            blocks=self.trainer.blocks,
            parameters=self.trainer.parameters,
            slots=Slots(),
        )
        await done(operation)
        await joined
        blocks = operation.result()
        return link, blocks, {"link_s": time.monotonic() - began, "buckets": blocks.plan.buckets}

    async def send_blocks(self, link: EngineLink, blocks: BlockLink) -> dict[str, float]:
        self.version += 1
        began = time.monotonic()
        receiving = asyncio.create_task(
            self.receiver.receive_blocks(self.version, "in_place", _TIMEOUT_S, go_on=True)
        )
        await asyncio.sleep(0)
        await done(blocks.start(self.version, time.monotonic() + _TIMEOUT_S))
        taken = await receiving
        found = {f"{phase}_s": value for phase, value in msgspec.to_builtins(taken).items()}
        return found | {"round_s": time.monotonic() - began}

    async def join_tensors(self) -> tuple[EngineLink, Any]:
        link = self._link("tensors", 0)
        joined = asyncio.create_task(self.engine.init_weights_group(link))
        backend = await asyncio.to_thread(join, link.host, link.port, link.name, 0, 2, self.backend)
        await joined
        return link, backend

    def _link(self, carries: Any, bucket_bytes: int, double_buffer: bool = False) -> EngineLink:
        return EngineLink(
            engine=0,
            host="127.0.0.1",
            port=self.source.port,
            name=f"{carries}-{uuid.uuid4().hex[:8]}",
            carries=carries,
            engine_ranks=1,
            backend=self.backend,
            bucket_bytes=bucket_bytes,
            double_buffer=double_buffer,
            timeout_s=_TIMEOUT_S,
        )

    async def whole_tensors(
        self, link: EngineLink, group: EngineGroup, bucket_bytes: int, compare: bool
    ) -> float:
        """One pass of `broadcast`, or of the comparison; seconds."""
        began = time.monotonic()
        buckets = list(self.trainer.buckets(bucket_bytes))
        if not compare:
            self.version += 1
        for index, bucket in enumerate(buckets):
            tensors = [piece.read(parameter) for piece, parameter in bucket]
            message = Bucket(
                version=self.version,
                index=index,
                names=[piece.hf for piece, _ in bucket],
                dtypes=[str(t.dtype).removeprefix("torch.") for t in tensors],
                shapes=[list(t.shape) for t in tensors],
                last=index == len(buckets) - 1,
            )
            call = self.engine.compare if compare else self.engine.receive
            answer = asyncio.create_task(call(message, link.name))
            await asyncio.sleep(0)
            reasons = await asyncio.to_thread(
                broadcast, {0: group}, tensors, time.monotonic() + _TIMEOUT_S, {0: lambda: None}
            )
            assert not reasons, reasons
            found = await answer
            if compare:
                assert found.equal, found
        return time.monotonic() - began

    async def flattened(self, link: EngineLink, group: EngineGroup, bucket_bytes: int) -> float:
        """SGLang's own bucketed path: one flat tensor a bucket; seconds."""
        began = time.monotonic()
        for bucket in self.trainer.buckets(bucket_bytes):
            flat = torch.cat([piece.read(parameter).flatten() for piece, parameter in bucket])
            flat = flat.view(torch.uint8)
            body = {
                "names": [piece.hf for piece, _ in bucket],
                "dtypes": [str(p.dtype).removeprefix("torch.") for _, p in bucket],
                "shapes": [list(piece.hf_shape) for piece, _ in bucket],
                "group_name": link.name,
                "flush_cache": False,
                "load_format": "flattened_bucket",
            }
            answer = asyncio.create_task(
                self.engine._client.post("/update_weights_from_distributed", body, _TIMEOUT_S)
            )
            await asyncio.sleep(0)
            reasons = await asyncio.to_thread(
                broadcast, {0: group}, [flat], time.monotonic() + _TIMEOUT_S, {0: lambda: None}
            )
            assert not reasons, reasons
            await answer
        return time.monotonic() - began


async def generate(engine: Engine, requests: int, tokens: int) -> None:
    """That many requests at once."""
    sampling = SamplingConfig(max_new_tokens=tokens)
    await asyncio.gather(*(engine.generate([5] * 64, sampling, seed) for seed in range(requests)))


async def done(operation: Operation[Any]) -> None:
    """Waits off the event loop."""
    reason = await asyncio.to_thread(operation.wait, time.monotonic() + _TIMEOUT_S, lambda: None)
    assert reason is None, reason


def checksums_agree(device: torch.device) -> bool:
    """The GPU's kernel and the CPU's formula, on random bytes."""
    slot = torch.randint(0, 256, (1000 * ALIGN,), dtype=torch.uint8)
    rows = torch.tensor([[0, 1], [1, 400], [400, 1000], [7, 9]])
    there = segment_checksums(slot.to(device), rows.to(device))
    return torch.equal(there.cpu(), segment_checksums(slot, rows))


class Figures:
    """Written after each measurement, so that a run cut short still leaves what it measured."""

    def __init__(self, path: Path, only: str, first: dict[str, Any]) -> None:
        self.path, self.only, self.all = path, re.compile(only), first

    async def add(self, name: str, measure: Callable[[], Awaitable[Any]]) -> None:
        """Measures and writes, unless it was not asked for."""
        if not self.only.search(name):
            return
        began = time.monotonic()
        self.all[name] = await measure()
        print(f"{name}: {json.dumps(self.all[name])} ({time.monotonic() - began:.1f} s)", flush=True)
        self.path.write_text(json.dumps(self.all, indent=1) + "\n")


async def session(
    options: argparse.Namespace, figures: Figures, config: dict[str, Any], folder: Path
) -> None:
    """Everything that needs the engine."""
    cuda = options.device == "cuda"
    began = time.monotonic()
    engine = await start_engine(options, folder)
    figures.all["engine_start_s"] = time.monotonic() - began
    try:
        device = torch.device("cuda:0" if cuda else "cpu")
        trainer = TrainerRank(config, device, torch.bfloat16 if cuda else torch.float32)
        figures.all["bytes"] = trainer.nbytes
        print(
            f"engine up after {figures.all['engine_start_s']:.0f} s, {trainer.nbytes / 1e9:.2f} GB",
            flush=True,
        )
        await measure(Session(engine, trainer, "nccl" if cuda else "gloo"), figures, options)
    finally:
        await engine.stop()


async def measure(s: Session, figures: Figures, options: argparse.Namespace) -> None:
    """All figures of one engine."""
    gigabytes = s.trainer.nbytes / 1e9
    tensor_link, backend = await s.join_tensors()
    group = EngineGroup("engine", backend)

    async def reshard(
        bucket_bytes: int, check: bool = False, requests: int = 0, double_buffer: bool = False
    ) -> dict[str, Any]:
        link, blocks, about = await s.link_blocks(bucket_bytes, double_buffer)
        rounds: list[dict[str, Any]] = [await s.send_blocks(link, blocks)]
        if check:
            await s.engine.pause("in_place")
            about["compare_s"] = await s.whole_tensors(tensor_link, group, GIB, compare=True)
            await s.engine.resume()
            about["every_tensor_equal"] = True
        if requests:  # the first ones compile kernels, and a pause waits for the batch that does
            await generate(s.engine, requests, 64)
        generating = asyncio.create_task(generate(s.engine, requests, 1024))
        for _ in range(options.rounds):
            if requests:
                await asyncio.sleep(0.3)
            rounds.append(await s.send_blocks(link, blocks))
        await generating
        warm = rounds[1:]
        about |= {key: statistics.median(r[key] for r in warm) for key in warm[0]}
        about["gb_per_s"] = gigabytes / about["transfer_s"]
        about["best_gb_per_s"] = gigabytes / min(r["transfer_s"] for r in warm)
        about["rounds"] = rounds
        blocks.abandon()
        return about

    async def passes(one: Callable[[], Awaitable[float]]) -> dict[str, Any]:
        await s.engine.pause("in_place")
        seconds = [await one() for _ in range(3)]
        await s.engine.resume()
        return {"seconds": seconds, "gb_per_s": gigabytes / min(seconds[1:])}

    small = options.bucket_bytes
    await figures.add("reshard", lambda: reshard(small, check=True))
    await figures.add("reshard_half_bucket", lambda: reshard(small // 2))
    await figures.add("reshard_quarter_bucket", lambda: reshard(small // 4))
    await figures.add("reshard_double_bucket", lambda: reshard(small * 2))
    await figures.add("reshard_32_requests", lambda: reshard(small, requests=32))
    await figures.add(
        "double_buffer_32_requests", lambda: reshard(small, check=True, requests=32, double_buffer=True)
    )
    await figures.add(
        "broadcast", lambda: passes(lambda: s.whole_tensors(tensor_link, group, GIB // 2, compare=False))
    )
    await figures.add(
        "stock_1gib", lambda: passes(lambda: s.whole_tensors(tensor_link, group, GIB, compare=False))
    )
    await figures.add("stock_1gib_flattened", lambda: passes(lambda: s.flattened(tensor_link, group, GIB)))


async def start_engine(options: argparse.Namespace, folder: Path) -> Engine:
    """A server with dummy weights, on the second GPU."""
    cuda = options.device == "cuda"
    sglang: dict[str, Any] = {"load-format": "dummy", "disable-cuda-graph": True, "grammar-backend": "none"}
    if cuda:
        sglang |= {"attention-backend": "triton", "sampling-backend": "pytorch", "mem-fraction-static": 0.5}
        os.environ["CUDA_VISIBLE_DEVICES"] = "1"  # of processes started from now on
    model = ModelConfig(path=str(folder), dtype="bfloat16" if cuda else "float32")
    settings = RolloutConfig(reward="unused:here", concurrency=64, start_timeout_s=400, sglang=sglang)
    return await Engine.start(
        model, settings, log=folder / "engine.log", routing=False, seed=1, device=options.device
    )


def prepare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """config.json and a tokenizer; no weights."""
    import transformers as hf

    from verst.runtime.data.models import character_tokenizer

    config = hf.Qwen3MoeConfig(
        vocab_size=151_936 if options.device == "cuda" else 1024,
        max_position_embeddings=40_960,
        head_dim=128,
        rope_theta=1_000_000,
        tie_word_embeddings=False,
        hidden_size=2048,
        intermediate_size=6144,
        num_attention_heads=32,
        num_key_value_heads=4,
        num_experts=128 if options.device == "cuda" else 8,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        norm_topk_prob=True,
        num_hidden_layers=options.layers,
        architectures=["Qwen3MoeForCausalLM"],
    )
    config.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return config.to_dict()


def main() -> None:
    """Writes the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bucket-bytes", type=int, default=GIB // 2)
    parser.add_argument("--only", default=".")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    os.environ.update(NCCL_ENVIRONMENT)
    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.out / "model"
    config = prepare(folder, options)
    first: dict[str, Any] = {"layers": options.layers, **machine()}
    if options.device == "cuda":
        first["raw"] = raw_links()
        print(json.dumps(first["raw"]), flush=True)
        first["checksums_agree_with_cpu"] = checksums_agree(torch.device("cuda:0"))
        assert first["checksums_agree_with_cpu"]
    figures = Figures(options.out / "weight_sync.json", options.only, first)
    asyncio.run(session(options, figures, config, folder))
    (folder / "engine.log").rename(options.out / "engine.log")


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
