"""Starts SGLang for an engine, or for an engine's part on a further node, with the right arguments and environment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.rollout.config import RolloutConfig
from verst.runtime.rollout.engine import arguments
from verst.runtime.rollout.engine.client import EngineError
from verst.runtime.rollout.engine.nodes import Meeting
from verst.runtime.rollout.engine.server import EngineServer, free_port
from verst.sync.replay.routing import RoutingShape, routing_shape
from verst.sync.replay.selection import SelectionShape, selection_shape


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
    """Starts SGLang's processes on this node; `part` is the node's number in an engine over several nodes.

    Does not wait until the server serves. Also returns the shape of the routing that the engine will report, or None.
    """
    path = config.model_path or model.path
    _require_folder(path)
    device = device or seen_device()
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
        # Replicas need a port each, which SGLang finds.
        nccl_port=free_port("127.0.0.1", but=port)
        if meeting is None and arguments.data_parallel_size(config) == 1
        else None,
        meeting=meeting.address if meeting else None,
        part=part,
        shares_gpus=shares_gpus,
    )
    environment = arguments.engine_environment(device, threads, config, selection)
    if meeting is not None:  # otherwise SGLang guesses an address for the messages between its parts
        environment["SGLANG_HOST_IP"] = os.environ.get("VERST_HOST", host)
    server = await EngineServer.start(argv, device=device, key=key, environment=environment, log=log)
    return server, shape


def reported_selection(model: ModelConfig, device: str) -> SelectionShape | None:
    """The shape of the choices that sparse attention will report, or None. SGLang captures them only on CUDA."""
    return selection_shape(_hugging_face_config(model.path)) if device == "cuda" else None


def _require_folder(path: str) -> None:
    if path.startswith(("/", ".")) and not Path(path).is_dir():
        raise EngineError(f"{path}: there is no such model folder")


def seen_device() -> str:
    """The device of engines here: "cuda" if this process sees a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.device_count() else "cpu"


def _hugging_face_config(path: str) -> dict[str, Any]:
    local = Path(path) / "config.json"
    if local.exists():
        return json.loads(local.read_text())
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path).to_dict()
