"""The engines' own folder must be the trained model in all but its format, and `verst plan` names what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.launcher.recipes_for_tests import LLAMA, parsed, write_recipe
from verst.launcher.check.model.arguments import parser_faults
from verst.launcher.check.model.served_model import differences, served_model_faults
from verst.launcher.recipe.faults import Fault
from verst.sync.hf.model_config import model_of

MOE = LLAMA | {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "num_experts_per_tok": 2}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)


def serve(config: dict[str, Any]) -> None:
    Path("served").mkdir(exist_ok=True)
    Path("served/config.json").write_text(json.dumps(config))


def faults(trained: dict[str, Any], served: dict[str, Any]) -> list[Fault]:
    serve(served)
    return list(served_model_faults(parsed("rollout.model_path=served"), *model_of(trained)))


def lines(trained: dict[str, Any], served: dict[str, Any]) -> list[str]:
    """What one fault says, a line for each key."""
    (fault,) = faults(trained, served)
    assert fault.place == "rollout.model_path"
    return [line.strip() for line in fault.message.splitlines()[1:]]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rms_norm_eps", 1e-6, "rms_norm_eps 1e-06 where model.path has 1e-05"),
        ("rope_theta", 5e5, "rope_parameters.rope_theta 500000.0 where model.path has 10000.0"),
        ("num_experts_per_tok", 4, "num_experts_per_tok 4 where model.path has 2"),
        ("tie_word_embeddings", False, "tie_word_embeddings False where model.path has True"),
        ("routed_scaling_factor", 2.5, "routed_scaling_factor 2.5 where model.path has None"),
    ],
)
def test_a_key_that_changes_what_the_model_computes_is_named(key: str, value: object, said: str) -> None:
    assert lines(MOE, MOE | {key: value}) == [said]


def test_yarn_in_the_engines_folder_alone_is_refused() -> None:
    assert lines(LLAMA, LLAMA | {"rope_scaling": YARN}) == [
        "rope_parameters.factor 4.0 where model.path has None",
        "rope_parameters.original_max_position_embeddings 64 where model.path has None",
        "rope_parameters.rope_type yarn where model.path has default",
    ]


def test_another_architecture_is_refused() -> None:
    (fault,) = faults(LLAMA, LLAMA | {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 32})
    assert "is 'served', which is a different model from model.path" in fault.message
    assert "architectures ['Qwen3ForCausalLM'] where model.path has ['LlamaForCausalLM']" in fault.message
    assert "hidden_size 32 where model.path has 16" in fault.message
    (fault,) = faults(LLAMA, LLAMA | {"model_type": "mistral"})
    assert fault.message.startswith("is 'served': config.json: model_type = 'mistral'")


def test_another_format_another_spelling_and_bookkeeping_make_no_other_model() -> None:
    trained = LLAMA | {"torch_dtype": "float32", "transformers_version": "4.1", "head_dim": 4}
    rope = {"rope_type": "default", "rope_theta": 10000}
    served = {key: value for key, value in LLAMA.items() if key not in ("rope_theta", "head_dim")}
    served |= {
        "rope_parameters": rope,
        "dtype": "bfloat16",
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "use_cache": False,
        "eos_token_id": [1, 2],
        "pad_token_id": 3,
        "_name_or_path": "somewhere",
        "initializer_range": 0.1,
        "attention_dropout": 0.1,
    }
    assert faults(trained, served) == []


def test_a_longer_context_is_another_model_only_where_positions_depend_on_it() -> None:
    longer = {"max_position_embeddings": 1024}
    linear = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert faults(LLAMA, LLAMA | longer) == []
    assert faults(LLAMA | linear, LLAMA | linear | longer) == []
    yarn = {"rope_scaling": YARN}
    assert faults(LLAMA | yarn, LLAMA | yarn | longer) == []
    open_yarn = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    assert lines(LLAMA | open_yarn, LLAMA | open_yarn | longer) == [
        "rope_parameters.original_max_position_embeddings 1024 where model.path has 256"
    ]
    dynamic = {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}
    assert lines(LLAMA | dynamic, LLAMA | dynamic | longer) == [
        "max_position_embeddings 1024 where model.path has 256"
    ]


def test_a_configuration_that_nobody_completes_is_compared_as_it_is() -> None:
    """That of an own family without `model_types`: with sections, and with positions for each kind of layer."""
    kinds = {"full_attention": {"rope_type": "default"}, "other": {"rope_type": "dynamic", "factor": 2}}
    ours = {"text_config": {"dtype": "float32", "rope_parameters": kinds, "max_position_embeddings": 8}}
    theirs = {"text_config": {"dtype": "bfloat16", "rope_parameters": kinds, "max_position_embeddings": 9}}
    assert list(differences(ours, theirs)) == ["text_config.max_position_embeddings 8 where model.path has 9"]


def test_what_sglang_gets_wrong_about_the_served_configuration_is_told() -> None:
    other, engines = faults(MOE, MOE | {"mlp_only_layers": [0]})
    assert "mlp_only_layers [0] where model.path has []" in other.message
    assert engines.place == "rollout.model_path"
    assert engines.message.startswith("is 'served': mlp_only_layers=[0]")


def test_a_folder_that_is_not_there_or_holds_no_configuration_is_left_to_another_check() -> None:
    recipe = parsed("rollout.model_path=served")
    assert list(served_model_faults(recipe, *model_of(LLAMA))) == []
    assert list(served_model_faults(parsed(), *model_of(LLAMA))) == []
    serve({})
    Path("served/config.json").write_text("{")
    assert list(served_model_faults(recipe, *model_of(LLAMA))) == []


@pytest.mark.long  # starts the process that imports Megatron
def test_the_plan_asks_for_it() -> None:
    """Beside a fault of the trained model, which spares this test Megatron's parser."""
    Path("model/config.json").write_text(json.dumps(LLAMA | {"hidden_act": "gelu"}))
    serve(LLAMA | {"hidden_act": "gelu", "rms_norm_eps": 1e-6})
    served, trained = parser_faults("megatron", parsed("rollout.model_path=served"))
    assert (served.place, trained.place) == ("rollout.model_path", "model.path")
    assert served.message.endswith("\n    rms_norm_eps 1e-06 where model.path has 1e-05")
