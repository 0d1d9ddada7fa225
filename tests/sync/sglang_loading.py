"""Loads model folders with SGLang's own model classes and loader on the CPU, and saves what they then hold.

    python -m tests.sync.sglang_loading OUT FOLDER[@VERSIONS]...     (in an engine's environment: see the test)

With VERSIONS, a folder of weight versions, the model then takes each of them out of a node's copy, as an engine does.
Nothing is generated: SGLang 0.5.17 has kernels for quantised weights on GPUs (and CPUs with AMX) only.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from verst.sync.versions.folder import read_index, versions
from verst.sync.versions.local_copy import LocalCopy, default_place, tensors_in


def main() -> None:
    """Writes OUT/<folder's name>.safetensors and .json for each folder; -updated after its name with VERSIONS."""
    out = Path(sys.argv[1])
    started = False
    for argument in sys.argv[2:]:
        path, _, root = argument.partition("@")
        folder = Path(path)
        name = f"{folder.name}-updated" if root else folder.name
        arguments = server_arguments(folder)
        if not started:
            start(arguments)
            started = True
        parameters, method = load(arguments, Path(root) if root else None)
        save_file(parameters, out / f"{name}.safetensors")
        (out / f"{name}.json").write_text(json.dumps({"quantization": method}))
    references(out)


def server_arguments(folder: Path, ranks: int = 1) -> object:
    """As an engine without a GPU has them."""
    from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

    arguments = ServerArgs(
        model_path=str(folder),
        device="cpu",
        dtype="bfloat16",
        attention_backend="torch_native",
        sampling_backend="pytorch",
        disable_cuda_graph=True,
        tp_size=ranks,
    )
    set_global_server_args_for_scheduler(arguments)
    from sglang.srt.layers.moe import initialize_moe_config

    initialize_moe_config(arguments)
    return arguments


def start(arguments: object) -> None:
    """A group of one."""
    from sglang.srt import distributed
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.layers.dp_attention import initialize_dp_attention

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    distributed.init_distributed_environment(
        backend="gloo",
        world_size=1,
        rank=0,
        local_rank=0,
        distributed_init_method=f"tcp://127.0.0.1:{port}",
    )
    distributed.initialize_model_parallel(tensor_model_parallel_size=1)
    initialize_dp_attention(arguments, ModelConfig.from_server_args(arguments))


def load(arguments: object, root: Path | None) -> tuple[dict[str, torch.Tensor], str | None]:
    """The model's parameters after loading, before kernels repack them, and the quantisation's name."""
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_loader import loader as loading

    config, how = ModelConfig.from_server_args(arguments), LoadConfig()
    torch.set_default_dtype(torch.bfloat16)
    model = loading._initialize_model(config, how, loading._get_quantization_config(config, how))
    model.load_weights(loading.get_model_loader(how, config)._get_all_weights(config, model))
    if root is not None:
        copy = LocalCopy(default_place())
        for version in versions(root):
            copy.follow(root, version, 60)
            model.load_weights(tensors_in(copy.path, read_index(root, version)))
    torch.set_default_dtype(torch.float32)
    return {name: p.detach().contiguous() for name, p in model.named_parameters()}, config.quantization


def references(out: Path) -> None:
    """What SGLang's own functions on the CPU make of a matrix: ue8m0 FP8 blocks, and back."""
    from sglang.srt.layers.quantization.fp8_utils import block_quant_dequant, quant_weight_ue8m0

    x = (torch.randn(256, 384, generator=torch.Generator().manual_seed(5)) * 0.02).bfloat16()
    weight, scale = quant_weight_ue8m0(x, [128, 128])
    back = block_quant_dequant(weight, scale, [128, 128], torch.bfloat16)
    save_file({"x": x, "weight": weight, "scale": scale, "back": back}, out / "references.safetensors")


if __name__ == "__main__":
    main()
