"""One SGLang engine: a server process of our own, and what a rollout worker asks of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from verst.runtime.model_config import ModelConfig
from verst.runtime.rollout import arguments
from verst.runtime.rollout.config import RolloutConfig, SamplingConfig
from verst.runtime.rollout.engine_client import EngineClient, EngineError
from verst.runtime.rollout.engine_nodes import Meeting
from verst.runtime.rollout.engine_orders import (
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
from verst.runtime.rollout.engine_server import EngineServer, free_port
from verst.runtime.rollout.weight_compare import Comparison
from verst.runtime.sample import FinishReason
from verst.runtime.weight_round import Bucket, EngineLink, PauseMode
from verst.sync.routing import RoutingShape, decode_routed_experts, routing_shape
from verst.sync.selection import SelectionShape, decode_indexer_topk, selection_shape

_CONTROL_TIMEOUT_S = 60.0


class Generation(msgspec.Struct, kw_only=True):
    """What one call to the engine produced. P prompt tokens, R generated tokens (0 if aborted early)."""

    ids: np.ndarray  # int32 [R]
    logprobs: np.ndarray  # float32 [R], nats, under the temperature that sampled them
    weight_versions: np.ndarray  # int32 [R]
    finish: FinishReason
    routing: np.ndarray | None  # uint8 [P+R-1, MoE layers, entry]
    selected: np.ndarray | None = None  # uint8 [layers, bytes of P+R-1 tokens] (`sync/selection.py`)
    prompt_tokens: int
    cached_tokens: int  # of the prompt, taken from the prefix cache
    seconds: float  # from sending the request to the whole answer


class Engine:
    """A running SGLang server. Make one with `start`, end it with `stop`."""

    def __init__(
        self,
        server: EngineServer,
        client: EngineClient,
        config: RolloutConfig,
        shape: RoutingShape | None,
        selection: SelectionShape | None = None,
    ) -> None:
        self._server = server
        self._client = client
        self._config = config
        self._routing_shape = shape
        self._selection_shape = selection
        self._versions = _VersionSpans()
        self._marks = tempfile.TemporaryDirectory(prefix="verst-engine-")  # what its processes tell by files
        self.version = 0

    @classmethod
    async def start(
        cls,
        model: ModelConfig,
        config: RolloutConfig,
        *,
        log: Path,
        routing: bool,
        seed: int,
        device: str | None = None,
        threads: int = 1,
        host: str = "127.0.0.1",
        meeting: Meeting | None = None,
        shares_gpus: bool = False,
    ) -> Engine:
        """Starts a server for `model` and waits until it serves.

        `device` is "cpu" or "cuda" (by default what this process sees; CUDA_VISIBLE_DEVICES of the worker
        says which GPUs), `routing` asks for routed experts (ignored for a dense model), `seed` is SGLang's
        own, `meeting` is where the engine's parts on other nodes join it, `shares_gpus` says that it will give its
        memory back now and then (`release_memory`). Raises EngineError with the
        server's last lines when it ends or is not up in `config.start_timeout_s`.
        """
        key = secrets.token_hex(32)
        port = free_port(host)
        server, shape = await start_server(
            model,
            config,
            log=log,
            routing=routing,
            seed=seed,
            device=device,
            threads=threads,
            host=host,
            port=port,
            key=key,
            meeting=meeting,
            shares_gpus=shares_gpus,
        )
        client = EngineClient(f"http://{host}:{port}", key, connections=config.concurrency + 8)
        selection = reported_selection(model, device or _device()) if routing else None
        engine = cls(server, client, config, shape, selection)
        try:
            await engine._wait_healthy(config.start_timeout_s)
        except BaseException:
            await engine.stop()
            raise
        return engine

    async def _wait_healthy(self, timeout_s: float) -> None:
        dead = asyncio.create_task(self._server.wait_dead())
        deadline = time.monotonic() + timeout_s
        try:
            while not await self._client.healthy():
                if time.monotonic() > deadline:
                    lines = self._server.last_lines()
                    raise EngineError(f"the SGLang server was not up after {timeout_s:.0f} s:\n{lines}")
                await asyncio.wait([dead], timeout=0.25)
                if dead.done():
                    raise EngineError(dead.result())
        finally:
            dead.cancel()

    @property
    def pid(self) -> int:
        """Of the server's main process."""
        return self._server.pid

    async def generate(
        self, input_ids: list[int], sampling: SamplingConfig, seed: int | None = None
    ) -> Generation:
        """Continues `input_ids`. With a seed the tokens depend on nothing but prompt, weights and seed."""
        request = f"verst-{uuid.uuid4().hex}"
        parameters = sampling.model_dump() | {"skip_special_tokens": False, "sampling_seed": seed}
        body = {
            "rid": request,
            "input_ids": input_ids,
            "sampling_params": parameters,
            "return_logprob": True,
            "return_routed_experts": self._routing_shape is not None,
            "return_indexer_topk": self._selection_shape is not None,
        }
        began = time.monotonic()
        async with self._in_flight(request):
            answer = await self._client.post("/generate", body, self._config.request_timeout_s)
            seconds = time.monotonic() - began
            return self._generation(request, answer, len(input_ids), seconds)

    @contextlib.asynccontextmanager
    async def _in_flight(self, request: str) -> AsyncIterator[None]:
        self._versions.begin(request)
        try:
            yield
        except (EngineError, asyncio.CancelledError):
            # The engine would go on generating for nobody.
            if self.alive():
                with contextlib.suppress(EngineError):
                    await asyncio.shield(self.abort(request))
            raise
        finally:
            self._versions.end(request)

    def _generation(
        self, request: str, answer: dict[str, Any], prompt_tokens: int, seconds: float
    ) -> Generation:
        meta = answer["meta_info"]
        ids = np.array(answer["output_ids"], dtype=np.int32)
        logprobs = np.array([entry[0] for entry in meta["output_token_logprobs"]], dtype=np.float32)
        if len(ids) != len(logprobs):
            raise EngineError(f"engine: {len(ids)} tokens came with {len(logprobs)} log-probabilities")
        routing = selected = None
        tokens = prompt_tokens + len(ids) - 1
        if self._selection_shape is not None and len(ids):
            selected = decode_indexer_topk(meta["indexer_topk"], self._selection_shape, tokens)
        if self._routing_shape is not None and len(ids):
            routing = decode_routed_experts(meta["routed_experts"], self._routing_shape, tokens)
        return Generation(
            ids=ids,
            logprobs=logprobs,
            weight_versions=self._versions.of(request, len(ids), int(meta["weight_version"])),
            finish=meta["finish_reason"]["type"],
            routing=routing,
            selected=selected,
            prompt_tokens=prompt_tokens,
            cached_tokens=meta.get("cached_tokens", 0),
            seconds=seconds,
        )

    async def pause(self, mode: PauseMode) -> None:
        """Stops computing. Requests in flight keep their cache ("in_place") or recompute it ("retract")."""
        await self._client.post("/pause_generation", {"mode": mode}, _CONTROL_TIMEOUT_S)

    async def resume(self) -> None:
        """Goes on where `pause` stopped."""
        await self._client.post("/continue_generation", {}, _CONTROL_TIMEOUT_S)

    async def release_memory(self, kinds: list[str], timeout_s: float) -> None:
        """Gives the GPU memory of these kinds back ("kv_cache", "weights"), contents and all.

        Waits until nothing is in flight: SGLang ends when it is asked before. Raises EngineError. On a CPU, and
        without its memory saver, the server takes note and keeps its memory.
        """
        await self._idle(timeout_s)
        await self._client.post("/release_memory_occupation", {"tags": kinds}, timeout_s)

    async def resume_memory(self, kinds: list[str], timeout_s: float) -> None:
        """Takes memory again that was released; its contents are anything."""
        await self._client.post("/resume_memory_occupation", {"tags": kinds}, timeout_s)

    async def flush_cache(self) -> None:
        """Empties the prefix cache. Refused while requests are in flight."""
        await self._client.post("/flush_cache", {}, _CONTROL_TIMEOUT_S)

    async def abort(self, request: str | None = None) -> None:
        """Ends one request in flight, or all: they return what they have with finish "abort"."""
        body = {"abort_all": True} if request is None else {"rid": request}
        await self._client.post("/abort_request", body, 10)

    async def reset(self, timeout_s: float = 60) -> None:
        """Back to how it began, for another trainer: nothing in flight, nothing cached, not paused.

        The weights stay; the prefix cache must not, for another life of a run counts the same versions with
        other weights. Raises EngineError when requests do not end.
        """
        await self.abort()
        await self.resume()
        await self._idle(timeout_s)

    async def _idle(self, timeout_s: float) -> None:
        """Waits until nothing is in flight, and empties the prefix cache, which only then can be emptied."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return await self.flush_cache()
            except EngineError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.5)

    async def init_weights_group(self, link: EngineLink) -> Linked | None:
        """Joins the process group with the trainer's ranks. Returns when all have joined.

        For blocks also plans with them: this rank's memory for it and how long that took.
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
        return _leading_json(answer["message"], Linked)

    async def leave_weights_group(self, name: str) -> None:
        """Leaves a process group."""
        await self._client.post("/destroy_weights_update_group", {"group_name": name}, _CONTROL_TIMEOUT_S)

    async def receive(self, bucket: Bucket, group: str, timeout_s: float = 600) -> None:
        """Takes one bucket from `group`'s rank 0 and loads it; the last bucket begins its version.

        When this raises, the source may be waiting in a broadcast that will never end: watch both.
        """
        body = _bucket_body(bucket, group)
        if bucket.last:
            body["weight_version"] = str(bucket.version)
        answer = await self._client.post("/update_weights_from_distributed", body, timeout_s)
        if bucket.last:
            self._versions.new_version(_leading_json(answer["message"], Positions))
            self.version = bucket.version

    async def stage_blocks(self, version: int, group: str, timeout_s: float) -> Callable[[], bool]:
        """Begins to take a whole version from `group`'s trainer ranks into the second buffer.

        Returns how to ask whether that is over; `receive_blocks` then takes it over, or raises why it failed.
        Pause first, and resume at once.
        """
        done = Path(self._marks.name) / f"staged-{group}-{version}"
        done.unlink(missing_ok=True)
        await self._order(StageOrder(version, timeout_s, str(done)), group, timeout_s)
        return done.exists

    async def receive_blocks(self, version: int, group: str, timeout_s: float) -> Arrived:
        """Takes a whole version from `group`'s trainer ranks.

        Pause first: an engine that is not paused ends its requests in flight before it obeys.
        """
        answer = await self._order(ReceiveOrder(version, timeout_s), group, timeout_s + 5, str(version))
        arrived = _leading_json(answer["message"], Arrived)
        self._versions.new_version(arrived)
        self.version = version
        return arrived

    async def load_version(self, root: str, version: int, copy: str | None, timeout_s: float) -> None:
        """Loads a version that is published in folder `root`, from the file `copy` if that holds it already.

        Pause first, as for blocks. When this raises, the engine's parameters are of no version.
        """
        order = LoadOrder(root, version, copy, timeout_s)
        answer = await self._order(order, "", timeout_s + 5, str(version))
        self._versions.new_version(_leading_json(answer["message"], Positions))
        self.version = version

    async def compare(self, bucket: Bucket, group: str, timeout_s: float = 600) -> Comparison:
        """Takes one bucket as `receive` does and compares it with the engine's weights, bit for bit.

        Send a whole version from bucket 0 to the last; the last answer names what no bucket covered.
        """
        body = _bucket_body(bucket, group)
        body["load_format"] = as_load_format(CompareOrder(first=bucket.index == 0, last=bucket.last))
        answer = await self._client.post("/update_weights_from_distributed", body, timeout_s)
        return _leading_json(answer["message"], Comparison)

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

    def alive(self) -> bool:
        """Whether the server's main process runs."""
        return self._server.alive()

    async def wait_dead(self) -> str:
        """Waits for the server's end and says how it came, with its last lines."""
        return await self._server.wait_dead()

    async def stop(self) -> None:
        """Kills the server with all its processes. Harmless twice."""
        await self._client.close()
        await self._server.kill()
        self._marks.cleanup()


async def start_server(
    model: ModelConfig,
    config: RolloutConfig,
    *,
    log: Path,
    routing: bool,
    seed: int,
    device: str | None,
    threads: int,
    host: str,
    port: int,
    key: str,
    meeting: Meeting | None,
    part: int = 0,
    shares_gpus: bool = False,
) -> tuple[EngineServer, RoutingShape | None]:
    """Starts SGLang, or with `part` > 0 what an engine over several nodes has on that one of them.

    Returns without waiting until it serves. The shape is of the routing that it will report, if it will.
    """
    path = config.model_path or model.path
    _require_folder(path)
    device = device or _device()
    shape = routing_shape(_hugging_face_config(path)) if routing else None
    selection = routing and reported_selection(model, device) is not None
    argv = arguments.server_arguments(
        model,
        config,
        device=device,
        host=host,
        port=port,
        routing=shape is not None,
        selection=selection,
        seed=seed,
        meeting=meeting.address if meeting else None,
        part=part,
        shares_gpus=shares_gpus,
    )
    environment = arguments.engine_environment(device, threads, config, selection)
    if meeting is not None:  # else SGLang guesses an address for what its parts say to one another
        environment["SGLANG_HOST_IP"] = os.environ.get("VERST_HOST", host)
    server = await EngineServer.start(argv, device=device, key=key, environment=environment, log=log)
    return server, shape


def reported_selection(model: ModelConfig, device: str) -> SelectionShape | None:
    """What an engine's sparse attention reports: SGLang captures it on CUDA alone."""
    return selection_shape(_hugging_face_config(model.path)) if device == "cuda" else None


class _VersionSpans:
    """Which weight version generated which tokens of the requests in flight."""

    def __init__(self) -> None:
        self._spans: dict[str, list[tuple[int, int]]] = {}  # request -> (tokens so far, version until there)

    def begin(self, request: str) -> None:
        self._spans[request] = []

    def end(self, request: str) -> None:
        del self._spans[request]

    def new_version(self, positions: Positions) -> None:
        for request, tokens in positions.tokens.items():
            if request in self._spans:
                self._spans[request].append((tokens, int(positions.previous)))

    def of(self, request: str, tokens: int, final: int) -> np.ndarray:
        """int32 [tokens]; what follows the last span is of version `final`."""
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
        "flush_cache": False,  # engine_weights keeps versions apart in the prefix cache
    }


def _leading_json(message: str, type_: Any) -> Any:
    """SGLang appends words of its own to the plug-in's JSON."""
    try:
        value, _ = json.JSONDecoder().raw_decode(message)
    except ValueError as error:
        raise EngineError(
            f"engine: answered {message!r}: Verst's SGLang plug-in is not active (is `verst` installed?)"
        ) from error
    return msgspec.convert(value, type_)


def _require_folder(path: str) -> None:
    if path.startswith(("/", ".")) and not Path(path).is_dir():
        raise EngineError(f"{path}: there is no such model folder")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.device_count() else "cpu"


def _hugging_face_config(path: str) -> dict[str, Any]:
    local = Path(path) / "config.json"
    if local.exists():
        return json.loads(local.read_text())
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path).to_dict()
