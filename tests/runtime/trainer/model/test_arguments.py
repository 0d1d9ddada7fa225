"""The promise: Megatron's own parser judges the recipe's arguments. Every fault is listed at once, by name
and with the remedy, and the process survives."""

from __future__ import annotations

import pytest

from verst.recipes.models import glm_moe_dsa
from verst.recipes.models.llama import megatron_args
from verst.runtime.trainer.model.arguments import ArgumentFaultsError, check, parse
from verst.runtime.trainer.model.arguments.architecture import ARCHITECTURE
from verst.runtime.trainer.model.arguments.command_line import megatron_parser
from verst.runtime.trainer.model.arguments.faults import OTHER_NAMES

SHAPE = megatron_args(
    {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "rms_norm_eps": 1e-5,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
    }
)


def test_recipe_and_checkpoint_become_megatrons_configuration() -> None:
    args, config = parse(
        {"lr": 2e-5, "weight-decay": 0, "recompute-granularity": "selective", "recompute-modules": ["mlp"]},
        world_size=2,
        model_shape=SHAPE,
        dtype="bfloat16",
        train_steps=7,
    )
    assert (config.num_layers, config.hidden_size, config.num_query_groups) == (30, 576, 3)
    assert config.bf16
    assert config.calculate_per_token_loss
    assert config.recompute_modules == ["mlp"]
    assert (args.lr, args.weight_decay, args.train_iters, args.data_parallel_size) == (2e-5, 0, 7, 2)
    assert args.padded_vocab_size == 49152


def test_the_names_that_messages_suggest_are_megatrons() -> None:
    known = {option for action in megatron_parser()._actions for option in action.option_strings}
    assert "--lr" in known
    for names in OTHER_NAMES.values():
        for name in names.split(" and "):
            assert f"--{name}" in known, name


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "dist_muon", "adaptive_muon", "lion", "soap"])
def test_an_optimizer_that_no_checkpoint_could_hold_is_refused(optimizer: str) -> None:
    faults = check({"optimizer": optimizer}, world_size=1, model_shape=SHAPE)
    assert faults == [
        f"optimizer: is {optimizer}: checkpoints hold Adam's state and no other optimizer's; leave it out"
    ]
    assert check({"optimizer": "adam"}, world_size=1, model_shape=SHAPE) == []


def test_every_fault_of_single_options_is_listed_at_once() -> None:
    faults = check(
        {
            "tensor_model_parallel_size": 2,
            "learning-rate-decay-style": "constant",
            "learning-rate": 1e-6,
            "max_grad_norm": 1.0,
            "lr": "fast",
            "min-lr": True,
            "recompute-granularity": "ful",
            "num-layers": 4,
            "bf16": True,
            "hybrid-context-parallel": True,
        },
        world_size=1,
        model_shape=SHAPE,
    )
    assert len(faults) == 10
    assert "learning-rate: Megatron has no such option; its name is lr" in faults
    assert "max_grad_norm: Megatron has no such option; its name is clip-grad" in faults
    text = "\n".join(faults)
    assert (
        "tensor_model_parallel_size: Megatron has no such option; nearest is tensor-model-parallel-size"
        in text
    )
    assert "nearest is lr-decay-style" in text
    assert "lr: invalid float value: 'fast'" in text
    assert "min-lr: needs a value, got true" in text
    assert "recompute-granularity: invalid choice: 'ful' (choose from 'full', 'selective')" in text
    assert "num-layers: the recipe says 4, the checkpoint 30; leave it out" in text
    assert "bf16: not an option here: set model.dtype: bfloat16" in text
    assert "hybrid-context-parallel: not an option here: every sequence is split over all" in text


@pytest.mark.parametrize(
    ("options", "world_size", "words"),
    [
        ({"tensor-model-parallel-size": 2}, 3, "world size (3) is not divisible"),
        ({"tensor-model-parallel-size": 2}, 2, "num-attention-heads (9) is not divisible"),
        ({"pipeline-model-parallel-size": 4}, 4, "divisible by the pipeline-model-parallel size"),
        ({"expert-model-parallel-size": 2}, 2, "num_experts must be non None"),
        ({"overlap-param-gather": True}, 2, "every step's weights go to the engines"),
        ({"mtp-num-layers": 1}, 1, "multi-token prediction is not trained"),
    ],
)
def test_impossible_combination_is_refused_with_its_reason(options, world_size, words) -> None:
    faults = check(options, world_size, SHAPE)
    assert len(faults) == 1
    assert words in faults[0]


def test_possible_layouts_have_no_faults() -> None:
    assert check({"tensor-model-parallel-size": 3, "sequence-parallel": True}, 6, SHAPE) == []
    virtual = {"pipeline-model-parallel-size": 2, "num-virtual-stages-per-pipeline-rank": 3}
    assert check(virtual, 2, SHAPE) == []
    assert check({"context-parallel-size": 2, "use-distributed-optimizer": True}, 4, SHAPE) == []


def test_false_leaves_a_flag_out() -> None:
    args, _ = parse(
        {"sequence-parallel": False}, world_size=1, model_shape=SHAPE, dtype="float32", train_steps=1
    )
    assert not args.sequence_parallel


def test_faults_travel_with_the_error() -> None:
    with pytest.raises(ArgumentFaultsError, match="nearest is seed") as error:
        parse({"sed": 1}, world_size=1, model_shape=SHAPE, dtype="float32", train_steps=1)
    assert len(error.value.faults) == 1


# GLM-5.2's config.json, without the keys that do not affect the model's shape.
GLM_5_2 = {
    "architectures": ["GlmMoeDsaForCausalLM"],
    "model_type": "glm_moe_dsa",
    "attention_bias": False,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 6144,
    "index_head_dim": 128,
    "index_n_heads": 32,
    "index_skip_topk_offset": 3,
    "index_topk": 2048,
    "index_topk_freq": 4,
    "index_topk_pattern": None,
    "indexer_rope_interleave": True,
    "indexer_types": ["full"] * 3 + ["shared", "shared", "shared", "full"] * 18 + ["shared"] * 3,
    "intermediate_size": 12288,
    "kv_lora_rank": 512,
    "max_position_embeddings": 1048576,
    "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 75,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 78,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 2048,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_interleave": True,
    "rope_parameters": {"rope_theta": 8000000, "rope_type": "default"},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "v_head_dim": 256,
    "vocab_size": 154880,
}


def test_glm_5_2_becomes_megatrons_configuration() -> None:
    shape, two = glm_moe_dsa.megatron_args(GLM_5_2), {"pipeline-model-parallel-size": 2}
    # With half of the layers each, the second stage would begin with layer 39, which shares the choice of 38.
    (fault,) = check(two, world_size=2, model_shape=shape)
    assert "begin with the layers [39] (from 0), which share" in fault
    assert "one of [0, 1, 2, 6, 10, 14," in fault
    _, config = parse(
        two | {"decoder-first-pipeline-num-layers": 38},
        world_size=2,
        model_shape=shape,
        dtype="bfloat16",
        train_steps=1,
    )
    assert (config.dsa_indexer_topk_freq, config.dsa_indexer_skip_topk_offset) == (4, 3)
    assert (config.dsa_indexer_topk, config.dsa_indexer_n_heads, config.dsa_indexer_head_dim) == (
        2048,
        32,
        128,
    )
    assert config.dsa_indexer_rope_interleaved
    assert not config.dsa_indexer_rotate_activation
    assert (config.q_lora_rank, config.qk_head_dim, config.qk_pos_emb_head_dim) == (2048, 192, 64)
    assert (config.num_moe_experts, config.moe_router_topk, config.moe_router_num_groups) == (256, 8, None)
    assert config.moe_router_topk_scaling_factor == 2.5
    assert (config.rotary_base, config.layernorm_epsilon, config.mtp_num_layers) == (8000000, 1e-5, None)
    assert config.moe_layer_freq == [0] * 3 + [1] * 75


@pytest.mark.parametrize("kind", ["seq_aux_loss", "global_aux_loss", "sinkhorn"])
def test_a_balancing_loss_that_counts_padding_is_refused(kind: str) -> None:
    shape = SHAPE | {"num-experts": 8, "moe-router-topk": 2, "moe-router-load-balancing-type": "none"}
    options = {"moe-router-load-balancing-type": kind, "moe-aux-loss-coeff": 1e-3}
    (fault,) = check(options, world_size=1, model_shape=shape)
    assert fault.startswith(
        f"moe-router-load-balancing-type: is {kind}, which Megatron computes right only for"
    )
    assert (
        check(options | {"moe-router-load-balancing-type": "aux_loss"}, world_size=1, model_shape=shape) == []
    )


MOE = SHAPE | {"num-experts": 8, "moe-router-topk": 2, "moe-ffn-hidden-size": 32}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rotary-interleaved", True),
        ("moe-router-pre-softmax", True),
        ("moe-router-topk-scaling-factor", 2.5),
        ("moe-router-score-function", "sigmoid"),
        ("moe-expert-capacity-factor", 1.0),
        ("apply-query-key-layer-scaling", True),
        ("use-mup", True),
        ("mup-attn-scale-power", 0.5),
        ("mscale-all-dim", 1.0),
        ("rotary-percent", 0.5),
        ("rotary-seq-len-interpolation-factor", 2),
        ("qk-layernorm", True),
        ("qk-l2-norm", True),
        ("add-qkv-bias", True),
        ("attention-output-gate", True),
        ("softmax-type", "off-by-one"),
        ("activation-func-clamp-value", 7.0),
        ("glu-linear-offset", 1.0),
        ("window-size", "128,0"),
        ("apply-residual-connection-post-layernorm", True),
        ("apply-layernorm-1p", True),
        ("no-rope-freq", 2),
    ],
)
def test_what_the_architecture_decides_cannot_be_changed(option, value) -> None:
    (fault,) = check({option: value}, 1, MOE)
    assert fault.startswith(f"{option}: the recipe says {value}, ")
    assert fault.endswith("leave it out")


def test_what_the_architecture_decides_may_be_repeated() -> None:
    assert check({"rotary-percent": 1.0, "norm-epsilon": 1e-5, "rotary-interleaved": False}, 1, SHAPE) == []


def test_every_option_of_the_architecture_is_one_of_megatrons() -> None:
    """So that none is forgotten when Megatron renames it."""
    known = {name for action in megatron_parser()._actions for name in action.option_strings}
    assert [name for name in ARCHITECTURE if f"--{name}" not in known] == []
