"""One rank of an engine without its server: SGLang's own model classes, filled through Verst's own transport.

    python -m tests.sync.sglang_blocks FOLDER OUT RANK RANKS NAME PORT TRAINER_RANKS

Joins group NAME at PORT with the trainer's ranks, receives version 1, and compares each parameter, bit for bit, with
what SGLang's loader then makes of FOLDER. Writes OUT/RANK.json. Nothing is generated: SGLang 0.5.17 has no kernels for
quantised weights on a CPU without AMX. For FP8 its `process_weights_after_loading` asserts AMX, so it is left out here
(on Hopper, says its source, it leaves FP8 blocks as they are); for MXFP8 in linear layers it runs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.sync.sglang_loading import server_arguments
from verst.runtime.rollout.inside_sglang import cpu as engine_cpu
from verst.runtime.rollout.inside_sglang import repacks as engine_repacks
from verst.runtime.rollout.inside_sglang.blocks import _open
from verst.runtime.rollout.inside_sglang.orders import LinkOrder
from verst.runtime.rollout.inside_sglang.repacks import require_as_loaded
from verst.sync.layout.load_trace import TraceError
from verst.sync.wire.groups import join
from verst.sync.wire.wire import Wire

_TIMEOUT_S = 120.0


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    rank, ranks = int(sys.argv[3]), int(sys.argv[4])
    name, port, trainer_ranks = sys.argv[5], int(sys.argv[6]), int(sys.argv[7])
    model, reload, quantization = start(folder, out, rank, ranks)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    deadline = time.monotonic() + _TIMEOUT_S
    wire = Wire(join("127.0.0.1", port, name, trainer_ranks + rank, trainer_ranks + ranks, "gloo"))
    order = LinkOrder(trainer_ranks, 1 << 18, 0, _TIMEOUT_S)
    receiver, _, _ = _open(wire, model, order, deadline)
    receiver.receive(1, deadline)
    received = {name: p.detach().clone() for name, p in model.named_parameters()}
    reload()
    kinds = [p.dtype for p in received.values()]
    found = {
        "quantization": quantization,
        "unequal": [
            name for name, p in model.named_parameters() if not torch.equal(bits(p), bits(received[name]))
        ],
        "float8": sum(kind == torch.float8_e4m3fn for kind in kinds),
        "scales": sum(name.endswith("scale_inv") for name in received),
    }
    if quantization == "mxfp8":
        found["repacked"] = repacks(model, reload)
    (out / f"{rank}.json").write_text(json.dumps(found))


def repacks(model: torch.nn.Module, reload: Callable[[], None]) -> list[str | None]:
    """Why blocks cannot be written into the model: as SGLang has just loaded it, and when one layer's weight is
    turned around after loading, as for kernels that want it so."""
    found = [refusal(model)]
    method = model.model.layers[1].mlp.down_proj.quant_method  # type: ignore[union-attr, index]

    def turn_around(layer: torch.nn.Module) -> None:
        layer.weight.data = layer.weight.data.flip(0)  # type: ignore[union-attr, operator]

    method.process_weights_after_loading = turn_around
    reload()
    return [*found, refusal(model)]


def refusal(model: torch.nn.Module) -> str | None:
    try:
        require_as_loaded(model)
    except TraceError as error:
        return str(error)
    return None


def start(
    folder: Path, out: Path, rank: int, ranks: int
) -> tuple[torch.nn.Module, Callable[[], None], str | None]:
    """The model of one of `ranks` ranks, and what loads the folder into it."""
    engine_cpu.apply()
    engine_repacks.apply()
    arguments = server_arguments(folder, ranks)
    from sglang.srt import distributed
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.layers.dp_attention import initialize_dp_attention
    from sglang.srt.model_loader import loader as loading

    distributed.init_distributed_environment(
        backend="gloo",
        world_size=ranks,
        rank=rank,
        local_rank=rank,
        distributed_init_method=f"file://{out / 'engine'}",
    )
    distributed.initialize_model_parallel(tensor_model_parallel_size=ranks)
    config, how = ModelConfig.from_server_args(arguments), LoadConfig()
    initialize_dp_attention(arguments, config)
    torch.set_default_dtype(torch.bfloat16)
    model = loading._initialize_model(config, how, loading._get_quantization_config(config, how))
    torch.set_default_dtype(torch.float32)

    def reload() -> None:
        weights = loading.get_model_loader(how, config)._get_all_weights(config, model)
        if config.quantization == "mxfp8":
            loading.DefaultModelLoader.load_weights_and_postprocess(model, weights, torch.device("cpu"))
        else:
            model.load_weights(weights)

    return model, reload, config.quantization


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


if __name__ == "__main__":
    main()
