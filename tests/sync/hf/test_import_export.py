"""Weights promise to survive Hugging Face -> Megatron -> Hugging Face bit for bit in every layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sync.tiny_models import write_model
from tests.sync.world import World, logits_of, run_world

FAMILIES = ("llama", "qwen3", "qwen3_moe", "deepseek_v3", "deepseek_v32", "glm_moe_dsa")
EXPERTS = FAMILIES[2:]
ONE_RANK: list[dict[str, Any]] = [{}]
TWO_RANKS: list[dict[str, Any]] = [
    {"pipeline-model-parallel-size": 2, "num-virtual-stages-per-pipeline-rank": 2},
    {"tensor-model-parallel-size": 2, "expert-model-parallel-size": 2, "expert-tensor-parallel-size": 1},
]
MORE_OF_TWO: list[dict[str, Any]] = [
    {"tensor-model-parallel-size": 2},
    {"pipeline-model-parallel-size": 2},
    {"pipeline-model-parallel-size": 2, "decoder-first-pipeline-num-layers": 1},
    {"expert-model-parallel-size": 2},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {f: write_model(base / f, f, max_shard_size="40KB" if f == "qwen3" else "5GB") for f in FAMILIES}


def _round_trips(
    rank: int, world: int, store: str, folders: dict[str, Path], layouts: list[Any], out: Path
) -> None:
    from verst.sync.hf.export import export
    from verst.sync.hf.folder import import_weights

    megatron = World(rank, world, store)
    for number, sizes in enumerate(layouts):
        for family, folder in folders.items():
            if "expert-model-parallel-size" in sizes and family not in EXPERTS:
                continue
            if family == "glm_moe_dsa" and "decoder-first-pipeline-num-layers" in sizes:
                continue  # the second stage would begin with a layer that shares a choice
            moe = {"sequence-parallel": True} if "tensor-model-parallel-size" in sizes else {}
            *_, bound = megatron.build(folder, {**sizes, **moe})
            import_weights(folder, bound)
            export(bound, 20_000, torch.float32, folder, out / f"{number}-{family}", shard_bytes=60_000)


@pytest.mark.long
@pytest.mark.parametrize(
    ("world", "layouts", "families", "models"),
    [
        pytest.param(1, ONE_RANK, FAMILIES, 6, id="one rank"),
        pytest.param(2, TWO_RANKS, FAMILIES, 10, id="two ranks"),
        pytest.param(2, MORE_OF_TWO, FAMILIES, 21, id="two ranks, more layouts"),
    ],
)
def test_import_then_export_is_bit_equal(
    folders: dict[str, Path],
    world: int,
    layouts: list[dict[str, Any]],
    families: Sequence[str],
    models: int,
    tmp_path: Path,
) -> None:
    from verst.sync.hf.folder import HfFolder

    run_world(world, _round_trips, {family: folders[family] for family in families}, layouts, tmp_path)
    compared = 0
    for exported in sorted(tmp_path.iterdir()):
        original, again = HfFolder(folders[exported.name.split("-")[1]]), HfFolder(exported)
        assert set(again.files) == set(original.files)
        for name in original.files:
            assert torch.equal(again.whole(name), original.whole(name)), (exported.name, name)
        assert len(set(again.files.values())) > 1
        compared += 1
    assert compared == models


def _export_one(rank: int, world: int, store: str, folder: Path, out: Path) -> None:
    from verst.sync.hf.export import export
    from verst.sync.hf.folder import import_weights

    megatron = World(rank, world, store)
    *_, replica = megatron.build(folder, {}, dtype="bfloat16")
    import_weights(folder, replica)
    export(replica, 1 << 20, torch.bfloat16, folder, out / "replicas")
    *_, bound = megatron.build(folder, {"expert-model-parallel-size": 2}, dtype="bfloat16")
    import_weights(folder, bound)
    export(bound, 1 << 20, torch.bfloat16, folder, out / "experts")
    with pytest.raises(RuntimeError, match=r"trainer rank 0 cannot write: .* exists already"):
        export(bound, 1 << 20, torch.bfloat16, folder, out / "experts")


def _export_in_the_way(rank: int, world: int, store: str, folder: Path, out: Path) -> None:
    """Rank 1 finds its first file taken; both end, and say who."""
    from unittest import mock

    from verst.sync.hf import export as hf_export
    from verst.sync.hf.folder import import_weights

    *_, bound = World(rank, world, store).build(folder, {"expert-model-parallel-size": 2}, dtype="bfloat16")
    import_weights(folder, bound)
    begin = hf_export._begin

    def begin_and_block(folder: Path, hidden: Path) -> None:
        begin(folder, hidden)
        (hidden / "rank-1-0").mkdir()

    with (
        mock.patch.object(hf_export, "_begin", begin_and_block),
        pytest.raises(RuntimeError, match=r"cannot export to .*: trainer rank 1 cannot write: .*rank-1-0"),
    ):
        hf_export.export(bound, 1 << 18, torch.bfloat16, folder, out, shard_bytes=1 << 18)
    torch.distributed.barrier()


def test_a_rank_that_cannot_write_is_named_and_nothing_is_left(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    run_world(2, _export_in_the_way, folders["qwen3_moe"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_exported_folder_loads_in_transformers_with_equal_logits(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """In bf16, and a second export to the same place is refused on every rank."""
    from transformers import AutoModelForCausalLM

    source = tmp_path / "source"
    shutil.copytree(folders["qwen3_moe"], source)
    described = json.loads((source / "config.json").read_text())
    described |= {
        "dtype": "float32",
        "torch_dtype": "float32",
    }  # what a folder has that several versions wrote
    (source / "config.json").write_text(json.dumps(described))
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/tool_use.jinja").write_text("{{ tools }}")
    run_world(2, _export_one, source, tmp_path)
    for out in ("replicas", "experts"):
        exported = json.loads((tmp_path / out / "config.json").read_text())
        assert (exported["dtype"], exported["torch_dtype"]) == ("bfloat16", "bfloat16")
        assert (tmp_path / out / "additional_chat_templates/tool_use.jinja").read_text() == "{{ tools }}"
    shutil.rmtree(source)
    tokens_BT = torch.arange(40).reshape(2, 20) * 3 % 131
    models = [
        AutoModelForCausalLM.from_pretrained(folders["qwen3_moe"], dtype=torch.bfloat16),
        AutoModelForCausalLM.from_pretrained(tmp_path / "replicas"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "experts"),
    ]
    assert models[1].dtype == models[2].dtype == torch.bfloat16
    logits = [model(tokens_BT).logits for model in models]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["experts", "replicas"]
    count = {p.name: len(list(p.glob("*.safetensors"))) for p in tmp_path.iterdir()}
    assert count == {"replicas": 1, "experts": 2}, "no more files than the size asks for, or who holds what"


def _bias_in_bf16(rank: int, world: int, store: str, folder: Path) -> None:
    from verst.sync.hf.folder import HfFolder, import_weights

    *_, bound = World(rank, world, store).build(folder, {}, dtype="bfloat16")
    import_weights(folder, bound)
    assert len(bound.frozen) == 3
    for local, bias in bound.frozen:
        assert torch.equal(bias, HfFolder(folder).whole(local.pieces[0].hf))


def test_a_routers_bias_is_not_rounded(folders: dict[str, Path]) -> None:
    """In a bf16 model too: its rounding would send tokens elsewhere."""
    run_world(1, _bias_in_bf16, folders["deepseek_v3"])


def _logits(rank: int, world: int, store: str, folders: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    from verst.sync.hf.folder import import_weights

    megatron = World(rank, world, store)
    tokens_BT = torch.arange(40).reshape(2, 20) * 3 % 131
    for family, folder in folders.items():
        reference = AutoModelForCausalLM.from_pretrained(folder)(tokens_BT).logits
        *_, chunks, bound = megatron.build(folder, {})
        import_weights(folder, bound)
        logits = logits_of(chunks[0], tokens_BT)
        assert reference.abs().max() > 0.5
        difference = (logits - reference).abs().max().item()
        assert difference < 2e-5, f"{family}: {difference}"


@pytest.mark.long
def test_imported_model_has_transformers_logits(folders: dict[str, Path], tmp_path: Path) -> None:
    """In fp32; with Qwen3-MoE's two kinds of routing weights, one dense layer; Llama 3.1 rope; latent attention with
    plain rope and YaRN (also Kimi-K2's, and without the original length), routing limited to groups and in one."""
    plain = write_model(tmp_path / "plain", "qwen3_moe", norm_topk_prob=False, mlp_only_layers=[1])
    rope = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    }
    llama3 = write_model(tmp_path / "llama3", "llama", rope_parameters=rope, max_position_embeddings=16384)
    yarn = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
        "mscale": 0.7,
        "mscale_all_dim": 1.0,
        "rope_theta": 10000.0,
    }
    one_group = write_model(
        tmp_path / "yarn", "deepseek_v3", rope_parameters=yarn, n_group=1, topk_group=1, n_shared_experts=1
    )
    kimi = {
        "type": "yarn",
        "factor": 32.0,
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    kimis = write_model(tmp_path / "kimi", "deepseek_v3", rope_parameters=kimi | {"rope_theta": 50000.0})
    lone = {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "rope_theta": 10000.0}  # original length: 64
    short = write_model(tmp_path / "short", "deepseek_v3", rope_parameters=lone)
    others = {"plain": plain, "llama3": llama3, "yarn": one_group, "kimi": kimis, "short": short}
    run_world(1, _logits, {**folders, **others})


def _glm_logits(rank: int, world: int, store: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as theirs

    from verst.sync.hf.folder import import_weights

    *_, chunks, bound = World(rank, world, store).build(folder, {})
    import_weights(folder, bound)
    tokens_BT = torch.arange(40).reshape(2, 20) * 3 % 131
    logits = logits_of(chunks[0], tokens_BT)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for layer in model.model.layers:
        layer.self_attn.q_a_layernorm.variance_epsilon = model.config.rms_norm_eps
        layer.self_attn.kv_a_layernorm.variance_epsilon = model.config.rms_norm_eps
    read_by_transformers = model(tokens_BT).logits
    theirs.apply_rotary_pos_emb = theirs.apply_rotary_pos_emb_interleave  # which the indexer calls
    assert (logits - model(tokens_BT).logits).abs().max() < 2e-5
    assert (logits - read_by_transformers).abs().max() > 0.01


def test_glm_5_is_read_as_sglang_reads_it(tmp_path: Path) -> None:
    """Its indexer rotates neighbours (`indexer_rope_interleave`) and all norms have one epsilon. Transformers' model
    says the same where it is told to do so, and something else where it is not."""
    folder = write_model(tmp_path / "glm", "glm_moe_dsa", indexer_rope_interleave=True, rms_norm_eps=1e-3)
    run_world(1, _glm_logits, folder)


def _exported(rank: int, world: int, store: str, folder: Path, out: Path) -> None:
    from verst.sync.hf.export import export
    from verst.sync.hf.folder import import_weights

    *_, bound = World(rank, world, store).build(folder, {})
    import_weights(folder, bound)
    export(bound, 1 << 20, torch.float32, folder, out)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm_moe_dsa"])
def test_layers_for_multi_token_prediction_are_neither_read_nor_written(family: str, tmp_path: Path) -> None:
    """A checkpoint has them behind the last decoder layer, with experts and an indexer of their own."""
    from safetensors.torch import load_file, save_file

    from verst.sync.hf.folder import HfFolder, read_config
    from verst.sync.replay.routing import routing_shape
    from verst.sync.replay.selection import selection_shape

    folder = write_model(tmp_path / family, family, num_nextn_predict_layers=1)
    config = read_config(folder)
    layers = config["num_hidden_layers"]
    decoder = load_file(folder / "model.safetensors")
    extra = {
        f"model.layers.{layers}.{name}": torch.randn(8, 8)
        for name in ("eh_proj.weight", "mlp.gate.weight", "self_attn.indexer.wk.weight")
    }
    save_file(decoder | extra, folder / "model.safetensors", metadata={"format": "pt"})
    run_world(1, _exported, folder, tmp_path / "out")
    assert set(HfFolder(tmp_path / "out").files) == set(decoder)
    assert read_config(tmp_path / "out")["num_nextn_predict_layers"] == 0
    # SGLang answers for `num_hidden_layers` layers (RoutedExpertsCapturer, get_num_indexer_layers).
    routing, selection = routing_shape(config), selection_shape(config)
    assert routing is not None
    assert routing.layers == layers > max(routing.moe_layers)
    assert (len(selection.sources) if selection else 0) == (layers if family == "glm_moe_dsa" else 0)
