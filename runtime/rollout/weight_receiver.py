"""The worker's side of a weight round: it answers the calls of the trainer's source rank."""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec

from verst.runtime.messages.apis import RolloutApi
from verst.runtime.messages.weight_round import Bucket, Carries, EngineLink, FolderVersion, Taken
from verst.runtime.metrics.trace import NO_TRACE, Tracer
from verst.runtime.rollout.engine.engine import Engine
from verst.runtime.rollout.folder_reader import FolderReader

log = logging.getLogger(__name__)

_LOOK_S = 0.005


class WeightReceiver(RolloutApi):
    """Passes each weight call on to the engine. After `abandon` the worker ends (`wait_abandoned`)."""

    def __init__(self, engine: Engine, trace: Tracer = NO_TRACE) -> None:
        self._receiving = engine
        self._trace = trace
        self._paused: float | None = None  # monotonic time when the current round began
        self._groups: dict[Carries, str] = {}
        self._double_buffer = False
        self._folder = FolderReader()
        self._abandoned: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def open_link(self, link: EngineLink) -> None:
        previous = self._groups.pop(link.carries, None)
        if previous is not None:
            await self._receiving.leave_weights_group(previous)
        linked = await self._receiving.init_weights_group(link)
        self._groups[link.carries] = link.name
        if link.carries == "blocks":
            self._double_buffer = link.double_buffer
        if linked is not None:
            log.info(
                "planned with %d trainer ranks in %.1f s: %d buckets, %.0f MiB of memory for the transfer",
                link.trainer_ranks,
                linked.plan_s,
                linked.buckets,
                linked.slot_bytes / 2**20,
            )

    async def pause(self, mode: str) -> None:
        self._paused = time.monotonic()
        await self._receiving.pause(mode)  # type: ignore[arg-type]

    async def receive(self, bucket: Bucket) -> None:
        await self._receiving.receive(bucket, self._joined("tensors"))

    async def receive_blocks(self, version: int, mode: str, timeout_s: float, go_on: bool) -> Taken:
        deadline = time.monotonic() + timeout_s
        stopped = 0.0
        if self._double_buffer:
            stopped = await self._stage(version, mode, deadline)
        began = time.monotonic()
        with self._trace.span("weights", lane="weights", version=version) as about:
            await self._receiving.pause(mode)  # type: ignore[arg-type]
            paused = time.monotonic()
            left_s = max(0.1, deadline - paused)
            arrived = await self._receiving.receive_blocks(version, self._joined("blocks"), left_s)
            received = time.monotonic()
            if go_on:
                await self._receiving.resume()
            ended = time.monotonic()
            taken = Taken(
                pause=paused - began,
                transfer=arrived.transfer_s,
                load=arrived.load_s,
                resume=ended - received,
                stopped=stopped + ended - began,
            )
            about |= msgspec.to_builtins(taken)
        self._trace.flush()
        return taken

    async def _stage(self, version: int, mode: str, deadline: float) -> float:
        """Receives a version into the second buffer; returns the seconds that the engine was paused for it.

        Also returns normally if that fails or is late: `receive_blocks` of the engine then raises the error.
        """
        began = time.monotonic()
        with self._trace.span("stage", lane="weights", version=version):
            # With requests in flight, SGLang obeys such an order only while it is paused, so it is paused for a moment.
            await self._receiving.pause(mode)  # type: ignore[arg-type]
            over = await self._receiving.stage_blocks(version, self._joined("blocks"), deadline - began)
            await self._receiving.resume()
            stopped = time.monotonic() - began
            while not over() and time.monotonic() < deadline:  # noqa: ASYNC110 - a file says so
                await asyncio.sleep(_LOOK_S)
        return stopped

    async def load_version(self, version: FolderVersion) -> Taken:
        began = time.monotonic()
        with self._trace.span("read_weights", lane="weights", version=version.version):
            read = await asyncio.to_thread(self._folder.fetch, version)
        fetched = time.monotonic()
        with self._trace.span("weights", lane="weights", version=version.version) as about:
            await self._receiving.pause(version.pause)
            paused = time.monotonic()
            left_s = max(1.0, version.timeout_s - (paused - began))
            await self._receiving.load_version(version.root, version.version, self._folder.copy, left_s)
            loaded = time.monotonic()
            if version.go_on:
                await self._receiving.resume()
            ended = time.monotonic()
            taken = Taken(
                fetch=fetched - began,
                fetch_bytes=read,
                pause=paused - fetched,
                load=loaded - paused,
                resume=ended - loaded,
                stopped=ended - fetched,
            )
            about |= msgspec.to_builtins(taken)
        self._trace.flush()
        return taken

    async def compare(self, bucket: Bucket) -> int:
        found = await self._receiving.compare(bucket, self._joined("tensors"))
        if not found.equal:
            raise ValueError(
                f"{found.unequal_tensors} of the engine's tensors differ from the trainer's: {found.unequal}; "
                f"{found.uncovered_parameters} of its parameters have elements that were not sent: {found.uncovered}"
            )
        return found.tensors

    async def resume(self, version: int) -> None:
        await self._receiving.resume()
        if self._paused is not None:
            self._trace.add("weights", self._paused, time.monotonic(), lane="weights", version=version)
            self._paused = None
        self._trace.flush()

    def close(self) -> None:
        """Frees the local copy of weights on this node."""
        self._folder.close()

    async def abandon(self, reason: str) -> None:
        if not self._abandoned.done():
            self._abandoned.set_result(reason)

    def _joined(self, carries: Carries) -> str:
        if carries not in self._groups:
            raise ValueError(
                f"the engine has no process group for {carries} with the trainer: call open_link first"
            )
        return self._groups[carries]

    async def wait_abandoned(self) -> str:
        """Waits until the engine's weights cannot be trusted any more; returns the reason."""
        return await asyncio.shield(self._abandoned)
