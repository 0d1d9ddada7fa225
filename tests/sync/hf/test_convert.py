"""`verst convert`: folders in each format, whole or not at all, equal to the formats, and back to bf16."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.sync.tiny_models import write_model
from verst.launcher.cli import app
from verst.sync.files.shard_file import ShardFile, verify
from verst.sync.files.tensor_checksum import tensor_bytes
from verst.sync.formats import Bf16, Derived, Fp8, Int4, Mxfp8, Nvfp4, of_config
from verst.sync.formats.selection import chosen
from verst.sync.hf import convert as module
from verst.sync.hf.convert import convert
from verst.sync.hf.folder import HfFolder
from verst.sync.hf.stored_model import StoredModel

SIZES = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "moe_intermediate_size": 128}
QUANTISED = [Fp8(), Fp8((64, 64), ue8m0=True), Mxfp8(), Nvfp4(), Int4(32)]


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("m") / "moe", "qwen3_moe", max_shard_size="500KB", **SIZES)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "hf_quant_config.json").write_text("{}")
    return folder


def plain(folder: Path) -> dict[str, torch.Tensor]:
    source = HfFolder(folder)
    return {name: source.whole(name) for name in source.files}


@pytest.mark.parametrize("format", QUANTISED, ids=lambda f: f.name)
def test_a_folder_holds_what_the_format_makes_of_each_tensor(moe, tmp_path, monkeypatch, format):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 3000)  # many blocks per tensor
    target = tmp_path / "out"
    done = convert(moe, target, format, ["model.layers.1.self_attn"])
    before, after = plain(moe), plain(target)
    config = json.loads((target / "config.json").read_text())
    stated, selection = of_config(config["quantization_config"])
    assert vars(stated) == vars(format)
    taken = chosen({n: t.shape for n, t in before.items()}, selection)
    assert len(taken) == done.quantised
    assert all("experts" in n for n in taken) or format.covers == "linear"
    amax: dict[str, torch.Tensor] = {}
    for name in taken:
        group = format.amax_group(name)
        amax[group] = torch.maximum(amax.get(group, torch.tensor(0.0)), format.amax(before[name]))
    expected: dict[str, torch.Tensor] = {}
    for name, tensor in before.items():
        if name in taken:
            expected |= format.tensors(name, tensor, amax=amax[format.amax_group(name)])
        else:
            expected[name] = tensor.bfloat16() if tensor.ndim > 1 else tensor
    assert after.keys() == expected.keys()
    for name in expected:
        assert (after[name].dtype, after[name].shape) == (expected[name].dtype, expected[name].shape), name
        assert tensor_bytes(after[name]) == tensor_bytes(expected[name]), name
    assert (target / "tokenizer.json").is_file()
    assert not (target / "hf_quant_config.json").exists()
    assert config["dtype"] == "bfloat16"
    assert sorted(p.name for p in target.glob("*.safetensors")) == sorted(
        p.name for p in moe.glob("*.safetensors")
    )
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("format", QUANTISED, ids=lambda f: f.name)
def test_it_comes_back_to_bf16(moe, tmp_path, monkeypatch, format):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 9000)
    convert(moe, tmp_path / "q", format)
    convert(tmp_path / "q", tmp_path / "b", Bf16())
    before, after = plain(moe), plain(tmp_path / "b")
    assert "quantization_config" not in json.loads((tmp_path / "b/config.json").read_text())
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in before.items()}
    stored = StoredModel(tmp_path / "q")
    for name, tensor in after.items():
        assert tensor.dtype == (torch.bfloat16 if tensor.ndim > 1 else torch.float32)
        assert torch.equal(tensor.float(), stored.whole(name).float())
        worst = 0.26 if format.covers == "experts" else 0.08
        assert (tensor.float() - before[name]).norm() <= worst * before[name].norm(), name


def test_deepseeks_published_form_is_read(tmp_path):
    """Scales may lie in another file than their weights, and blocks at the ends are partial."""
    folder = tmp_path / "deepseek"
    folder.mkdir()
    x = torch.randn(300, 200).bfloat16()
    name = "model.layers.0.self_attn.kv_b_proj.weight"
    made = Fp8().tensors(name, x)
    bias = torch.randn(4)
    save_file(
        {name: made[name], "model.layers.0.mlp.gate.e_score_correction_bias": bias}, folder / "a.safetensors"
    )
    save_file({name + "_scale_inv": made[name + "_scale_inv"]}, folder / "b.safetensors")
    weight_map = {name: "a.safetensors", name + "_scale_inv": "b.safetensors"}
    weight_map["model.layers.0.mlp.gate.e_score_correction_bias"] = "a.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    quantisation = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    (folder / "config.json").write_text(
        json.dumps({"torch_dtype": "bfloat16", "quantization_config": quantisation})
    )
    convert(folder, tmp_path / "out", Bf16())
    after = load_file(tmp_path / "out" / "a.safetensors")
    scale = made[name + "_scale_inv"].repeat_interleave(128, 0)[:300].repeat_interleave(128, 1)[:, :200]
    assert torch.equal(after[name], (made[name].float() * scale).bfloat16())
    assert torch.equal(after["model.layers.0.mlp.gate.e_score_correction_bias"], bias)


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command_says_what_it_did(moe, tmp_path):
    code, output = run(moe, tmp_path / "out", "--format", "int4", "--group-size", 32)
    assert code == 0, output
    assert "24 layers in int4" in output
    config = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["weights"]["group_size"] == 32


@pytest.mark.parametrize(("format", "warned"), [("fp8", True), ("mxfp8", True), ("bf16", False)])
def test_what_the_engine_gets_wrong_is_told(tmp_path, format, warned):
    llama = write_model(
        tmp_path / "llama", "llama", hidden_size=64, intermediate_size=64, num_hidden_layers=1
    )
    code, output = run(llama, tmp_path / "out", "--format", format)
    assert code == 0
    assert ("warning: SGLang 0.5.17 loads" in output) == warned


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "fp7"], "no format 'fp7'. Did you mean `fp8`?"),
        (["--format", "int4", "--block", "128x128"], "--block is an option of the format fp8"),
        (["--format", "fp8", "--group-size", "32"], "--group-size is an option of the format int4"),
        (["--format", "nvfp4", "--ue8m0"], "--ue8m0 is an option of the format fp8"),
        (["--format", "fp8", "--block", "128"], "--block 128 must have the form ROWSxCOLUMNS"),
        (["--format", "fp8", "--block", "0x128"], "at least 1×1"),
        (["--format", "int4", "--group-size", "48"], "32, 64 or 128 columns, not 48"),
        (["--format", "bf16", "--ignore", "lm_head"], "bf16 quantises none"),
        (["--format", "int4"], "multiple of 128 columns, this has"),
        (["--format", "fp8", "--ignore", "q_proj"], "ignore all or none"),
        (["--format", "fp8", "--ignore", "model"], "no linear layer to quantise"),
        (["--format", "fp8", "--device", "cuda:99"], "--device cuda:99"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_told(moe, tmp_path, options, message):
    source = moe
    if message.startswith("multiple"):
        source = write_model(tmp_path / "narrow", "llama", hidden_size=32)
    code, output = run(source, tmp_path / "out", *options)
    assert code == 2
    assert message in output
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


def test_wrong_folders_are_told(moe, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    assert "does not exist" in run(tmp_path / "none", tmp_path / "out", "--format", "fp8")[1]
    assert "no config.json" in run(tmp_path / "empty", tmp_path / "out", "--format", "fp8")[1]
    code, output = run(moe, tmp_path / "full", "--format", "fp8")
    assert code == 2
    assert "not an empty folder" in output
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]
    assert run(moe, tmp_path / "empty", "--format", "fp8")[0] == 0  # an empty one is as good as none


def test_nans_are_named_and_leave_nothing(moe, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    for file in moe.iterdir():
        tensors = load_file(file) if file.suffix == ".safetensors" else None
        if tensors is None:
            (folder / file.name).write_bytes(file.read_bytes())
            continue
        name = "model.layers.1.mlp.experts.2.up_proj.weight"
        if name in tensors:
            tensors[name][5, 5] = float("nan")
        save_file(tensors, folder / file.name)
    code, output = run(folder, tmp_path / "out", "--format", "fp8")
    assert code == 2
    assert "model.layers.1.mlp.experts.2.up_proj.weight holds an infinity or a NaN" in output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad"]


def test_damage_on_the_disk_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.randn(30, 30), "b": torch.arange(7, dtype=torch.uint8), "c": torch.tensor(2.5)}
    with ShardFile(path, [Derived(n, tuple(t.shape), t.dtype) for n, t in tensors.items()]) as file:
        for name, tensor in tensors.items():
            file.write(name, tensor)
        sums = file.close()
    verify(path, sums)
    with safe_open(path, framework="pt") as read:
        assert all(torch.equal(read.get_tensor(n), t) for n, t in tensors.items())
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"x.safetensors is damaged.*\n  b is") as caught:
        verify(path, sums)
    assert "\n  a is" not in str(caught.value)
    path.write_bytes(data[:40])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        verify(path, sums)


def test_a_shard_that_lacks_rows_is_not_closed(tmp_path):
    (derived,) = Bf16().derived("weight", (4, 4))
    with ShardFile(tmp_path / "x", [derived]) as file:
        file.write("weight", torch.zeros(2, 4, dtype=torch.bfloat16))
        with pytest.raises(ValueError, match="1 tensors are not whole, weight first"):
            file.close()


_MEASURE = """
import resource, sys
from pathlib import Path
from verst.sync.hf.convert import convert
from verst.sync.formats import Fp8
root = Path(sys.argv[1])
convert(root / "small", root / "small-out", Fp8())
small = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(root / "large", root / "large-out", Fp8())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - small) / 1024)
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_model(tmp_path):
    for name, rows in (("small", 2048), ("large", 8192)):  # 8 MB and 34 MB in one tensor
        (tmp_path / name).mkdir()
        weight = torch.randn(rows, 2048, dtype=torch.bfloat16)
        save_file({"model.layers.0.mlp.down_proj.weight": weight}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"dtype": "bfloat16"}))
    result = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    # The mapped source's pages, 34 MB, count as long as nobody else wants them. All of it at once would be 250 MB.
    assert float(result.stdout) < 34 + 30


def test_a_full_disk_leaves_nothing(moe, small_disk):
    small_disk.mount(400)
    code, output = run(moe, small_disk.path / "out", "--format", "fp8")
    assert code == 1
    assert "cannot write " in output
    assert ".safetensors: No space left on device" in output
    assert not list(small_disk.path.iterdir())
