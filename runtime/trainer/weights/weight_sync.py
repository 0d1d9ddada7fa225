"""Runs a weight round on the trainer's ranks: connect, transfer, compare if asked to, report the failures.

All ranks run it, but only rank 0 talks to the engines' workers. An engine that refuses, dies or misses the
deadline is reported and left out of the rest of the round. The other engines continue.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from verst.runtime.actors import Member
from verst.runtime.messages.weight_round import RoundReport, WeightRound
from verst.runtime.metrics.trace import Tracer
from verst.runtime.trainer.trainer import Trainer
from verst.runtime.trainer.weights.block_transport import BlockTransport
from verst.runtime.trainer.weights.folder_transport import FolderTransport
from verst.runtime.trainer.weights.source_round import Engines, SourceRound, timed
from verst.runtime.trainer.weights.tensor_transport import TensorTransport
from verst.sync.config import WeightsConfig
from verst.sync.hf.export import export
from verst.sync.hf.folder import read_config
from verst.sync.links.converted_share import ConvertedShare
from verst.sync.links.engine_format import EngineFormat
from verst.sync.links.gather import SOURCE, Gather, whole_tensors
from verst.sync.links.whole_share import WholeShare
from verst.sync.wire.groups import Source


class WeightSync:
    """Sends this trainer's weights to engines, or exports them. Creating one is collective over the world."""

    def __init__(
        self,
        trainer: Trainer,
        member: Member,
        config: WeightsConfig,
        model_path: str,
        engine_path: str,
        dtype: torch.dtype,
        trace: Tracer,
        versions: Path,
    ) -> None:
        """`engine_path` is the model folder, in the engines' format, that engines load when they start.

        `versions` is the root folder of versions for the transports `disk` and `delta`.
        """
        self._model_path = model_path
        self._trace = trace
        self._engines = Engines(member)
        self._is_source = trainer.parallel.rank == SOURCE
        self._bound, self._bucket_bytes, self._dtype = trainer.model.bound, config.bucket_bytes, dtype
        self._gather = Gather(trainer.model.bound, config.bucket_bytes, dtype)
        source = Source(member.info.host) if self._is_source else None
        backend = _link_backend(config, trainer)
        tensors: Literal["gloo", "nccl"] = "nccl" if backend == "nccl" else "gloo"
        shapes = whole_tensors(trainer.model.bound.layout)
        format = EngineFormat(read_config(engine_path), shapes)
        self._whole = TensorTransport(self._gather, format, self._engines, source, tensors)
        self._folder = None
        if config.transport in ("disk", "delta"):
            share = WholeShare(trainer.model.bound, format.grouped(shapes), config.bucket_bytes, dtype)
            self._folder = FolderTransport(share, format, config, versions, Path(engine_path))
        self._blocks = None
        if config.transport == "reshard":
            self._blocks = BlockTransport(
                trainer.model.bound,
                trainer.parallel,
                self._engines,
                source,
                backend,
                config.bucket_bytes,
                config.double_buffer,
                ConvertedShare(trainer.model.bound, format, config.bucket_bytes, dtype)
                if format.converts
                else None,
            )

    def export(self, path: Path) -> None:
        """Writes a Hugging Face folder, replacing an earlier one. Collective over the world."""
        if self._is_source and path.exists():
            shutil.rmtree(path)
        export(self._bound, self._bucket_bytes, self._dtype, self._model_path, path)

    def round(self, request: WeightRound) -> RoundReport:
        """Runs one round. Collective over the world.

        Only rank 0's report has figures; the others' are empty.
        """
        source = SourceRound(request, self._engines, self._forget) if self._is_source else None
        try:
            if self._blocks is not None:
                self._send_blocks(self._blocks, request, source)
            elif self._folder is not None:
                self._send_version(self._folder, request, source)
            else:
                self._send_tensors(request, source)
        finally:
            self._trace.flush()
        if source is None:
            return RoundReport(version=request.version, updated=[], failed={}, bytes=0, seconds={})
        return source.report()

    def _send_tensors(self, request: WeightRound, source: SourceRound | None) -> None:
        span = partial(self._trace.span, version=request.version)
        with span("connect"), timed(source, "connect"):
            self._whole.connect(source)
        if source is not None:
            with span("pause"):
                source.pause()
        with span("transfer", buckets=self._whole.buckets) as about:
            self._whole.transfer(source)
            about |= {} if source is None else {f"{k}_s": source.seconds[k] for k in ("gather", "transfer")}
        if request.check:
            self._compare(request, source)
        if source is not None:
            with span("resume"):
                source.resume()

    def _send_blocks(self, blocks: BlockTransport, request: WeightRound, source: SourceRound | None) -> None:
        span = partial(self._trace.span, version=request.version)
        with span("connect"), timed(source, "connect"):
            blocks.connect(source)
        if blocks.converts:
            with span("convert"), timed(source, "convert"):
                blocks.convert()
        # Each engine pauses by itself just before its turn, and resumes by itself unless it will be compared.
        with span("transfer") as about:
            with timed(source, "transfer"):
                blocks.transfer(source)
            if source is not None:
                about |= {"bytes": source.bytes, "links": source.report().links()}
        self._compare_if_asked(request, source)

    def _send_version(
        self, folder: FolderTransport, request: WeightRound, source: SourceRound | None
    ) -> None:
        if not request.engines:
            return
        span = partial(self._trace.span, version=request.version)
        with span("write"):
            folder.publish(request.version, source)
        # Each engine pauses by itself after it has read the version, and resumes by itself as with blocks.
        if source is not None:
            with span("load"):
                folder.load(source)
        self._compare_if_asked(request, source)

    def _compare_if_asked(self, request: WeightRound, source: SourceRound | None) -> None:
        """Compares and resumes, if the round asks for it; engines stay paused until then."""
        if request.check:
            self._compare(request, source)
            if source is not None:
                with self._trace.span("resume", version=request.version):
                    source.resume()

    def _compare(self, request: WeightRound, source: SourceRound | None) -> None:
        """Compares whole tensors bit for bit with the engines' own, through the engines' loaders."""
        with self._trace.span("check", version=request.version):
            self._whole.connect(source)
            self._whole.transfer(source, compare=True)

    def _forget(self, engine: int) -> None:
        self._whole.forget(engine)
        if self._blocks is not None:
            self._blocks.forget(engine)


def _link_backend(config: WeightsConfig, trainer: Trainer) -> Literal["gloo", "nccl", "ipc"]:
    if config.backend != "auto":
        return config.backend
    return "nccl" if trainer.parallel.device.type == "cuda" else "gloo"
