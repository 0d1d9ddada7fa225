"""Sends whole tensors: trainer ranks gather them bucket by bucket on rank 0, which broadcasts them to the
engines.

This is the transport `broadcast`. Under every transport, `weights.check` uses it to compare.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Literal

import torch

from verst.runtime.messages.weight_round import Bucket, EngineLink
from verst.runtime.trainer.weights.source_round import Engines, SourceRound, failure
from verst.sync.links.broadcast import EngineGroup, broadcast, connect
from verst.sync.links.engine_format import EngineFormat
from verst.sync.links.gather import Gather
from verst.sync.wire.groups import Source


class TensorTransport:
    """One on every trainer rank. Only the source has links to engines."""

    def __init__(
        self,
        gather: Gather,
        format: EngineFormat,
        engines: Engines,
        source: Source | None,
        backend: Literal["gloo", "nccl"],
    ) -> None:
        self._gather = gather
        self._format = format
        self._engines = engines
        self._source = source
        self._backend: Literal["gloo", "nccl"] = backend
        self._groups: dict[int, tuple[str, EngineGroup]] = {}  # engine -> its worker's incarnation, group

    @property
    def buckets(self) -> int:
        """Number of buckets in one transfer."""
        return len(self._gather.plan)

    def connect(self, source: SourceRound | None) -> None:
        """Opens groups with engines that are new, or whose worker has restarted since the last round."""
        if source is not None:
            for engine in list(source.live):
                source.attempt(engine, partial(self._ensure, engine, source.remaining()))

    def transfer(self, source: SourceRound | None, *, compare: bool = False) -> None:
        """Sends every bucket once, for the engines to load. Collective over the world.

        With `compare` the engines compare it with their own tensors instead.
        """
        buckets = iter(self._gather.buckets())
        conversion = self._format.start()
        for index in range(self.buckets):
            began = time.monotonic()
            names, tensors = next(buckets)
            if source is not None and tensors is not None:
                source.seconds["gather"] += time.monotonic() - began
                with source.timed("convert"):
                    names, tensors = conversion.feed(names, tensors)
                with source.timed("check" if compare else "transfer"):
                    self._send(source, index, names, tensors, compare)

    def _send(
        self, source: SourceRound, index: int, names: list[str], tensors: list[torch.Tensor], compare: bool
    ) -> None:
        bucket = Bucket(
            version=source.request.version,
            index=index,
            names=names,
            dtypes=[str(t.dtype).removeprefix("torch.") for t in tensors],
            shapes=[list(t.shape) for t in tensors],
            last=index == self.buckets - 1,
        )
        ask = (lambda w: w.compare(bucket)) if compare else (lambda w: w.receive(bucket))
        answers = {engine: source.call(engine, ask) for engine in source.live}
        reasons = broadcast(
            {engine: self._groups[engine][1] for engine in answers},
            tensors,
            source.deadline,
            {engine: partial(failure, answer) for engine, answer in answers.items()},
        )
        for engine, answer in answers.items():
            if engine in reasons:
                source.leave_out(engine, reasons[engine])
            else:
                source.checked += source.attempt(engine, partial(answer.result, source.remaining())) or 0
        source.bytes += 0 if compare else sum(t.nbytes for t in tensors) * len(source.live)

    def forget(self, engine: int) -> None:
        """Drops the group with an engine that failed or was replaced."""
        if engine in self._groups:
            self._groups.pop(engine)[1].abandon()

    def _ensure(self, engine: int, timeout: float) -> None:
        """Opens a group with the engine's current worker, unless there is one.

        Raises ActorError or EngineError when that fails.
        """
        assert self._source is not None
        incarnation, ranks = self._engines.incarnation(engine, timeout)
        known = self._groups.get(engine)
        if known is not None and known[0] == incarnation:
            return
        self.forget(engine)
        link = EngineLink(
            engine=engine,
            host=self._source.host,
            port=self._source.port,
            name=f"verst-tensors-{engine}-{incarnation}",
            engine_ranks=ranks,
            backend=self._backend,
            timeout_s=timeout,
        )
        answer = self._engines.call(engine, lambda worker: worker.open_link(link), timeout)
        group = connect(
            self._source,
            f"engine {engine}",
            link.name,
            ranks,
            self._backend,
            timeout,
            partial(failure, answer),
        )
        self._groups[engine] = incarnation, group
        answer.result(timeout)
