"""Which layers are quantised, and what the engine is told of the others."""

from __future__ import annotations

import pytest

from verst.sync.formats.selection import Selection, chosen, ignored, matches, of_config

LAYER = "model.layers.0."
MOE = {
    "model.embed_tokens.weight": (100, 64),
    **{f"{LAYER}self_attn.{p}_proj.weight": (64, 64) for p in "qkvo"},
    f"{LAYER}self_attn.q_norm.weight": (16,),
    f"{LAYER}mlp.gate.weight": (2, 64),
    f"{LAYER}mlp.gate.e_score_correction_bias": (2,),
    **{f"{LAYER}mlp.experts.{e}.{p}_proj.weight": (64, 64) for e in (0, 1) for p in ("gate", "up", "down")},
    f"{LAYER}input_layernorm.weight": (64,),
    "model.norm.weight": (64,),
    "lm_head.weight": (100, 64),
}
LINEAR = {n for n in MOE if "_proj" in n}
EXPERTS = {n for n in MOE if "experts" in n}


def test_linear_layers_are_taken_and_nothing_else():
    assert chosen(MOE, Selection()) == LINEAR
    assert chosen(MOE, Selection(experts_only=True)) == EXPERTS


@pytest.mark.parametrize(
    ("pattern", "style", "module", "expected"),
    [
        ("mlp.gate", "path", "model.layers.0.mlp.gate", True),
        ("mlp.gate", "path", "model.layers.0.mlp.gate_up_proj", False),
        ("model.layers.0", "path", "model.layers.0.mlp.up_proj", True),
        ("model.layers.1", "path", "model.layers.10.mlp.up_proj", False),
        ("mtp*", "path", "model.mtp_layers.0.up_proj", True),
        ("*.self_attn.*", "path", "model.layers.0.self_attn.o_proj", True),
        ("self_attn.o_proj", "suffix", "model.layers.0.self_attn.o_proj", True),
        ("model.layers.0.mlp.experts.0", "suffix", "model.layers.0.mlp.experts.0.up_proj", False),
        ("re:.*self_attn.*", "suffix", "model.layers.0.self_attn.o_proj", True),
        ("re:self_attn", "suffix", "model.layers.0.self_attn.o_proj", False),
    ],
)
def test_patterns_mean_what_they_mean_to_the_engine(pattern, style, module, expected):
    assert matches(pattern, module, style) is expected


@pytest.mark.parametrize("style", ["path", "suffix"])
@pytest.mark.parametrize(
    "rule", [Selection(), Selection(experts_only=True), Selection(("mlp",)), Selection(("o_proj",))]
)
def test_the_list_for_the_engine_says_what_was_done(rule, style):
    taken = chosen(MOE, rule)
    listed = ignored(MOE, taken, style)
    assert chosen(MOE, Selection(tuple(listed), style)) == taken
    assert len(listed) < 9  # not one entry per expert
    assert "lm_head" in listed


def test_published_lists_are_understood():
    kimi = {
        "quant_method": "compressed-tensors",
        "ignore": [
            "lm_head",
            "re:.*self_attn.*",
            "re:.*shared_experts.*",
            "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
        ],
    }
    assert chosen(MOE, of_config(kimi)) == EXPERTS
    assert chosen(MOE, of_config({"quant_method": "fp8"})) == LINEAR
    fused = {"quant_method": "modelopt", "ignore": [f"{LAYER}self_attn.qkv_proj", "lm_head"]}
    assert chosen(MOE, of_config(fused)) == EXPERTS | {f"{LAYER}self_attn.o_proj.weight"}


@pytest.mark.parametrize("pattern", ["q_proj", "experts.1", "experts.0.gate_proj"])
def test_what_the_engine_fuses_is_not_split(pattern):
    with pytest.raises(ValueError, match="ignore all or none"):
        chosen(MOE, Selection((pattern,)))


def test_experts_in_one_tensor_are_refused():
    with pytest.raises(ValueError, match=r"experts.gate_up_proj.* holds all experts"):
        chosen({f"{LAYER}mlp.experts.gate_up_proj": (2, 64, 128)}, Selection())
