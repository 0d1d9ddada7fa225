"""Layouts promise: over the ranks of any world, blocks tile every Hugging Face tensor exactly."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from tests.examples import examples
from tests.sync.tiny_models import hf_config
from verst.recipes.models import deepseek_v32, glm_moe_dsa
from verst.runtime.rollout.inside_sglang.weight_compare import left_as_loaded
from verst.sync.layout.binding import Bound, bind
from verst.sync.layout.layout import Layout, ParallelSizes
from verst.sync.layout.mapping import family_for
from verst.sync.links.gather import plan_buckets, whole_tensors

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v32": "DeepseekV32ForCausalLM",
    "glm_moe_dsa": "GlmMoeDsaForCausalLM",
}
EXPERTS = ("qwen3_moe", "deepseek_v3", "deepseek_v32", "glm_moe_dsa")


def config_of(family: str, **overrides: Any) -> dict[str, Any]:
    return hf_config(family, architectures=[FAMILIES[family]], **overrides).to_dict()


def layout_of(config: dict[str, Any], parallel: ParallelSizes, rank: int = 0) -> Layout:
    return Layout(family_for(config), config, parallel, rank)


def hf_tensors(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor that is trained by its name, numbered elements, from transformers itself."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters():  # fused experts, as transformers 5 keeps them in memory
        if ".indexer." in name:
            continue
        if name.endswith("experts.gate_up_proj"):
            for e, which in itertools.product(range(len(parameter)), ("gate_proj", "up_proj")):
                shapes[name.replace("gate_up_proj", f"{e}.{which}.weight")] = (
                    parameter.shape[1] // 2,
                    parameter.shape[2],
                )
        elif name.endswith("experts.down_proj"):
            for e in range(len(parameter)):
                shapes[name.replace("down_proj", f"{e}.down_proj.weight")] = tuple(parameter.shape[1:])
        else:
            shapes[name] = tuple(parameter.shape)
    start, found = 0, {}
    for name, shape in shapes.items():
        numel = torch.Size(shape).numel()
        found[name] = torch.arange(start, start + numel, dtype=torch.int64).reshape(shape)
        start += numel
    return found


@st.composite
def worlds(draw: st.DrawFn) -> tuple[str, ParallelSizes]:
    family = draw(st.sampled_from(sorted(FAMILIES)))
    tp, pp, cp = (
        draw(st.sampled_from([1, 2, 4])),
        draw(st.sampled_from([1, 2, 4])),
        draw(st.sampled_from([1, 2])),
    )
    vpp = draw(st.sampled_from([1, 2])) if pp == 2 else 1
    ep, etp = (
        (draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2]))) if family in EXPERTS else (1, tp)
    )
    dense, expert = tp * cp, ep * etp
    per_stage = max(dense, expert) * draw(st.sampled_from([1, 2]))
    return family, ParallelSizes(world=per_stage * pp, tp=tp, pp=pp, vpp=vpp, cp=cp, ep=ep, etp=etp)


@examples(worlds(), st.booleans(), few=15, many=100)
def test_blocks_of_all_ranks_tile_every_tensor(world: tuple[str, ParallelSizes], tied: bool) -> None:
    family, parallel = world
    config = config_of(family, tie_word_embeddings=tied)
    expected = hf_tensors(config)
    seen = {name: torch.zeros_like(t) for name, t in expected.items()}
    blocks: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for rank in range(parallel.world):
        for local in layout_of(config, parallel, rank).parameters:
            for piece in local.pieces:
                assert piece.hf_shape == tuple(expected[piece.hf].shape)
                if (piece.start, piece.length) not in blocks[piece.hf]:
                    blocks[piece.hf].add((piece.start, piece.length))
                    seen[piece.hf].narrow(piece.dim, piece.start, piece.length).add_(1)
    assert {name: (int(t.min()), int(t.max())) for name, t in seen.items()} == dict.fromkeys(expected, (1, 1))


@examples(worlds(), st.booleans(), few=10, many=80)
def test_written_parameters_hold_each_element_once_and_read_back(
    world: tuple[str, ParallelSizes], tied: bool
) -> None:
    family, parallel = world
    config = config_of(family, tie_word_embeddings=tied)
    expected = hf_tensors(config)
    for rank in range(parallel.world):
        for local in layout_of(config, parallel, rank).parameters:
            parameter = torch.full(local.shape, -1, dtype=torch.int64)
            for piece in local.pieces:
                piece.write(parameter, expected[piece.hf].narrow(piece.dim, piece.start, piece.length))
            filled = parameter[parameter >= 0]
            assert filled.unique().numel() == filled.numel() == parameter.numel() - local.padding
            for piece in local.pieces:
                block = expected[piece.hf].narrow(piece.dim, piece.start, piece.length)
                assert torch.equal(piece.read(parameter), block)


def test_qkv_is_grouped_as_megatron_orders_it() -> None:
    """Per query group: its queries, its key, its value (megatron's attention.py)."""
    config = config_of("qwen3", num_attention_heads=4, num_key_value_heads=2, head_dim=1, hidden_size=1)
    layout = layout_of(config, ParallelSizes())
    local = next(
        p for p in layout.parameters if p.names[0].endswith("layers.0.self_attention.linear_qkv.weight")
    )
    parameter = torch.empty(local.shape)
    values = {"q": [0.0, 1, 2, 3], "k": [10.0, 11], "v": [20.0, 21]}
    for piece in local.pieces:
        piece.write(parameter, torch.tensor(values[piece.hf.split(".")[-2][0]]).reshape(-1, 1))
    assert parameter.flatten().tolist() == [0, 1, 10, 20, 2, 3, 11, 21]


def test_places_are_megatrons() -> None:
    from megatron.core.parallel_state import RankGenerator

    parallel = ParallelSizes(world=32, tp=2, cp=2, pp=2, ep=4, etp=2)
    order = "tp-cp-ep-dp-pp"
    dense = RankGenerator(tp=2, ep=1, dp=4, pp=2, cp=2, order=order)
    expert = RankGenerator(tp=2, ep=4, dp=2, pp=2, cp=1, order=order)
    for generator, token, field in [
        (dense, "tp", "tp"),
        (dense, "cp", "cp"),
        (dense, "dp", "dp"),
        (dense, "pp", "pp"),
        (expert, "tp", "etp"),
        (expert, "ep", "ep"),
        (expert, "dp", "edp"),
    ]:
        for group in generator.get_ranks(token):
            assert [getattr(parallel.place(rank), field) for rank in group] == list(range(len(group)))


@pytest.mark.parametrize(
    ("parallel", "stages"),
    [
        (ParallelSizes(world=2, pp=2), [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]),
        (ParallelSizes(world=2, pp=2, vpp=2), [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]),
        (ParallelSizes(world=2, pp=2, first_stage_layers=3), [[[0, 1, 2]], [[3, 4, 5, 6, 7]]]),
        (
            ParallelSizes(world=4, pp=4, first_stage_layers=1, last_stage_layers=3),
            [[[0]], [[1, 2]], [[3, 4]], [[5, 6, 7]]],
        ),
        (
            ParallelSizes(world=2, pp=2, vpp=5, embedding_in_split=True, loss_in_split=True),
            [[[], [1], [3], [5], [7]], [[0], [2], [4], [6], []]],
        ),
    ],
)
def test_layers_are_dealt_to_stages_as_megatron_deals_them(
    parallel: ParallelSizes, stages: list[list[list[int]]]
) -> None:
    from megatron.core.transformer.transformer_block import get_num_layers_to_build
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    dealt = parallel.stage_layers(8)
    assert [[list(chunk) for chunk in stage] for stage in dealt] == stages
    megatron = TransformerConfig(
        num_layers=8,
        hidden_size=8,
        num_attention_heads=1,
        pipeline_model_parallel_size=parallel.pp,
        virtual_pipeline_model_parallel_size=parallel.vpp if parallel.vpp > 1 else None,
        num_layers_in_first_pipeline_stage=parallel.first_stage_layers,
        num_layers_in_last_pipeline_stage=parallel.last_stage_layers,
        account_for_embedding_in_pipeline_split=parallel.embedding_in_split,
        account_for_loss_in_pipeline_split=parallel.loss_in_split,
        pipeline_dtype=torch.float32,
    )
    for pp, stage in enumerate(dealt):
        for vp, chunk in enumerate(stage):
            vp_stage = vp if parallel.vpp > 1 else None
            assert len(chunk) == get_num_layers_to_build(megatron, vp_stage, pp)
            if len(chunk):
                assert chunk.start == get_transformer_layer_offset(megatron, vp_stage, pp)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParallelSizes(world=6, tp=4), "6 ranks are not a multiple of both tp.*4"),
        (
            lambda: layout_of(config_of("llama"), ParallelSizes(world=8, tp=8)).parameters,
            "4 cannot be split 8 ways",
        ),
        (
            lambda: ParallelSizes(world=3, pp=3).stage_layers(4),
            "4 layers cannot be dealt to 3 pipeline stages evenly",
        ),
        (lambda: ParallelSizes(world=2, pp=2, vpp=2).stage_layers(6), "cannot be cut into 2 model chunks"),
        (
            lambda: layout_of(config_of("qwen3_moe", num_experts=3), ParallelSizes(world=2, ep=2)).parameters,
            "3 experts cannot be dealt evenly to 2",
        ),
        (
            lambda: family_for({"architectures": ["GPT2LMHeadModel"]}),
            "GPT2LMHeadModel.*known: DeepseekV32ForCausalLM, DeepseekV3ForCausalLM, GlmMoeDsaForCausalLM, Llama",
        ),
        (
            lambda: glm_moe_dsa.megatron_args(config_of("glm_moe_dsa", index_topk_pattern="FFSSFSFF")),
            r"layers \[0, 1, 4, 6, 7\] choose what is attended to; Megatron could let \[0, 1, 4, 7\] choose",
        ),
        (
            lambda: deepseek_v32.megatron_args(config_of("deepseek_v32", index_topk_freq=2)),
            "in this architecture each layer has an indexer",
        ),
        (
            lambda: family_for({}, "json:loads"),
            "'json:loads' is a function, not a verst.sync.layout.mapping.Family",
        ),
        (lambda: family_for({}, "no_such_module:FAMILY"), "cannot be loaded"),
        (lambda: family_for({}, "json"), "not of the form pkg.module:NAME"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("pattern", ["FFFFFFFF", "FSFSFSFS", "FFSSSFSS", "FFFSSSSF", "FSSSSSSS", "FFFFFFFS"])
def test_megatron_lets_the_same_layers_choose(pattern: str) -> None:
    from megatron.core.transformer.experimental_attention_variant.dsa import is_dsa_skip_topk_layer

    args = glm_moe_dsa.megatron_args(config_of("glm_moe_dsa", index_topk_pattern=pattern))
    offset, frequency = args.get("dsa-indexer-skip-topk-offset", 0), args.get("dsa-indexer-topk-freq", 1)
    skips = [is_dsa_skip_topk_layer(n, offset, frequency) for n in range(1, 9)]  # type: ignore[arg-type]
    assert skips == [kind == "S" for kind in pattern]


def test_bind_names_every_parameter_that_does_not_fit() -> None:
    config = config_of("llama", num_hidden_layers=1)
    layout = layout_of(config, ParallelSizes())
    model = torch.nn.Module()
    for local in layout.parameters:
        *path, leaf = local.names[-1].split(".")
        module = model
        for part in path:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module._modules[part]  # type: ignore[assignment]
        module.register_parameter(leaf, torch.nn.Parameter(torch.zeros(local.shape)))
    assert isinstance(bind(layout, [model]), Bound)

    model.extra = torch.nn.Parameter(torch.zeros(3))
    model.decoder.layers._modules["0"].mlp.linear_fc2.weight = torch.nn.Parameter(torch.zeros(5, 5))  # type: ignore[union-attr, operator]
    del model.decoder.final_layernorm.weight  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="does not fit") as caught:
        bind(layout, [model])
    text = str(caught.value)
    assert "no rule covers extra (3,)" in text
    assert "mlp.linear_fc2.weight is (5, 5) in the model, (32, 48) in the table" in text
    assert "the model has no decoder.final_layernorm.weight" in text


def test_what_engines_load_as_one_is_sent_in_one_bucket() -> None:
    """The two down-projections of latent attention, however small the buckets are."""
    layout = layout_of(config_of("deepseek_v3"), ParallelSizes())
    for size in (1, 900, 5000):
        buckets = [bucket.names for bucket in plan_buckets(layout, size, 4)]
        for i in range(4):
            attention = f"model.layers.{i}.self_attn."
            holding = [names for names in buckets if f"{attention}q_a_proj.weight" in names]
            assert [f"{attention}kv_a_proj_with_mqa.weight" in names for names in holding] == [True]
        assert sorted(name for names in buckets for name in names) == sorted(whole_tensors(layout))


@pytest.mark.parametrize("family", FAMILIES)
def test_engines_know_what_is_never_sent(family: str) -> None:
    config = config_of(family)
    known, layers = family_for(config), range(config["num_hidden_layers"])
    never_sent = {part.hf for i in layers for rule in known.frozen(config, i) for part in rule.parts}
    sent = {part.hf for i in layers for rule in known.layer(config, i) for part in rule.parts}
    assert {name for name in never_sent | sent if left_as_loaded(name)} == never_sent
