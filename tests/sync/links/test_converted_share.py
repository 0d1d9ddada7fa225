"""Trainer ranks convert what an engine wants in another format together: as `verst convert` does, each its share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.sync.hf.test_convert import plain
from tests.sync.tiny_models import write_model
from tests.sync.world import World, run_world
from verst.runtime.rollout.engine.arguments import CPU_STUBS
from verst.sync.files.tensor_checksum import tensor_bytes
from verst.sync.formats import Bf16, Format, Fp8, Int4, Mxfp8, Nvfp4
from verst.sync.hf.convert import convert

ROOT = Path(__file__).parents[3]
FORMATS: dict[str, Format] = {"fp8": Fp8(), "mxfp8": Mxfp8(), "nvfp4": Nvfp4(), "int4": Int4(128)}
# Slices of two ranks end inside a block of 128, and at its end.
SIZES: dict[str, Any] = {
    "vocab_size": 256,  # SGLang pads to a multiple of 64
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
}
MODELS = {"qwen3": SIZES, "qwen3_moe": SIZES | {"moe_intermediate_size": 256, "num_experts": 4}}
TWO_RANKS: dict[str, dict[str, Any]] = {
    "tensor": {"tensor-model-parallel-size": 2},
    "pipeline": {"pipeline-model-parallel-size": 2},
    "experts": {"expert-model-parallel-size": 2},
    "replicas": {},
}
CASES = [
    (model, layout, format)
    for model in MODELS
    for layout in TWO_RANKS
    for format in FORMATS
    if model == "qwen3_moe" or layout != "experts"
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each model as it is trained, and in each format."""
    root = tmp_path_factory.mktemp("models")
    for model, sizes in MODELS.items():
        write_model(root / f"{model}-float32", model, **sizes)
        convert(root / f"{model}-float32", root / model, Bf16())  # as it is trained
        for name, format in FORMATS.items():
            convert(root / model, root / f"{model}-{name}", format)
    return root


def share_of(megatron: World, root: Path, model: str, layout: str, format: str, bucket_bytes: int) -> Any:
    from verst.sync.hf.folder import import_weights, read_config
    from verst.sync.links.converted_share import ConvertedShare
    from verst.sync.links.engine_format import EngineFormat
    from verst.sync.links.gather import whole_tensors

    sizes = TWO_RANKS[layout]
    more = {"sequence-parallel": True} if model == "qwen3_moe" and "tensor" in layout else {}
    *_, bound = megatron.build(root / model, sizes | more, dtype="bfloat16")
    import_weights(root / model, bound)
    wanted = EngineFormat(read_config(root / f"{model}-{format}"), whole_tensors(bound.layout))
    return ConvertedShare(bound, wanted, bucket_bytes, torch.bfloat16)


def _convert_together(rank: int, world: int, store: str, root: Path, cases: list[Any], out: Path) -> None:
    megatron = World(rank, world, store)
    for model, layout, format in cases:
        share = share_of(megatron, root, model, layout, format, 1 << 18)
        share.convert()
        made = {name: tensor.clone() for name, tensor in share._made.items()}
        save_file(made, out / f"{model}-{layout}-{format}-{rank}.safetensors")


@pytest.mark.long
def test_the_shares_of_all_ranks_are_what_the_converter_writes(folders: Path, tmp_path: Path) -> None:
    run_world(2, _convert_together, folders, CASES, tmp_path, timeout=280)
    for model, layout, format in CASES:
        shares = [load_file(tmp_path / f"{model}-{layout}-{format}-{rank}.safetensors") for rank in range(2)]
        assert not shares[0].keys() & shares[1].keys(), "each tensor has one owner"
        original = plain(folders / model)
        wanted = {
            name: tensor
            for name, tensor in plain(folders / f"{model}-{format}").items()
            if name not in original or tensor.dtype not in (torch.float32, torch.bfloat16)
        }
        found = shares[0] | shares[1]
        assert found.keys() == wanted.keys(), (model, layout, format)
        for name, tensor in wanted.items():
            assert found[name].dtype == tensor.dtype
            assert tensor_bytes(found[name]) == tensor_bytes(tensor), (model, layout, format, name)
        sizes = [sum(t.nbytes for t in share.values()) for share in shares]
        assert abs(sizes[0] - sizes[1]) <= 3 * max(t.nbytes for t in wanted.values()), (model, layout, sizes)


def _send(
    rank: int, world: int, store: str, root: Path, case: tuple[str, str, str], meeting: tuple[int, str, int]
) -> None:
    """A trainer rank: converts its share, joins with the engine's ranks, sends one version."""
    import time

    from verst.sync.links.block_link import BlockLink
    from verst.sync.wire.wire import Slots

    port, name, engine_ranks = meeting
    share = share_of(World(rank, world, store), root, *case, 1 << 20)
    deadline = time.monotonic() + 100
    opening = BlockLink.open(
        engine=0,
        host="127.0.0.1",
        port=port,
        name=name,
        rank=rank,
        trainer_ranks=world,
        engine_ranks=engine_ranks,
        backend="gloo",
        bucket_bytes=1 << 18,
        timeout_s=100,
        blocks=share.blocks,
        parameters=share.parameters,
        slots=Slots(),
    )
    assert (reason := opening.wait(deadline, lambda: None)) is None, reason
    share.convert()
    sending = opening.result().start(1, deadline)
    assert (reason := sending.wait(deadline, lambda: None)) is None, reason


@pytest.mark.long  # SGLang, in processes of its own
@pytest.mark.parametrize(
    ("model", "layout", "format", "ranks"),
    [
        ("qwen3", "tensor", "fp8", 1),
        ("qwen3", "pipeline", "fp8", 2),
        ("qwen3_moe", "experts", "fp8", 2),
        ("qwen3_moe", "tensor", "fp8", 1),
        ("qwen3", "tensor", "mxfp8", 2),
    ],
)
def test_blocks_land_in_the_parameters_of_an_engine_in_another_format(
    folders: Path, tmp_path: Path, model: str, layout: str, format: str, ranks: int
) -> None:
    """SGLang's own classes hold, bit for bit, what its loader makes of the converter's folder."""
    from verst.sync.wire.groups import Source

    source, name = Source("127.0.0.1"), f"{format}-{uuid.uuid4().hex[:8]}"
    environment = os.environ | {
        "SGLANG_USE_CPU_ENGINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{CPU_STUBS}:{ROOT}",
    }
    engine = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.sync.sglang_blocks", str(folders / f"{model}-{format}")),
                *(str(tmp_path), str(rank), str(ranks), name, str(source.port), "2"),
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        run_world(2, _send, folders, (model, layout, format), (source.port, name, ranks), timeout=200)
        for process in engine:
            _, errors = process.communicate(timeout=100)
            assert process.returncode == 0, errors[-5000:]
    finally:
        for process in engine:
            process.kill()
            process.communicate()
    for rank in range(ranks):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["quantization"] == format
        assert found["unequal"] == []
        assert found["float8"] > 0
        assert found["scales"] == found["float8"]
        if format == "mxfp8":
            as_loaded, turned_around = found["repacked"]
            assert as_loaded is None
            assert turned_around == (
                "SGLang has repacked model.layers.1.mlp.down_proj.weight for its kernels after loading"
            )
