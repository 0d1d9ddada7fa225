"""A config.json promises one model: as transformers reads it, or it is refused with the key that is at fault."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from tests.sync.tiny_models import hf_config
from verst.sync.hf.model_config import _OF_ENGINES_ALONE, model_of

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v32": "DeepseekV32ForCausalLM",
    "glm_moe_dsa": "GlmMoeDsaForCausalLM",
}


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Megatron's arguments for a config.json."""
    family, full = model_of(config)
    return family.megatron_args(full)


def written(family: str, **changes: Any) -> dict[str, Any]:
    """A tiny model's config.json, as transformers writes it; a value of None leaves the key out."""
    config = hf_config(family, architectures=[ARCHITECTURES[family]]).to_dict() | changes
    return {key: value for key, value in config.items() if value is not None or key not in changes}


@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("quantization_config", {"quant_method": "fp8", "weight_block_size": [128, 128]}),
        ("quantization_config", {"quant_method": "compressed-tensors", "format": "int-quantized"}),
        ("compression_config", {"quant_method": "compressed-tensors"}),
    ],
)
def test_quantised_weights_are_refused_by_every_family(family, key, settings):
    with pytest.raises(
        ValueError, match=rf"config.json: {key} \(quant_method '{settings['quant_method']}'\)"
    ):
        model_of(written(family, **{key: settings}))


def test_a_key_that_is_left_out_has_the_default_of_transformers_class():
    config = written("deepseek_v3", rms_norm_eps=None, topk_group=None, routed_scaling_factor=None)
    left_out = ("n_shared_experts", "first_k_dense_replace", "max_position_embeddings", "kv_lora_rank")
    config = {key: value for key, value in config.items() if key not in left_out}
    family, full = model_of(config)
    assert (full["rms_norm_eps"], full["topk_group"], full["routed_scaling_factor"]) == (1e-6, 4, 2.5)
    assert [full[key] for key in left_out] == [1, 3, 4096, 512]
    assert family.megatron_args(full)["norm-epsilon"] == 1e-6
    names = {rule.parts[0].hf for rule in family.layer(full, 3)}
    assert "model.layers.3.mlp.shared_experts.down_proj.weight" in names


@pytest.mark.parametrize(("family", "width"), [("llama", 32 // 8), ("qwen3", 128), ("qwen3_moe", 32 // 8)])
def test_a_width_of_heads_that_is_left_out_is_the_class_own(family, width):
    """Qwen3's is 128, whatever the hidden size; the others divide it."""
    found, full = model_of(written(family, head_dim=None))
    assert found.megatron_args(full)["kv-channels"] == width


def test_experts_have_one_number_under_both_names():
    config = written("qwen3_moe", num_local_experts=None, num_experts=6)
    assert model_of(config)[1]["num_local_experts"] == model_of(config)[1]["num_experts"] == 6


def test_positions_are_read_in_both_forms():
    old = written(
        "llama", rope_parameters=None, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0}
    )
    family, full = model_of(old)
    assert full["rope_parameters"]["rope_theta"] == 5e5
    assert "rope_scaling" not in full
    args = family.megatron_args(full)
    assert (args["rotary-base"], args["rotary-seq-len-interpolation-factor"]) == (500000, 2)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 1000000.0}
REFUSED = {
    "both forms": (
        "qwen3",
        {"rope_scaling": YARN, "rope_parameters": PLAIN},
        "rope_scaling = .* ignore rope_para",
    ),
    "yarn in Qwen3": (
        "qwen3",
        {"rope_parameters": YARN},
        "rope type 'yarn' is not supported; known: default, lin",
    ),
    "the original length outside": (
        "llama",
        {
            "rope_parameters": LLAMA3,
            "original_max_position_embeddings": 8192,
            "max_position_embeddings": 16384,
        },
        "original_max_position_embeddings = 8192 stands beside rope_parameters",
    ),
    "another original length": (
        "llama",
        {"rope_parameters": LLAMA3},
        "'original_max_position_embeddings': 64",
    ),
    "positions per kind of layer": (
        "llama",
        {"rope_parameters": {"full_attention": PLAIN}},
        "default rope with {'full_attention'",
    ),
    "a part of each head": (
        "llama",
        {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}},
        "partial_rotary",
    ),
    "no factor": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": None}}, "factor None"),
    "mscale alone": (
        "deepseek_v3",
        {"rope_parameters": YARN | {"mscale": 0.7}},
        "'mscale': 0.7.*give both or",
    ),
    "mscale_all_dim alone": (
        "deepseek_v3",
        {"rope_parameters": YARN | {"mscale_all_dim": 1.0}},
        "mscale_all_dim",
    ),
    "attention_factor": (
        "deepseek_v3",
        {"rope_parameters": YARN | {"attention_factor": 1.2}},
        "attention_factor",
    ),
    "not truncated": ("deepseek_v3", {"rope_parameters": YARN | {"truncate": False}}, "'truncate': False"),
    "one expert": (
        "deepseek_v3",
        {"num_experts_per_tok": 1},
        "num_experts_per_tok = 1: Megatron does not normalise",
    ),
    "one expert of weight 1": (
        "qwen3_moe",
        {"num_experts_per_tok": 1},
        "num_experts_per_tok = 1 with norm_topk_prob",
    ),
    "an epsilon": (
        "deepseek_v3",
        {"rms_norm_eps": 1e-5},
        "rms_norm_eps = 1e-05 is not supported here, only 1e-06",
    ),
    "an epsilon with sparse attention": (
        "deepseek_v32",
        {"rms_norm_eps": 1e-5},
        "rms_norm_eps = 1e-05 is not supp",
    ),
    "every other layer": ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq = 2 is not supported here"),
    "a width that follows": (
        "deepseek_v3",
        {"qk_head_dim": 48},
        "qk_head_dim = 48 is not supported here, only 12",
    ),
    "fewer keys than queries": ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads = 2"),
    "no step": ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step = 0: must be at least 1"),
    "a window": ("qwen3", {"layer_types": ["sliding_attention"] * 4}, "layer_types has 'sliding_attention'"),
    "another model_type": (
        "llama",
        {"model_type": "mistral"},
        "model_type = 'mistral', but architectures names",
    ),
    "text for a number": ("llama", {"num_hidden_layers": "4"}, "LlamaConfig refuses it: .*num_hidden_layers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_means_different_models_to_different_readers_is_refused(case):
    family, changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        arguments(written(family, **changes))


def test_yarn_has_the_models_own_constants():
    """Kimi-K2's; and an original length that is left out is max_position_embeddings."""
    kimi = {
        "type": "yarn",
        "factor": 32.0,
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    config = written("deepseek_v3", rope_parameters=None, rope_theta=50000.0, model_type="kimi_k2")
    family, full = model_of(config | {"rope_scaling": kimi})
    args = family.megatron_args(full)
    assert (args["yarn-beta-fast"], args["yarn-beta-slow"], args["mscale-all-dim"]) == (1.0, 1.0, 1.0)
    assert (args["yarn-original-max-position-embeddings"], args["rotary-base"]) == (64, 50000)


def test_what_sglang_has_no_default_for_is_named():
    config = written("deepseek_v3", topk_method="noaux_tc")
    fault = model_of(config)[0].engine_fault(config)
    assert fault is not None
    assert 'add scoring_func: "sigmoid", moe_layer_freq: 1' in fault
    assert model_of(config)[0].engine_fault(config | {"scoring_func": "sigmoid", "moe_layer_freq": 1}) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("final_logit_softcapping", 30.0),
        ("scale_emb", 12),
        ("rope_is_neox_style", False),
        ("bias", True),
        ("text_config", {"num_hidden_layers": 1}),
    ],
)
def test_a_key_that_the_engines_alone_follow_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"config.json: {key} = .*the engines \(SGLang\) follow this key"):
        model_of(written("llama") | {key: value})
    for neutral in _OF_ENGINES_ALONE[key]:
        model_of(written("llama") | {key: neutral})


def test_a_key_of_the_class_is_not_taken_for_the_engines_own():
    model_of(written("deepseek_v3", n_shared_experts=1))
    with pytest.raises(ValueError, match="n_shared_experts = 1"):
        model_of(written("qwen3_moe") | {"n_shared_experts": 1})


# Read by SGLang's code of these families, and without an effect on what they compute.
_WITHOUT_EFFECT = {
    "tbo_subbatch_index",  # of a batch, not of the model
    "pad_token_id",
    "qkv_bias",  # of Qwen2's experts alone
}
_CODE = [
    "models/llama.py",
    "models/qwen3.py",
    "models/qwen2.py",
    "models/qwen3_moe.py",
    "models/qwen2_moe.py",
]
_CODE += ["models/deepseek_v2.py", "layers/logits_processor.py"]


def test_every_key_that_sglang_reads_by_chance_is_a_classs_or_is_refused():
    """What is read with `getattr(config, KEY, default)` is followed wherever it stands."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    (place,) = importlib.util.find_spec("sglang").submodule_search_locations
    text = "\n".join(Path(place, "srt", name).read_text() for name in _CODE)
    read = set(re.findall(r"(?:getattr|hasattr)\(\s*(?:self\.)?config,\s*\"(\w+)\"", text))
    assert {"final_logit_softcapping", "rope_scaling", "head_dim"} <= read
    of_classes = {key for family in ARCHITECTURES for key in CONFIG_MAPPING[family]().to_dict()}
    known = of_classes | _OF_ENGINES_ALONE.keys() | _WITHOUT_EFFECT
    # Of the positions: `recipes/models/rope.py` and `_refuse_two_positions`.
    known |= {"rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
    known |= {"indexer_rope_interleave"}
    assert read - known == set()
