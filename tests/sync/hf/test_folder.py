"""Model folders promise: what is missing, broken or of another shape is named, with its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.sync.tiny_models import write_model
from verst.sync.hf.folder import (
    INDEX,
    SINGLE,
    HfFolder,
    copy_companions,
    import_weights,
    name_dtype,
    read_config,
)
from verst.sync.layout.binding import Bound
from verst.sync.layout.layout import Layout, ParallelSizes
from verst.sync.layout.mapping import family_for


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {
        "single": write_model(base / "single", "qwen3"),
        "sharded": write_model(base / "sharded", "qwen3", max_shard_size="40KB"),
    }


def import_from(folder: Path, rank: int = 0, sizes: ParallelSizes | None = None) -> dict[str, torch.Tensor]:
    """Imports into bare tensors of one rank's layout."""
    config = read_config(folder)
    layout = Layout(family_for(config), config, sizes or ParallelSizes(), rank)
    parameters = [(p, torch.nn.Parameter(torch.full(p.shape, torch.nan))) for p in layout.parameters]
    import_weights(folder, Bound(layout, parameters, []))
    return {p.names[0]: parameter for p, parameter in parameters}


def test_one_file_and_many_give_the_same(originals: dict[str, Path]) -> None:
    first, second = import_from(originals["single"]), import_from(originals["sharded"])
    assert len(list(originals["sharded"].glob("*.safetensors"))) > 1
    assert len(first) == 3 + 4 * 8
    for name, parameter in first.items():
        assert torch.equal(parameter, second[name])
        assert not parameter.isnan().any()


def test_padded_rows_of_the_vocabulary_are_zero(originals: dict[str, Path]) -> None:
    """131 tokens over two ranks: the second holds 65 of them and a row of padding."""
    sizes = ParallelSizes(world=2, tp=2)
    embedding = import_from(originals["single"], 1, sizes)["embedding.word_embeddings.weight"]
    whole = HfFolder(originals["single"]).whole("model.embed_tokens.weight")
    assert torch.equal(embedding[:65], whole[66:])
    assert embedding[65:].tolist() == [[0.0] * 32]


def _edit_index(folder: Path, edit: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    edit(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def _edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE)


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no config": ("single", lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config not JSON": ("single", lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "config no object": (
        "single",
        lambda f: (f / "config.json").write_text("[]"),
        "holds a list, not a JSON object",
    ),
    "no weights": ("single", lambda f: (f / SINGLE).unlink(), "has neither model.safetensors.index.json nor"),
    "cut short": (
        "single",
        lambda f: _cut(f / SINGLE, 3000),
        "model.safetensors is not a whole safetensors file",
    ),
    "empty": ("single", lambda f: _cut(f / SINGLE, 0), "model.safetensors is not a whole safetensors file"),
    "tensor missing": (
        "single",
        lambda f: _edit_tensors(f, lambda t: t.pop("model.layers.2.mlp.up_proj.weight")),
        r"do not fit its config.json:\n  model.layers.2.mlp.up_proj.weight \(48, 32\) is missing$",
    ),
    "other shapes": (
        "single",
        lambda f: _edit_tensors(
            f, lambda t: t.update({"model.norm.weight": torch.ones(31), "lm_head.weight": torch.ones(7, 32)})
        ),
        r"norm.weight is \(31,\), but by config.json it should be \(32,\)\n  lm_head.weight is \(7, .* \(131, 32\)$",
    ),
    "no weight map": ("sharded", lambda f: (f / INDEX).write_text("{}"), "has no weight_map"),
    "shard missing": (
        "sharded",
        lambda f: next(iter(sorted(f.glob("model-00002-*")))).unlink(),
        r"files named by model.safetensors.index.json are missing: model-00002-of-",
    ),
    "a bias that nobody reads": (
        "single",
        lambda f: _edit_tensors(
            f, lambda t: t.update({"model.layers.1.self_attn.q_proj.bias": torch.zeros(64)})
        ),
        r"model.layers.1.self_attn.q_proj.bias \(64,\) is not read by the family qwen3: it would be lost$",
    ),
    "more layers": (
        "single",
        lambda f: _edit_tensors(
            f, lambda t: t.update({"model.layers.4.mlp.up_proj.weight": torch.zeros(48, 32)})
        ),
        r"model.layers.4.mlp.up_proj.weight \(48, 32\) is not read",
    ),
    "codes": (
        "single",
        lambda f: _edit_tensors(
            f, lambda t: t.update({"model.norm.weight": torch.zeros(32, dtype=torch.int8)})
        ),
        "model.norm.weight is I8, not one of F64, F32, F16, BF16: quantised weights cannot be trained",
    ),
    "a NaN": (
        "single",
        lambda f: _edit_tensors(f, lambda t: t["model.layers.2.mlp.up_proj.weight"][3, 5:7].fill_(torch.nan)),
        "model.layers.2.mlp.up_proj.weight has 2 values that are NaN or infinite",
    ),
    "an infinity": (
        "single",
        lambda f: _edit_tensors(f, lambda t: t["model.norm.weight"][3:4].fill_(-torch.inf)),
        "model.norm.weight has 1 values that are NaN or infinite",
    ),
    "two sets of weights": (
        "sharded",
        lambda f: shutil.copyfile(sorted(f.glob("model-*"))[0], f / SINGLE),
        "has two sets of weights: model.safetensors, which transformers reads, and .* is newer. Remove the set",
    ),
    "git LFS": (
        "single",
        lambda f: (f / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "is a pointer of git LFS",
    ),
    "index wrong": (
        "sharded",
        lambda f: _edit_index(f, lambda m: m.update({"model.norm.weight": m["model.embed_tokens.weight"]})),
        r"lacks model.norm.weight, which model.safetensors.index.json places there",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_named(case: str, originals: dict[str, Path], tmp_path: Path) -> None:
    kind, break_it, message = BROKEN[case]
    folder = tmp_path / "model"
    shutil.copytree(originals[kind], folder)
    break_it(folder)
    with pytest.raises(ValueError, match=message):
        import_from(folder)


def test_the_number_format_is_named_alike_everywhere() -> None:
    config = {
        "dtype": "float32",
        "torch_dtype": "float32",
        "text_config": {"torch_dtype": "float16"},
        "a": {"b": 1},
    }
    name_dtype(config, "bfloat16")
    assert config == {
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "text_config": {"torch_dtype": "bfloat16"},
        "a": {"b": 1},
    }
    bare: dict[str, object] = {}
    name_dtype(bare, "float32")
    assert bare == {"dtype": "float32"}


def test_all_that_is_no_weight_is_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for name in (
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "model.safetensors",
        INDEX,
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    target.mkdir()
    copy_companions(source, target)
    copied = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    assert copied == ["additional_chat_templates/tool_use.jinja", "chat_template.jinja"]
    assert (target / copied[0]).read_text() == "additional_chat_templates/tool_use.jinja"


def test_harmless_tensors_are_left_out(originals: dict[str, Path], tmp_path: Path) -> None:
    """Rotary frequencies, which follow from config.json, and layers for multi-token prediction."""
    folder = tmp_path / "model"
    shutil.copytree(originals["single"], folder)
    more = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.4.eh_proj.weight": torch.ones(2),
    }
    _edit_tensors(folder, lambda t: t.update(more))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    assert import_from(folder).keys() == import_from(originals["single"]).keys()


def test_an_output_layer_beside_tied_embeddings_must_be_the_embedding(tmp_path: Path) -> None:
    """transformers would read it, engines and trainer would not."""
    folder = write_model(tmp_path / "model", "llama")
    embedding = HfFolder(folder).whole("model.embed_tokens.weight")
    _edit_tensors(folder, lambda t: t.update({"lm_head.weight": embedding.clone()}))
    import_from(folder)
    _edit_tensors(folder, lambda t: t["lm_head.weight"][130, 31].add_(1))
    with pytest.raises(
        ValueError, match=r"lm_head.weight differs from model.embed_tokens.weight, but tie_word"
    ):
        import_from(folder)
