"""Brings new weights into an engine, through calls to its server, and tracks which version generated each token."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from verst.runtime.messages.weight_round import Bucket, EngineLink
from verst.runtime.node.scratch import Scratch
from verst.runtime.rollout.engine.client import EngineClient, EngineError
from verst.runtime.rollout.inside_sglang.orders import (
    Arrived,
    CompareOrder,
    Linked,
    LinkOrder,
    LoadOrder,
    Order,
    Positions,
    ReceiveOrder,
    StageOrder,
    as_load_format,
)
from verst.runtime.rollout.inside_sglang.weight_compare import Comparison

_CONTROL_TIMEOUT_S = 60.0
_BETWEEN_GROUPS = " | "  # SGLang's


class EngineUpdates:
    """The weight calls to one engine. All raise EngineError if the engine refuses, fails or is late."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._versions = VersionSpans()
        self._marks = Scratch("verst-engine-")  # a folder for files by which the engine's processes report
        self.version = 0

    async def init_weights_group(self, link: EngineLink) -> Linked | None:
        """Joins the process group with the trainer's ranks. Returns when all have joined.

        For blocks, the engine also plans with them; the result says how many buckets, how much memory and how long the
        planning took. For tensors the result is None.
        """
        body = {
            "master_address": link.host,
            "master_port": link.port,
            "rank_offset": link.trainer_ranks,
            "world_size": link.trainer_ranks + link.engine_ranks,
            "group_name": link.name,
            "backend": link.backend,
        }
        await self._client.post("/init_weights_update_group", body, link.timeout_s)
        if link.carries == "tensors":
            return None
        order = LinkOrder(
            link.trainer_ranks,
            link.bucket_bytes,
            link.engine,
            link.timeout_s,
            link.shared,
            link.double_buffer,
        )
        answer = await self._order(order, link.name, link.timeout_s)
        return _answers(answer["message"], Linked)[0]

    async def leave_weights_group(self, name: str) -> None:
        """Leaves a process group."""
        await self._client.post("/destroy_weights_update_group", {"group_name": name}, _CONTROL_TIMEOUT_S)

    async def receive(self, bucket: Bucket, group: str, timeout_s: float = 600) -> None:
        """Receives one bucket from `group`'s rank 0 and loads it. With the last bucket the new version begins.

        If this raises, the source may be waiting in a broadcast that never ends, so the caller must watch both.
        """
        body = _bucket_body(bucket, group)
        if bucket.last:
            body["weight_version"] = str(bucket.version)
        answer = await self._client.post("/update_weights_from_distributed", body, timeout_s)
        if bucket.last:
            self._versions.new_version(*_answers(answer["message"], Positions))
            self.version = bucket.version

    async def stage_blocks(self, version: int, group: str, timeout_s: float) -> Callable[[], bool]:
        """Starts to receive a whole version from `group`'s trainer ranks into the second buffer.

        Returns a function that tells whether that is over. `receive_blocks` then copies the version over the weights in
        use, or raises if it failed. The engine must be paused for this call and can be resumed right after it.
        """
        done = self._marks.path / f"staged-{group}-{version}"
        done.unlink(missing_ok=True)
        await self._order(StageOrder(version, timeout_s, str(done)), group, timeout_s)
        return done.exists

    async def receive_blocks(self, version: int, group: str, timeout_s: float) -> Arrived:
        """Receives a whole version from `group`'s trainer ranks.

        Pause the engine first: otherwise it finishes its requests in flight before it obeys.
        """
        answer = await self._order(ReceiveOrder(version, timeout_s), group, timeout_s + 5, str(version))
        arrived = _answers(answer["message"], Arrived)
        self._versions.new_version(*arrived)
        self.version = version
        return arrived[0]  # the ranks have agreed on the times

    async def load_version(self, root: str, version: int, copy: str | None, timeout_s: float) -> None:
        """Loads a version that is published in folder `root`, or from the file `copy` if that holds it already.

        Pause the engine first, as for blocks. If this raises, the engine's parameters belong to no version.
        """
        order = LoadOrder(root, version, copy, timeout_s)
        answer = await self._order(order, "", timeout_s + 5, str(version))
        self._versions.new_version(*_answers(answer["message"], Positions))
        self.version = version

    async def compare(self, bucket: Bucket, group: str, timeout_s: float = 600) -> Comparison:
        """Receives one bucket like `receive`, but compares it with the engine's weights, bit for bit.

        Send a whole version, from bucket 0 to the last. The last answer names the parameters that no bucket covered.
        """
        body = _bucket_body(bucket, group)
        body["load_format"] = as_load_format(CompareOrder(first=bucket.index == 0, last=bucket.last))
        answer = await self._client.post("/update_weights_from_distributed", body, timeout_s)
        return _answers(answer["message"], Comparison)[0]

    async def _order(
        self, order: Order, group: str, timeout_s: float, version: str | None = None
    ) -> dict[str, Any]:
        body = {
            "names": [],
            "dtypes": [],
            "shapes": [],
            "group_name": group,
            "flush_cache": False,
            "load_format": as_load_format(order),
        }
        if version is not None:
            body["weight_version"] = version
        return await self._client.post("/update_weights_from_distributed", body, timeout_s)


class VersionSpans:
    """Tracks which weight version generated which tokens of the requests in flight."""

    def __init__(self) -> None:
        self._spans: dict[
            str, list[tuple[int, int]]
        ] = {}  # by request: (end of the span in tokens, its version)

    def begin(self, request: str) -> None:
        self._spans[request] = []

    def end(self, request: str) -> None:
        del self._spans[request]

    def new_version(self, *positions: Positions) -> None:
        """Ends a span in each request. `positions` come from the engine's data-parallel groups, one for each."""
        for group in positions:
            for request, tokens in group.tokens.items():
                if request in self._spans:
                    self._spans[request].append((tokens, int(group.previous)))

    def of(self, request: str, tokens: int, final: int) -> np.ndarray:
        """The version of each token, int32 [tokens]. Tokens after the last span have version `final`."""
        versions = np.full(tokens, final, dtype=np.int32)
        start = 0
        for end, version in self._spans[request]:
            versions[start:end] = version
            start = end
        return versions


def _bucket_body(bucket: Bucket, group: str) -> dict[str, Any]:
    return {
        "names": bucket.names,
        "dtypes": bucket.dtypes,
        "shapes": bucket.shapes,
        "group_name": group,
        "flush_cache": False,  # inside_sglang/weights.py separates versions in the prefix cache
    }


def _answers[T](message: str, type_: type[T]) -> list[T]:
    """Decodes the plug-in's answers from SGLang's message: one JSON value for each data-parallel group.

    SGLang may append text of its own, which is ignored.
    """
    answers, decoder = [], json.JSONDecoder()
    try:
        value, end = decoder.raw_decode(message)
        answers.append(value)
        while message.startswith(_BETWEEN_GROUPS, end):
            value, end = decoder.raw_decode(message, end + len(_BETWEEN_GROUPS))
            answers.append(value)
    except ValueError as error:
        raise EngineError(
            f"engine: answered {message!r}, so Verst's SGLang plug-in is not active (is `verst` installed?)"
        ) from error
    return msgspec.convert(answers, list[type_])  # type: ignore[valid-type]
