"""SGLang takes converted folders: its configuration, its model classes, its loader, tensor by tensor."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.sync.tiny_models import write_model
from verst.runtime.rollout.engine.arguments import CPU_STUBS
from verst.sync.formats import Bf16, Format, Fp8, Int4, Mxfp8, Nvfp4, engine_fault
from verst.sync.hf.convert import convert
from verst.sync.hf.folder import HfFolder, copy_companions, read_config
from verst.sync.links.engine_format import EngineFormat
from verst.sync.versions.sender import VersionSender

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[3]
SIZES = {
    "vocab_size": 256,  # SGLang pads to a multiple of 64
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
FORMATS: dict[str, Format] = {
    "bf16": Bf16(),
    "fp8": Fp8(),
    "ue8m0": Fp8(ue8m0=True),
    "mxfp8": Mxfp8(),
    "nvfp4": Nvfp4(),
    "int4": Int4(128),
}
METHODS = {
    "bf16": None,
    "fp8": "fp8",
    "ue8m0": "fp8",
    "mxfp8": "mxfp8",
    "nvfp4": "modelopt_fp4",
    "int4": "compressed-tensors",
}
# Without a GPU SGLang cannot even make room for these: it asks a dense INT4 layer's GPU for its capability, and
# moves NVFP4 experts' scales to one. benchmarks/gpu/serve_formats.py has them.
WITH_A_GPU_ALONE = {("qwen3", "int4"), ("moe", "nvfp4")}
CASES = [(m, f) for m in ("qwen3", "moe") for f in FORMATS if (m, f) not in WITH_A_GPU_ALONE]
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


def later(root: Path, model: str) -> Path:
    """The model some steps later: a tenth of each tensor's elements has moved."""
    folder = root / f"{model}-later"
    if not folder.exists():
        source = HfFolder(root / model)
        folder.mkdir()
        copy_companions(root / model, folder)
        moved = {name: source.whole(name).clone() for name in source.files}
        for tensor in moved.values():
            tensor.view(-1)[::10] *= 1.25
        save_file(moved, folder / "model.safetensors")
    return folder


def publish(root: Path, engine: str, later: Path, format: Format, ignore: list[str]) -> None:
    """What a trainer sends to this engine: what it began with, then, as deltas, what is later."""
    convert(later, root / f"{engine}-later", format, ignore)
    sender = None
    for version, folder in enumerate((root / engine.split("-")[0], later), start=1):
        source = HfFolder(folder)
        weights = {name: source.whole(name) for name in source.files}
        # In bfloat16, as a trainer has what is to be sent to an engine that is not quantised.
        weights = {
            name: t.bfloat16() if t.ndim > 1 and format.name == "bf16" else t for name, t in weights.items()
        }
        wanted = EngineFormat(read_config(root / engine), {n: tuple(t.shape) for n, t in weights.items()})
        sender = sender or VersionSender(
            root / f"{engine}-versions", keep=2, full_every=16, format=wanted.quantization
        )
        sender.send(version, [wanted.start().feed(list(weights), list(weights.values()))])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sglang")
    write_model(root / "qwen3", "qwen3", **SIZES)
    write_model(root / "llama", "llama", **SIZES)
    convert(root / "llama", root / "llama-fp8", Fp8())
    write_model(root / "moe", "qwen3_moe", moe_intermediate_size=128, max_shard_size="2MB", **SIZES)
    for model, name in CASES:
        ignore = ["model.layers.1.self_attn", "layers.1.mlp"] if name != "bf16" and model == "qwen3" else []
        convert(root / model, root / f"{model}-{name}", FORMATS[name], ignore)
        publish(root, f"{model}-{name}", later(root, model), FORMATS[name], ignore)
    environment = os.environ | {
        "SGLANG_USE_CPU_ENGINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": f"{CPU_STUBS}:{ROOT}",
    }
    (root / "out").mkdir()
    command = [sys.executable, "-m", "tests.sync.sglang_loading", str(root / "out")]
    done = subprocess.run(
        command
        + [str(root / f"{m}-{f}") for m, f in [*CASES, ("llama", "fp8")]]
        + [f"{root / f'{m}-{f}'}@{root / f'{m}-{f}-versions'}" for m, f in CASES],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return root


def expected(folder: Path, parameter: str) -> torch.Tensor | None:
    """What a parameter of SGLang's should hold, put together from the folder's tensors."""
    stored = HfFolder(folder)
    if experts := re.fullmatch(r"(.*\.experts)\.(w13|w2)_(\w+)", parameter):
        base, which, leaf = experts.groups()
        parts = ("gate_proj", "up_proj") if which == "w13" else ("down_proj",)
        count = len({n.split(".experts.")[1].split(".")[0] for n in stored.files if n.startswith(base)})
        if f"{base}.0.{parts[0]}.{leaf}" not in stored.files or leaf == "weight_shape":
            return None  # an ordering of columns, which these checkpoints do not have; shapes are not used
        rows = [joined([stored.whole(f"{base}.{e}.{p}.{leaf}") for p in parts]) for e in range(count)]
        return torch.stack(rows)
    module, _, leaf = parameter.rpartition(".")
    path, _, last = module.rpartition(".")
    parts = FUSED.get(last, (last,))
    return joined([stored.whole(f"{path}.{part}.{leaf}" if path else f"{part}.{leaf}") for part in parts])


def joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    if tensors[0].ndim == 0:
        return torch.stack(tensors)
    return torch.cat([t.view(torch.uint8) if t.itemsize == 1 else t for t in tensors])


@pytest.mark.parametrize("then", ["", "-later"])
@pytest.mark.parametrize(("model", "name"), CASES)
def test_sglang_holds_what_was_converted_and_then_what_was_published(loaded, model, name, then):
    folder = loaded / f"{model}-{name}{then}"
    out = loaded / f"out/{model}-{name}{'-updated' if then else ''}"
    assert json.loads(out.with_suffix(".json").read_text())["quantization"] == METHODS[name]
    parameters = load_file(out.with_suffix(".safetensors"))
    compared = quantised = 0
    for parameter, held in parameters.items():
        want = expected(folder, parameter)
        if want is None:
            continue
        held = held.view(torch.uint8) if held.itemsize == 1 else held
        if want.shape != held.shape and name == "int4":
            want = want.transpose(-1, -2)  # its loader turns experts around
        assert held.shape == want.shape or held.numel() == want.numel() == 1, parameter
        # Vectors are in the file as they were, float32; it rounds them to the model's type.
        want = want.to(held.dtype)
        assert torch.equal(held.float().view(-1), want.float().reshape(-1)), parameter
        compared += 1
        quantised += "scale" in parameter
    # Of INT4's experts six each: an ordering of columns, its inverse and a shape, twice.
    assert compared == len(parameters) - (
        6 * SIZES["num_hidden_layers"] if (model, name) == ("moe", "int4") else 0
    )
    assert (quantised > 0) == (name != "bf16")


def test_sglangs_llama_still_drops_fp8_scales(loaded):
    """When this fails, `engine_fault` has had its day."""
    parameters = load_file(loaded / "out/llama-fp8.safetensors")
    name = "model.layers.0.mlp.down_proj.weight_scale_inv"
    want = expected(loaded / "llama-fp8", name)
    assert want is not None
    assert not torch.equal(parameters[name], want)
    assert engine_fault(Fp8(), json.loads((loaded / "llama-fp8/config.json").read_text()))


def test_sglangs_own_fp8(loaded):
    read = load_file(loaded / "out/references.safetensors")
    made = Fp8(ue8m0=True).tensors("weight", read["x"])
    assert torch.equal(made["weight"].view(torch.uint8), read["weight"].view(torch.uint8))
    assert torch.equal(made["weight_scale_inv"], read["scale"])
    assert torch.equal(Fp8().restore(made), read["back"])
