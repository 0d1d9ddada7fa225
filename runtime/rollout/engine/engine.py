"""One SGLang engine: its server process, and the calls that a rollout worker makes to it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.messages.sample import FinishReason
from verst.runtime.messages.weight_round import PauseMode
from verst.runtime.rollout.config import RolloutConfig, SamplingConfig
from verst.runtime.rollout.engine.client import EngineClient, EngineError
from verst.runtime.rollout.engine.nodes import Meeting
from verst.runtime.rollout.engine.server import EngineServer, free_port
from verst.runtime.rollout.engine.start import reported_selection, seen_device, start_server
from verst.runtime.rollout.engine.updates import EngineUpdates
from verst.sync.replay.routing import RoutingShape, decode_routed_experts
from verst.sync.replay.selection import SelectionShape, decode_indexer_topk

_CONTROL_TIMEOUT_S = 60.0


class Generation(msgspec.Struct, kw_only=True):
    """The result of one call to the engine, with P prompt tokens and R generated tokens (0 if aborted early)."""

    ids: np.ndarray  # int32 [R]
    # float32 [R], nats, at the temperature of the sampling (greedy: 1), before top_p, top_k and min_p
    logprobs: np.ndarray
    weight_versions: np.ndarray  # int32 [R]
    finish: FinishReason
    routing: np.ndarray | None  # uint8 [P+R-1, MoE layers, entry]
    selected: np.ndarray | None = None  # uint8 [layers, bytes of P+R-1 tokens] (`sync/replay/selection.py`)
    prompt_tokens: int
    cached_tokens: int  # prompt tokens that came from the prefix cache
    seconds: float  # from sending the request to receiving the whole answer


class Engine(EngineUpdates):
    """A running SGLang server. `start` makes one, `stop` ends it."""

    def __init__(
        self,
        server: EngineServer,
        client: EngineClient,
        config: RolloutConfig,
        shape: RoutingShape | None,
        selection: SelectionShape | None = None,
    ) -> None:
        super().__init__(client)
        self._server = server
        self._config = config
        self._routing_shape = shape
        self._selection_shape = selection
        # Episodes may ask for several turns at once. Requests that wait while the engine is paused hold connections,
        # and the calls that bring new weights need some, too.
        self._room = asyncio.Semaphore(config.concurrency)

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

        device: "cpu" or "cuda"; by default "cuda" if this process sees a GPU. CUDA_VISIBLE_DEVICES of the worker says
            which GPUs.
        routing: return routed experts with each generation (ignored for a dense model).
        seed: SGLang's own seed.
        meeting: where the engine's parts on other nodes join it.
        shares_gpus: the engine will have to give its GPU memory back at times (`release_memory`).

        Raises EngineError with the server's last lines if it ends, or does not serve within `config.start_timeout_s`.
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
        selection = reported_selection(model, device or seen_device()) if routing else None
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
        """The process id of the server's main process."""
        return self._server.pid

    async def generate(
        self, input_ids: list[int], sampling: SamplingConfig, seed: int | None = None
    ) -> Generation:
        """Continues `input_ids`. With a seed, the tokens depend only on the prompt, the weights and the seed."""
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
        async with self._room, self._in_flight(request):
            began = time.monotonic()
            answer = await self._client.post("/generate", body, self._config.request_timeout_s)
            seconds = time.monotonic() - began
            return await self._generation(request, answer, len(input_ids), seconds)

    @contextlib.asynccontextmanager
    async def _in_flight(self, request: str) -> AsyncIterator[None]:
        self._versions.begin(request)
        try:
            yield
        except (EngineError, asyncio.CancelledError):
            # Otherwise the engine would go on generating for nobody.
            if self.alive():
                with contextlib.suppress(EngineError):
                    await asyncio.shield(self.abort(request))
            raise
        finally:
            self._versions.end(request)

    async def _generation(
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
            # In a thread: long prompts have hundreds of megabytes, which takes seconds, and heartbeats must go on.
            told = meta.pop("indexer_topk")
            selected = await asyncio.to_thread(decode_indexer_topk, told, self._selection_shape, tokens)
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
        """Stops generating. Requests in flight keep their cache ("in_place") or recompute it later ("retract")."""
        await self._client.post("/pause_generation", {"mode": mode}, _CONTROL_TIMEOUT_S)

    async def resume(self) -> None:
        """Continues where `pause` stopped."""
        await self._client.post("/continue_generation", {}, _CONTROL_TIMEOUT_S)

    async def release_memory(self, kinds: list[str], timeout_s: float) -> None:
        """Gives the GPU memory of these kinds ("kv_cache", "weights") back; the contents are lost.

        Waits until nothing is in flight, because SGLang ends if it is asked before. Raises EngineError. On a CPU, and
        without SGLang's memory saver, the server accepts the call but keeps its memory.
        """
        await self._idle(timeout_s)
        await self._client.post("/release_memory_occupation", {"tags": kinds}, timeout_s)

    async def resume_memory(self, kinds: list[str], timeout_s: float) -> None:
        """Takes released memory again. Its contents are undefined."""
        await self._client.post("/resume_memory_occupation", {"tags": kinds}, timeout_s)

    async def flush_cache(self) -> None:
        """Empties the prefix cache. Raises EngineError while requests are in flight."""
        await self._client.post("/flush_cache", {}, _CONTROL_TIMEOUT_S)

    async def abort(self, request: str | None = None) -> None:
        """Ends one request in flight, or all of them. They return their tokens so far, with finish "abort"."""
        body = {"abort_all": True} if request is None else {"rid": request}
        await self._client.post("/abort_request", body, 10)

    async def reset(self, timeout_s: float = 60) -> None:
        """Prepares the engine for another trainer: nothing in flight, nothing cached, not paused.

        The weights stay. The prefix cache must be emptied, because another life of the run uses the same version
        numbers for other weights. Raises EngineError if requests do not end in time.
        """
        await self.abort()
        await self.resume()
        await self._idle(timeout_s)

    async def _idle(self, timeout_s: float) -> None:
        """Waits until nothing is in flight, and empties the prefix cache, which is possible only then."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return await self.flush_cache()
            except EngineError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.5)

    def alive(self) -> bool:
        """Whether the server's main process is running."""
        return self._server.alive()

    async def wait_dead(self) -> str:
        """Waits until the server has ended; returns how it ended, with its last lines."""
        return await self._server.wait_dead()

    async def stop(self) -> None:
        """Kills the server and all its processes. Further calls do nothing."""
        await self._client.close()
        await self._server.kill()
        self._marks.remove()
