"""Weights of Qwen3-30B-A3B's shape (61 GB) from several trainer ranks to several engine ranks on two GPUs.

    python benchmarks/gpu/weight_layouts.py --out results/ --case tp2_to_tp2

Each GPU has trainer ranks and engine ranks together, which NCCL refuses: the link is `ipc`, over NVLink where a
block's two ends are on different GPUs. The engines are real servers with dummy weights, the trainer's ranks are
threads with a rank's memory in Megatron's layout. Correct first: every checksum, and the embeddings, the head and the
first layers against the trainer's whole tensors, by the engine's own loader. `--device cpu --layers 2` tries it.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import sys
import time
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import msgspec
import torch

from benchmarks.gpu.one_trainer_one_engine import machine
from benchmarks.gpu.weight_sync import GIB, Figures, done, generate, prepare
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.messages.weight_round import Bucket, EngineLink
from verst.runtime.rollout.config import RolloutConfig
from verst.runtime.rollout.engine.engine import Engine
from verst.runtime.rollout.weight_receiver import WeightReceiver
from verst.sync.layout.blocks import held_blocks
from verst.sync.layout.layout import Layout, ParallelSizes, Piece
from verst.sync.layout.mapping import family_for
from verst.sync.links.block_link import BlockLink
from verst.sync.links.broadcast import EngineGroup, broadcast
from verst.sync.wire.groups import NCCL_ENVIRONMENT, Source, join
from verst.sync.wire.wire import Slots

_TIMEOUT_S = 200.0
PHASES = ("pause", "transfer", "load", "resume", "stopped")
_COMPARED = ("model.embed_tokens.", "model.norm.", "lm_head.", "model.layers.0.", "model.layers.1.")


@dataclass(frozen=True)
class Case:
    """A layout. `engines`: SGLang's options of each; `gpu`: by engine, where it begins."""

    trainer: ParallelSizes
    engines: tuple[dict[str, Any], ...]
    gpu: tuple[int, ...] = (0,)
    memory: float = 0.45
    room: bool = False  # for a second buffer

    @property
    def engine_ranks(self) -> int:
        """Of each."""
        return int(self.engines[0].get("tp-size", 1))


CASES = {
    "colocated": Case(ParallelSizes(world=1), ({},), memory=0.44),
    "tp2_to_tp2": Case(ParallelSizes(world=2, tp=2), ({"tp-size": 2},), room=True),
    "ep2_to_ep2": Case(ParallelSizes(world=2, ep=2), ({"tp-size": 2, "ep-size": 2},), room=True),
    "two_to_two": Case(ParallelSizes(world=2, ep=2), ({}, {}), gpu=(0, 1), memory=0.5),
}


class Rank:
    """A trainer rank's memory; each Hugging Face tensor's values follow from its name."""

    def __init__(self, config: dict[str, Any], sizes: ParallelSizes, rank: int, cuda: bool) -> None:
        device = torch.device(f"cuda:{rank % torch.cuda.device_count()}" if cuda else "cpu")
        self.dtype = torch.bfloat16 if cuda else torch.float32
        pairs = []
        for local in Layout(family_for(config), config, sizes, rank).parameters:
            parameter = torch.empty(local.shape, dtype=self.dtype, device=device)
            for piece in local.pieces:
                whole = values(piece, self.dtype, device)
                piece.write(parameter, whole.narrow(piece.dim, piece.start, piece.length))
            pairs.append((local, parameter))
        self.blocks, self.parameters = held_blocks(pairs)
        self.slots = Slots()


def values(piece: Piece, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The whole Hugging Face tensor."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(piece.hf.encode()))
    return torch.empty(piece.hf_shape, dtype=dtype, device=device).normal_(std=0.02, generator=generator)


class Linked:
    """One engine, linked with every trainer rank."""

    version = 0  # the same for all

    def __init__(self, number: int, engine: Engine, ranks: list[Rank], source: Source, case: Case) -> None:
        self.number, self.engine, self.ranks, self.source, self.case = number, engine, ranks, source, case
        self.receiver = WeightReceiver(engine)
        self.links: list[BlockLink] = []

    async def open(self, bucket_bytes: int, double_buffer: bool) -> None:
        for old in self.links:
            old.abandon()
        link = self._link("blocks", len(self.ranks), bucket_bytes, double_buffer)
        joined = asyncio.create_task(self.receiver.open_link(link))
        operations = [
            BlockLink.open(
                engine=self.number,
                host=link.host,
                port=link.port,
                name=link.name,
                rank=number,
                trainer_ranks=len(self.ranks),
                engine_ranks=link.engine_ranks,
                backend="gloo",
                shared=True,
                bucket_bytes=bucket_bytes,
                timeout_s=_TIMEOUT_S,
                blocks=rank.blocks,
                parameters=rank.parameters,
                slots=rank.slots if self.number == 0 else Slots(),
            )
            for number, rank in enumerate(self.ranks)
        ]
        for operation in operations:
            await done(operation)
        await joined
        self.links = [operation.result() for operation in operations]

    async def send(self, version: int) -> dict[str, float]:
        """Seconds by phase."""
        receiving = asyncio.create_task(
            self.receiver.receive_blocks(version, "in_place", _TIMEOUT_S, go_on=True)
        )
        await asyncio.sleep(0)
        deadline = time.monotonic() + _TIMEOUT_S
        for operation in [link.start(version, deadline) for link in self.links]:
            await done(operation)
        return msgspec.to_builtins(await receiving)

    async def compare(self, config: dict[str, Any], cuda: bool) -> int:
        """Whole tensors of some layers against the engine's; how many. Raises AssertionError."""
        link = self._link("tensors", 1, 0)
        joined = asyncio.create_task(self.receiver.open_link(link))
        size = 1 + link.engine_ranks
        group = await asyncio.to_thread(join, link.host, link.port, link.name, 0, size, "gloo")
        await joined
        pieces = [
            p for x in Layout(family_for(config), config, ParallelSizes(), 0).parameters for p in x.pieces
        ]
        pieces = [p for p in pieces if p.hf.startswith(_COMPARED)]
        device = torch.device("cuda:0" if cuda else "cpu")
        tensors = [values(p, self.ranks[0].dtype, device).cpu() for p in pieces]
        message = Bucket(
            version=1,
            index=0,
            names=[p.hf for p in pieces],
            dtypes=[str(t.dtype).removeprefix("torch.") for t in tensors],
            shapes=[list(t.shape) for t in tensors],
            last=True,
        )
        await self.engine.pause("in_place")
        answer = asyncio.create_task(self.engine.compare(message, link.name))
        await asyncio.sleep(0)
        ends = {0: EngineGroup("engine", group)}
        deadline = time.monotonic() + _TIMEOUT_S
        reasons = await asyncio.to_thread(broadcast, ends, tensors, deadline, {0: lambda: None})
        assert not reasons, reasons
        found = await answer
        await self.engine.resume()
        assert found.unequal_tensors == 0, found.unequal
        split = sum(".experts." in p.hf for p in pieces) // int(self.case.engines[0].get("ep-size", 1))
        wanted = split + sum(".experts." not in p.hf for p in pieces)  # a rank loads its own experts
        assert found.tensors == wanted, (found.tensors, wanted)
        return found.tensors

    def _link(
        self, carries: Any, trainer_ranks: int, bucket_bytes: int, double_buffer: bool = False
    ) -> EngineLink:
        return EngineLink(
            engine=self.number,
            host="127.0.0.1",
            port=self.source.port,
            name=f"{carries}-{uuid.uuid4().hex[:8]}",
            carries=carries,
            trainer_ranks=trainer_ranks,
            engine_ranks=self.case.engine_ranks,
            backend="gloo",
            shared=carries == "blocks",
            double_buffer=double_buffer,
            bucket_bytes=bucket_bytes,
            timeout_s=_TIMEOUT_S,
        )


async def start(case: Case, number: int, options: argparse.Namespace, folder: Path) -> Engine:
    """An engine with dummy weights."""
    cuda = options.device == "cuda"
    sglang: dict[str, Any] = {"load-format": "dummy", "disable-cuda-graph": True, "grammar-backend": "none"}
    if cuda:
        sglang |= {
            "attention-backend": "triton",
            "sampling-backend": "pytorch",
            "base-gpu-id": case.gpu[number],
        }
        sglang |= {"mem-fraction-static": case.memory}
    model = ModelConfig(path=str(folder), dtype="bfloat16" if cuda else "float32")
    settings = RolloutConfig(
        reward="unused:here", concurrency=64, start_timeout_s=400, sglang=sglang | case.engines[number]
    )
    log = folder / f"engine-{number}.log"
    return await Engine.start(model, settings, log=log, routing=False, seed=1, device=options.device)


async def run(options: argparse.Namespace, figures: Figures, config: dict[str, Any], folder: Path) -> None:
    """One case."""
    case, cuda = CASES[options.case], options.device == "cuda"
    began = time.monotonic()
    engines = await asyncio.gather(*(start(case, n, options, folder) for n in range(len(case.engines))))
    try:
        print(f"engines up after {time.monotonic() - began:.0f} s", flush=True)
        ranks = [Rank(config, case.trainer, rank, cuda) for rank in range(case.trainer.world)]
        source = Source("127.0.0.1")
        linked = [Linked(n, engine, ranks, source, case) for n, engine in enumerate(engines)]
        await figures.add("idle", lambda: measure(linked, options, config))
        await figures.add("32_requests", lambda: measure(linked, options, config, requests=32))
        if case.room:
            await figures.add(
                "double_buffer_32_requests",
                lambda: measure(linked, options, config, requests=32, double_buffer=True),
            )
    finally:
        for engine in engines:
            await engine.stop()


async def measure(
    linked: list[Linked],
    options: argparse.Namespace,
    config: dict[str, Any],
    requests: int = 0,
    double_buffer: bool = False,
) -> dict[str, Any]:
    """Seconds of a round to all engines at once; what crosses each link."""
    began = time.monotonic()
    for one in linked:
        await one.open(options.bucket_bytes, double_buffer)
    about: dict[str, Any] = {"link_s": time.monotonic() - began}
    rounds = [await one_round(linked)]
    about["tensors_equal"] = [await one.compare(config, options.device == "cuda") for one in linked]
    if requests:  # the first ones compile kernels, and a pause waits for the batch that does
        await asyncio.gather(*(generate(one.engine, requests, 64) for one in linked))
    generating = asyncio.gather(*(generate(one.engine, requests, 300) for one in linked))
    for _ in range(options.rounds):
        await asyncio.sleep(0.3 if requests else 0)
        rounds.append(await one_round(linked))
    await generating
    nbytes = sum(one.links[0].plan.nbytes for one in linked)
    warm = rounds[1:]
    seconds = {key: statistics.median(max(e[key] for e in r["engines"]) for r in warm) for key in PHASES}
    return about | {
        "bytes": nbytes,
        "seconds": seconds,
        "gb_per_s": nbytes / seconds["transfer"] / 1e9,
        "link_bytes": {one.number: one.links[0].plan.link_bytes for one in linked},
        "rounds": rounds,
    }


async def one_round(linked: list[Linked]) -> dict[str, Any]:
    """A version to every engine."""
    Linked.version += 1
    began = time.monotonic()
    taken = await asyncio.gather(*(one.send(Linked.version) for one in linked))
    return {"round_s": time.monotonic() - began, "engines": taken}


def main() -> None:
    """Writes the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bucket-bytes", type=int, default=GIB // 2)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    os.environ.update(NCCL_ENVIRONMENT)
    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.out / "model"
    config = prepare(folder, options)
    first: dict[str, Any] = {"layers": options.layers, **machine()}
    figures = Figures(options.out / f"weight_layouts_{options.case}.json", ".", first)
    try:
        asyncio.run(run(options, figures, config, folder))
    finally:
        for log in folder.glob("engine-*.log"):
            log.rename(options.out / f"{options.case}-{log.name}")


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
