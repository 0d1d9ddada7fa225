"""A weight round as the trainer's ranks see it: gather buckets, send each to every engine, settle the failures.

All ranks gather; rank 0 alone talks to the engines. An engine that refuses, dies or misses the deadline is
left out of the rest of the round and reported; the others go on.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from verst.runtime.actors import ActorError, Member
from verst.runtime.apis import RolloutApi
from verst.runtime.metrics.trace import Tracer
from verst.runtime.trainer.trainer import Trainer
from verst.runtime.weight_round import Bucket, EngineLink, RoundReport, WeightRound
from verst.sync.broadcast import EngineError, EngineGroup, Source, broadcast
from verst.sync.config import WeightsConfig
from verst.sync.gather import SOURCE, Gather
from verst.sync.hf_export import export

log = logging.getLogger(__name__)


class WeightSync:
    """Sends this trainer's weights. Making one is collective over the world."""

    def __init__(
        self,
        trainer: Trainer,
        member: Member,
        config: WeightsConfig,
        model_path: str,
        dtype: torch.dtype,
        trace: Tracer,
    ) -> None:
        self._trainer = trainer
        self._member = member
        self._model_path = model_path
        self._trace = trace
        self._gather = Gather(trainer.bound, config.bucket_bytes, dtype)
        is_source = trainer.parallel.rank == SOURCE
        self._links = _Links(member, _link_backend(config, trainer)) if is_source else None

    def export(self, path: Path) -> None:
        """Writes a Hugging Face folder, in place of an earlier one. Collective."""
        if self._links is not None and path.exists():
            shutil.rmtree(path)
        export(self._gather, self._model_path, path)

    def round(self, request: WeightRound) -> RoundReport:
        """One round. Collective; rank 0's report counts, the others' say only that they took part."""
        try:
            return self._round(request)
        finally:
            self._trace.flush()

    def _round(self, request: WeightRound) -> RoundReport:
        source = None if self._links is None else _Round(request, self._links)
        span = partial(self._trace.span, version=request.version)
        if source is not None:
            with span("connect"):
                source.connect()
            with span("pause"):
                source.pause()
        with span("transfer", buckets=len(self._gather.plan)) as about:
            self._pass(source, compare=False)
            about |= {} if source is None else {f"{k}_s": source.seconds[k] for k in ("gather", "transfer")}
        if request.check:
            with span("check"):
                self._pass(source, compare=True)
        if source is None:
            return RoundReport(version=request.version, updated=[], failed={}, bytes=0, seconds={})
        with span("resume"):
            source.resume()
        return source.report()

    def _pass(self, source: _Round | None, *, compare: bool) -> None:
        """Every bucket once, loaded by the engines or compared with what they hold."""
        buckets = iter(self._gather.buckets())
        last = len(self._gather.plan) - 1
        for index in range(last + 1):
            began = time.monotonic()
            names, tensors = next(buckets)
            if source is not None and tensors is not None:
                source.seconds["gather"] += time.monotonic() - began
                source.send(index, names, tensors, last=index == last, compare=compare)


class _Links:
    """The process groups with engines, kept from round to round while both sides live."""

    def __init__(self, member: Member, backend: Literal["gloo", "nccl"]) -> None:
        self.member = member
        self._backend = backend
        self._source = Source(member.info.host)
        self._groups: dict[int, tuple[str, EngineGroup]] = {}  # engine -> its worker's incarnation, its group

    def __getitem__(self, engine: int) -> EngineGroup:
        return self._groups[engine][1]

    def call(self, engine: int, ask: Callable[[RolloutApi], Any], timeout: float) -> Future[Any]:
        """Starts a call to the engine's worker."""
        return self.member.submit(ask(self.member.handle(RolloutApi, "rollout", engine, timeout=timeout)))

    def ensure(self, engine: int, timeout: float) -> None:
        """A group with the engine's present worker. Raises ActorError or EngineError when it cannot be had."""
        info = self.member.call_blocking(self.member.find("rollout", engine), timeout)
        known = self._groups.get(engine)
        if known is not None and known[0] == info.incarnation:
            return
        self.forget(engine)
        link = EngineLink(
            engine=engine,
            host=self._source.host,
            port=self._source.port,
            name=f"verst-{engine}-{info.incarnation}",
            engine_ranks=int(info.details["engine_ranks"]),
            backend=self._backend,
        )
        answer = self.call(engine, lambda worker: worker.open_link(link), timeout)
        group = self._source.connect(
            f"engine {engine}",
            link.name,
            link.engine_ranks,
            self._backend,
            timeout,
            partial(_failure, answer),
        )
        self._groups[engine] = info.incarnation, group
        answer.result(timeout)

    def forget(self, engine: int) -> None:
        """Drops the group with an engine that failed or was replaced."""
        if engine in self._groups:
            self._groups.pop(engine)[1].abandon()


class _Round:
    """Rank 0's side of one round."""

    def __init__(self, request: WeightRound, links: _Links) -> None:
        self._request = request
        self._links = links
        self._deadline = time.monotonic() + request.deadline_s
        self._live = list(request.engines)
        self._failed: dict[int, str] = {}
        self._bytes = 0
        self._checked = 0
        self.seconds = dict.fromkeys(("connect", "pause", "gather", "transfer", "resume", "check"), 0.0)

    # --- the phases of a round ----------------------------------------------------------------------

    def connect(self) -> None:
        """Joins with engines that are new, or whose worker is another than in the last round."""
        began = time.monotonic()
        for engine in list(self._live):
            self._attempt(engine, partial(self._links.ensure, engine, self._remaining()))
        self.seconds["connect"] += time.monotonic() - began

    def pause(self) -> None:
        """Stops generation on every engine of the round."""
        self._each("pause", lambda worker: worker.pause(self._request.pause))

    def send(
        self, index: int, names: list[str], tensors: list[torch.Tensor], *, last: bool, compare: bool
    ) -> None:
        """Broadcasts one bucket to every engine still in the round."""
        began = time.monotonic()
        bucket = Bucket(
            version=self._request.version,
            index=index,
            names=names,
            dtypes=[str(t.dtype).removeprefix("torch.") for t in tensors],
            shapes=[list(t.shape) for t in tensors],
            last=last,
        )
        ask = (lambda w: w.compare(bucket)) if compare else (lambda w: w.receive(bucket))
        answers = {engine: self._call(engine, ask) for engine in self._live}
        reasons = broadcast(
            {engine: self._links[engine] for engine in answers},
            tensors,
            self._deadline,
            {engine: partial(_failure, answer) for engine, answer in answers.items()},
        )
        for engine, answer in answers.items():
            if engine in reasons:
                self._leave_out(engine, reasons[engine])
            else:
                self._checked += self._attempt(engine, partial(answer.result, self._remaining())) or 0
        self._bytes += 0 if compare else sum(t.nbytes for t in tensors) * len(self._live)
        self.seconds["check" if compare else "transfer"] += time.monotonic() - began

    def resume(self) -> None:
        """Lets the engines that have the whole version go on."""
        self._each("resume", lambda worker: worker.resume(self._request.version))

    def report(self) -> RoundReport:
        """What the controller learns."""
        return RoundReport(
            version=self._request.version,
            updated=self._live,
            failed=self._failed,
            bytes=self._bytes,
            seconds=self.seconds,
            checked_tensors=self._checked,
        )

    # --- calls that may fail one engine -------------------------------------------------------------

    def _each(self, phase: str, ask: Callable[[RolloutApi], Any]) -> None:
        began = time.monotonic()
        answers = {engine: self._call(engine, ask) for engine in self._live}
        for engine, answer in answers.items():
            self._attempt(engine, partial(answer.result, self._remaining()))
        self.seconds[phase] += time.monotonic() - began

    def _call(self, engine: int, ask: Callable[[RolloutApi], Any]) -> Future[Any]:
        return self._links.call(engine, ask, self._remaining())

    def _attempt(self, engine: int, action: Callable[[], Any]) -> Any:
        """The action's result; None when it failed, and the engine is then out of the round."""
        try:
            return action()
        except (ActorError, EngineError, TimeoutError) as error:
            self._leave_out(engine, str(error) or "no answer by the round's deadline")
            return None

    def _leave_out(self, engine: int, reason: str) -> None:
        log.warning("engine %d is left out of round %d: %s", engine, self._request.version, reason)
        self._live.remove(engine)
        self._failed[engine] = reason
        self._links.forget(engine)

    def _remaining(self) -> float:
        return max(0.1, self._deadline - time.monotonic())


def _link_backend(config: WeightsConfig, trainer: Trainer) -> Literal["gloo", "nccl"]:
    if config.backend != "auto":
        return config.backend
    return "nccl" if trainer.parallel.device.type == "cuda" else "gloo"


def _failure(answer: Future[Any]) -> str | None:
    """Why the engine's answer is a failure, if it is one already."""
    if answer.done() and (error := answer.exception()) is not None:
        return str(error)
    return None
