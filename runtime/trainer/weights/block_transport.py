"""Sends blocks: every trainer rank sends each engine rank its part of the parameters, straight into place.

This is the transport `reshard`. Only the source rank talks to the engines' workers. It tells the other ranks
which engines take part and which failed, so that all ranks do the same. Engines are served `AT_ONCE` at a
time, and only that many sets of buckets are in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from itertools import batched
from typing import Any, Literal

import torch.distributed as dist

from verst.runtime.actors import ActorError
from verst.runtime.messages.weight_round import EngineLink
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.weights.source_round import Engines, SourceRound, failure
from verst.sync.layout.binding import Bound
from verst.sync.layout.blocks import held_blocks
from verst.sync.links.block_link import BlockLink
from verst.sync.links.converted_share import ConvertedShare
from verst.sync.wire.groups import GivenUp, Operation, Source
from verst.sync.wire.wire import Slots

AT_ONCE = 2  # engines served together


class BlockTransport:
    """One on every trainer rank. All ranks make the same calls, which are collective over the trainer's
    world."""

    def __init__(
        self,
        bound: Bound,
        parallel: Parallel,
        engines: Engines,
        source: Source | None,
        backend: Literal["gloo", "nccl", "ipc"],
        bucket_bytes: int,
        double_buffer: bool,
        converted: ConvertedShare | None = None,
    ) -> None:
        """`converted` is for engines whose format is not the trainer's, else None."""
        self._parallel = parallel
        self._engines = engines
        self._source = source
        self._shared = backend == "ipc"
        self._backend: Literal["gloo", "nccl"] = "nccl" if backend == "nccl" else "gloo"
        self._bucket_bytes = bucket_bytes
        self._double_buffer = double_buffer
        self._converted = converted
        if converted is None:
            self._blocks, self._parameters = held_blocks(bound.parameters)
        else:
            self._blocks, self._parameters = converted.blocks, converted.parameters
        self._slots = [Slots() for _ in range(AT_ONCE)]
        self._links: dict[int, tuple[EngineLink, BlockLink]] = {}
        self._incarnations: dict[int, str] = {}  # of the workers at the other end of the links
        self._given_up: GivenUp | None = None  # on ranks other than the source, once they know its address

    # --- phases of a round --------------------------------------------------------------------------

    def connect(self, source: SourceRound | None) -> None:
        """Opens links to engines that are new, or whose worker has restarted since the last round."""
        wanted, timeout_s = self._agree(None if source is None else self._wanted(source))
        answers: dict[int, Future[Any]] = {}
        for some in batched(wanted, AT_ONCE):
            if source is not None:
                answers = {link.engine: source.call(link.engine, _open(link)) for link in some}
            operations = {
                link.engine: self._begin_to_open(link, slots, timeout_s)
                for link, slots in zip(some, self._least_used_slots(), strict=False)
            }
            names = {link.engine: link.name for link in some}
            failed = self._finish(source, operations, names, answers, time.monotonic() + timeout_s)
            for link in some:
                made = operations[link.engine].made()
                if link.engine not in failed:
                    self._links[link.engine] = link, operations[link.engine].result()
                elif made is not None:  # it succeeded here, but failed on another rank or in the engine
                    made.abandon()

    @property
    def converts(self) -> bool:
        """Whether the engines' format is not the trainer's."""
        return self._converted is not None

    def convert(self) -> None:
        """Converts the current weights to the engines' format. Engines generate meanwhile."""
        assert self._converted is not None
        self._converted.convert()

    def transfer(self, source: SourceRound | None) -> None:
        """Sends the round's version to every engine of the round."""
        version, live, left_s = self._agree(
            None if source is None else (source.request.version, source.live, source.remaining())
        )
        deadline = time.monotonic() + left_s
        waves = self._waves(live)
        for number, some in enumerate(waves):
            # An engine that hangs must not use up the time of the waves after it.
            left_s = max(0.1, deadline - time.monotonic())
            self._send(source, version, some, time.monotonic() + left_s / (len(waves) - number))

    def forget(self, engine: int) -> None:
        """Drops the link to an engine that failed or was replaced."""
        self._incarnations.pop(engine, None)
        if engine in self._links:
            self._links.pop(engine)[1].abandon()

    # --- inside -------------------------------------------------------------------------------------

    def _wanted(self, source: SourceRound) -> tuple[list[EngineLink], float]:
        """Decides, on the source, which links to open."""
        assert self._source is not None
        links = []
        for engine in list(source.live):
            found = source.attempt(engine, partial(self._engines.incarnation, engine, source.remaining()))
            if found is None or self._incarnations.get(engine) == found[0]:
                continue
            self._incarnations[engine] = found[0]
            links.append(
                EngineLink(
                    engine=engine,
                    host=self._source.host,
                    port=self._source.port,
                    name=f"verst-blocks-{engine}-{found[0]}",
                    carries="blocks",
                    trainer_ranks=self._parallel.world_size,
                    engine_ranks=found[1],
                    backend=self._backend,
                    shared=self._shared,
                    double_buffer=self._double_buffer,
                    bucket_bytes=self._bucket_bytes,
                    timeout_s=source.remaining(),
                )
            )
        return links, source.remaining()

    def _begin_to_open(self, link: EngineLink, slots: Slots, timeout_s: float) -> Operation[BlockLink]:
        if link.engine in self._links:
            self._links.pop(link.engine)[1].abandon()
        return BlockLink.open(
            engine=link.engine,
            host=link.host,
            port=link.port,
            name=link.name,
            rank=self._parallel.rank,
            trainer_ranks=link.trainer_ranks,
            engine_ranks=link.engine_ranks,
            backend=link.backend,
            shared=link.shared,
            bucket_bytes=link.bucket_bytes,
            timeout_s=timeout_s,
            blocks=self._blocks,
            parameters=self._parameters,
            slots=slots,
        )

    def _least_used_slots(self) -> list[Slots]:
        """Returns the buckets' memory, that with the fewest engines first. The order is the same on every
        rank."""
        users = [sum(link.slots is slots for _, link in self._links.values()) for slots in self._slots]
        return [self._slots[i] for i in sorted(range(AT_ONCE), key=lambda i: users[i])]

    def _waves(self, live: Iterable[int]) -> list[tuple[int, ...]]:
        """Groups the engines that are served together. No two in a group share buckets' memory."""
        waves: list[list[int]] = []
        for engine in sorted(live):
            slots = self._links[engine][1].slots
            wave = next(
                (
                    w
                    for w in waves
                    if len(w) < AT_ONCE and all(self._links[e][1].slots is not slots for e in w)
                ),
                None,
            )
            if wave is None:
                waves.append([engine])
            else:
                wave.append(engine)
        return [tuple(wave) for wave in waves]

    def _send(self, source: SourceRound | None, version: int, some: tuple[int, ...], deadline: float) -> None:
        left_s = max(0.1, deadline - time.monotonic())
        answers: dict[int, Future[Any]] = {}
        if source is not None:
            request = source.request
            answers = {
                engine: source.call(
                    engine,
                    lambda w: w.receive_blocks(version, request.pause, left_s, go_on=not request.check),
                )
                for engine in some
            }
        operations = {engine: self._links[engine][1].start(version, deadline) for engine in some}
        names = {engine: self._links[engine][0].name for engine in some}
        plans = {engine: self._links[engine][1].plan for engine in some}
        failed = self._finish(source, operations, names, answers, deadline)
        if source is not None:
            for engine in plans.keys() - failed.keys():
                source.bytes += plans[engine].nbytes
                source.link_bytes[engine] = plans[engine].link_bytes
                source.taken[engine] = answers[engine].result()

    def _finish(
        self,
        source: SourceRound | None,
        operations: Mapping[int, Operation[Any]],
        names: Mapping[int, str],
        answers: Mapping[int, Future[Any]],
        deadline: float,
    ) -> dict[int, str]:
        """Waits for all ranks' operations and the engines' answers.

        Returns which engines failed and why, on every rank.
        """
        reasons: dict[int, str] = {}
        for engine, operation in operations.items():
            reason = operation.wait(deadline, self._watch(names[engine], answers.get(engine)))
            if reason is None and engine in answers:
                reason = _answer_failure(answers[engine], deadline)
            if reason is not None:
                reasons[engine] = reason
                if self._source is not None:
                    self._source.give_up(names[engine], reason)
        failed: dict[int, str] = {}
        for reasons_of_rank in self._gather(reasons):
            failed = reasons_of_rank | failed  # lower ranks' reasons win, the source's above all
        for engine, reason in failed.items():
            self.forget(engine)
            if source is not None:
                source.leave_out(engine, reason)
        return failed

    def _watch(self, name: str, answer: Future[Any] | None) -> Callable[[], str | None]:
        if answer is not None:
            return partial(failure, answer)
        return lambda: None if self._given_up is None else self._given_up.reason(name)

    def _agree(self, decided: Any) -> Any:
        """Returns the source's decision on every rank."""
        box = [(decided, self._source and (self._source.host, self._source.port))]
        if self._parallel.world_size > 1:
            dist.broadcast_object_list(box, src=0)
        decided, place = box[0]
        if self._source is None and self._given_up is None and place:
            self._given_up = GivenUp(*place, timeout_s=60.0)
        return decided

    def _gather(self, mine: dict[int, str]) -> list[dict[int, str]]:
        if self._parallel.world_size == 1:
            return [mine]
        found: list[Any] = [None] * self._parallel.world_size
        dist.all_gather_object(found, mine)
        return found


def _open(link: EngineLink) -> Callable[[Any], Any]:
    return lambda worker: worker.open_link(link)


def _answer_failure(answer: Future[Any], deadline: float) -> str | None:
    """Waits for the answer; returns why it is a failure, or None."""
    try:
        answer.result(max(0.1, deadline - time.monotonic()))
    except (ActorError, TimeoutError) as error:
        return str(error) or "no answer by the round's deadline"
    return None
