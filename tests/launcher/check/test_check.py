"""Every fault of a recipe is told at once: where it is, what stands there and what would be right."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.launcher.check.lines import check_lines
from tests.launcher.model_folders import llama_shapes, write_safetensors
from tests.launcher.recipes_for_tests import LLAMA, MACHINE, RECIPE
from verst.launcher.check.check import examine
from verst.launcher.check.model.arguments import parser_faults
from verst.launcher.check.model.engine_format import engine_format_faults
from verst.launcher.plan.machine import Machine
from verst.launcher.recipe.faults import RecipeError
from verst.launcher.recipe.load import load_recipe, parse_recipe
from verst.runtime.rollout.config import RolloutConfig

A_REWARD = (
    "a reward takes one `Answer` (from verst.runtime.rewards). Write `def reward(answer):` and use `answer.text`, "
    "`answer.label` and `answer.metadata`"
)


def schema_lines(text: str, *overrides: str) -> list[str]:
    """The lines that the schema alone has to say about a recipe."""
    Path("recipe.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(Path("recipe.yaml"), overrides)
    return error.value.lines


def format_lines(*overrides: str) -> list[str]:
    """What the check of the engines' format has to say; `verst` runs it in a process of its own."""
    file, recipe, _ = parse_recipe(Path("recipe.yaml"), overrides)
    assert recipe is not None
    return [file.line(fault) for fault in engine_format_faults(recipe)]


def test_the_recipe_that_the_others_break_is_right(here):
    assert load_recipe(Path("recipe.yaml")).algorithm.steps == 3
    assert check_lines() == []


SCHEMA = {
    "unknown key": (
        ("  steps: 3", "  stepz: 3\n  steps: 3"),
        "recipe.yaml:8:3: algorithm.stepz: no such key (its value is 3). Did you mean `steps`?",
    ),
    "unknown section": (
        ("name: test", "name: test\ncheckpoints: {keep: 1}"),
        "recipe.yaml:2:1: checkpoints: no such key (its value is {'keep': 1}). Did you mean `checkpoint`?",
    ),
    "not an integer": (
        ("steps: 3", "steps: three"),
        "recipe.yaml:8:3: algorithm.steps: is 'three', must be an integer",
    ),
    "a number in quotes": (
        ("steps: 3", 'steps: "3"'),
        "recipe.yaml:8:3: algorithm.steps: is '3', must be an integer",
    ),
    "too small": (("steps: 3", "steps: 0"), "recipe.yaml:8:3: algorithm.steps: is 0, must be at least 1"),
    "not one of": (
        ("dtype: float32", "dtype: float16"),
        "recipe.yaml:4:3: model.dtype: is 'float16', must be float32 or bfloat16",
    ),
    "yes is no boolean": (
        ("name: test", "name: test\nweights: {check: yes}"),
        "recipe.yaml:2:11: weights.check: is 'yes', must be true or false",
    ),
    "given twice": (
        ("  steps: 3", "  steps: 3\n  steps: 4"),
        "recipe.yaml:8:3: algorithm.steps: given twice, at recipe.yaml:8:3 and recipe.yaml:9:3",
    ),
    "missing": (
        ("  path: model\n", ""),
        "recipe.yaml:2:1: model.path: missing. It is a local Hugging Face folder,"
        " or a hub id where a hub can be reached",
    ),
    "no mapping": (
        ("trainer:\n  megatron: {lr: 1e-4}", "trainer: 3"),
        "recipe.yaml:14:1: trainer: is 3, must be a mapping of keys",
    ),
    "bad name": (
        ("name: test", "name: ../test"),
        "recipe.yaml:1:1: name: is '../test', must be letters, digits, '.', '_' and '-',"
        " beginning with a letter or digit",
    ),
    "argument of a wrong type": (
        ("{lr: 1e-4}", "{lr: {a: 1}}"),
        "recipe.yaml:15:14: trainer.megatron.lr: is {'a': 1}, must be true or false or an integer or a number"
        " or a string or a list",
    ),
}


@pytest.mark.parametrize("case", SCHEMA)
def test_schema_fault_names_place_value_and_remedy(here, case):
    (old, new), expected = SCHEMA[case]
    assert old in RECIPE
    assert schema_lines(RECIPE.replace(old, new, 1)) == [expected]


def test_faults_of_the_schema_come_at_once_and_without_the_parsers(here, monkeypatch):
    text = (
        RECIPE.replace("steps: 3", "steps: 0").replace("dtype", "dtyp").replace("path: model", "path: gone")
    )
    Path("recipe.yaml").write_text(text)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("started a process"))
    with pytest.raises(RecipeError) as error:
        examine(Path("recipe.yaml"), ["trainer.megatron.lrr=1", "rollout.min_engines=2"], MACHINE)
    assert str(error.value).startswith("recipe.yaml has 4 faults:\n")
    assert error.value.lines == [
        "recipe.yaml:4:3: model.dtyp: no such key (its value is 'float32'). Did you mean `dtype`?",
        "recipe.yaml:8:3: algorithm.steps: is 0, must be at least 1",
        f"recipe.yaml:3:3: model.path: is 'gone': there is no folder {here / 'gone'}",
        "command line: rollout.min_engines: is 2, more than rollout.engines (1): the run could never start",
    ]
    assert str(error.value).endswith(
        "\nfiles, hooks and the arguments of Megatron and SGLang are checked once these faults are mended"
    )


def test_a_fault_that_follows_from_another_is_not_told(here):
    """samples_per_prompt has a stand-in of 1 then, which would be too few samples for three ranks."""
    overrides = ["algorithm.samples_per_prompt=x", "algorithm.prompts_per_step=2", "trainer.ranks_per_node=3"]
    with pytest.raises(RecipeError) as error:
        examine(Path("recipe.yaml"), overrides, MACHINE)
    assert error.value.lines == [
        "command line: algorithm.samples_per_prompt: is 'x', must be an integer",
    ]


# SGLang's parser takes longest.
@pytest.mark.timeout(280)
@pytest.mark.long
@pytest.mark.parametrize("sglang", [False, True])
def test_all_other_faults_come_together(here, sglang):
    overrides = ["trainer.megatron.lrr=1", "rollout.min_engines=2"]
    overrides += ["rollout.sglang.tp-sise=2"] if sglang else []
    with pytest.raises(RecipeError) as error:
        examine(Path("recipe.yaml"), overrides, MACHINE)
    lines = error.value.lines
    assert len(lines) == 2 + sglang
    assert lines[0].startswith("command line: rollout.min_engines: is 2, more than rollout.engines (1)")
    assert lines[1] == "command line: trainer.megatron.lrr: Megatron has no such option; nearest is lr"
    if sglang:
        assert lines[2].startswith("command line: rollout.sglang.tp-sise: SGLang has no such argument")
        assert "tp-size" in lines[2]


@pytest.mark.long
def test_megatrons_faults_of_the_critic_are_told_at_its_own_keys(here):
    overrides = ["algorithm.advantage=verst.runtime.algorithms.advantages:gae"]
    overrides += ["algorithm.critic={optimizer: {clip-grad: much}}"]
    with pytest.raises(RecipeError) as error:
        examine(Path("recipe.yaml"), overrides, MACHINE)
    (line,) = error.value.lines
    assert line.startswith("command line: algorithm.critic.optimizer.clip-grad: invalid float value")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["is empty; recipes/quickstart.yaml is an example"]),
        ("a: [1", ["recipe.yaml:1:6: not YAML: expected ',' or ']', but got '<stream end>'"]),
        ("- 1", ["holds list, not a mapping of sections"]),
    ],
)
def test_a_file_that_is_no_recipe(here, text, expected):
    assert schema_lines(text) == expected


def test_a_file_that_is_not_there(here):
    with pytest.raises(RecipeError, match="cannot be read: No such file or directory"):
        load_recipe(Path("gone.yaml"))


CROSS = {
    "model missing": (
        "model.path=/gone",
        "command line: model.path: is '/gone': there is no folder /gone",
    ),
    "prompt file missing": (
        "data.train.path=/gone.jsonl",
        "command line: data.train.path: is '/gone.jsonl': /gone.jsonl: there is no such file",
    ),
    "hook without a colon": (
        "rollout.reward=my_hooks.reward",
        "command line: rollout.reward: is 'my_hooks.reward', must be a dotted path like `package.module:function`",
    ),
    "hook with a misspelt name": (
        "rollout.reward=my_hooks:rewards",
        "command line: rollout.reward: is 'my_hooks:rewards': HERE/my_hooks.py defines no `rewards`."
        " Did you mean `reward`?",
    ),
    "hook in no module": (
        "rollout.reward=my_hook:reward",
        "command line: rollout.reward: is 'my_hook:reward': there is no module `my_hook` on the Python path or in HERE",
    ),
    "hook of another signature": (
        "rollout.reward=my_hooks:two",
        "command line: rollout.reward: is 'my_hooks:two': it will be called with 1 positional argument, but it is"
        " defined as `two(answer, label)`: " + A_REWARD,
    ),
    "arguments of a part of a reward": (
        "rollout.reward=[{function: 'verst.runtime.rewards:overlong', arguments: {limit: 10, buffer: 11}}]",
        "command line: rollout.reward.0.function: is 'verst.runtime.rewards:overlong': its arguments: buffer must be"
        " between 1 and limit, 10; it is 11",
    ),
    "a part of a reward of another signature": (
        "rollout.reward=[{function: 'my_hooks:two'}]",
        "command line: rollout.reward.0.function: is 'my_hooks:two': it will be called with 1 positional argument, but"
        " it is defined as `two(answer, label)`: " + A_REWARD,
    ),
    "sizes that do not divide": (
        "trainer.megatron.tensor-model-parallel-size=2",
        "recipe.yaml:15:3: trainer.megatron: 1 ranks (trainer.nodes x trainer.ranks_per_node) cannot be divided"
        " into model copies of 2 ranks (tensor 2 x context 1 x pipeline 1); the number of ranks must be a multiple of"
        " 2",
    ),
    "too few samples": (
        "trainer.ranks_per_node=9",
        "recipe.yaml:9:3: algorithm.prompts_per_step: is 4: 4 x samples_per_prompt 2 = 8 samples leave some of"
        " the 9 data-parallel ranks without work; a step needs at least 9 samples",
    ),
    "staleness in sync mode": (
        "algorithm.max_staleness=2",
        "command line: algorithm.max_staleness: is 2, but in mode sync every group is trained on by the version that"
        " generated it: set it to 0, or leave it out",
    ),
    "replay on a dense model": (
        "algorithm.routing_replay=true",
        "command line: algorithm.routing_replay: is rollout, but model is a dense model (its config.json has no"
        " experts), so there is no routing to replay: set it to off",
    ),
    "a sample no micro-batch can hold": (
        "trainer.max_tokens_per_microbatch=70",
        "command line: trainer.max_tokens_per_microbatch: is 70, less than the longest possible sample"
        " (data.train.max_prompt_tokens 64 + rollout.sampling.max_new_tokens 8 = 72), which could never be trained on",
    ),
    "longer than the model": (
        "rollout.sampling.max_new_tokens=200",
        "command line: rollout.sampling.max_new_tokens: is 200: data.train.max_prompt_tokens 64 +"
        " rollout.sampling.max_new_tokens 200 = 264 tokens do not fit into the engine's context of 256, of which SGLang"
        " gives out 254: lower one of them",
    ),
    "more engines needed than there are": (
        "rollout.min_engines=2",
        "command line: rollout.min_engines: is 2, more than rollout.engines (1): the run could never start",
    ),
    "more CPUs than there are": (
        "placement.cpus.trainer=3",
        "command line: placement.cpus.trainer: is 3: 1 x 3 CPUs are more than this machine's 2",
    ),
    "kept checkpoints that are never written": (
        "checkpoint.keep_every=30",
        "command line: checkpoint.keep_every: is 30, but checkpoints are written every 50 steps"
        " (checkpoint.interval): must be a multiple of that",
    ),
    "best checkpoints without a score": (
        "checkpoint.keep_best=1",
        "command line: checkpoint.keep_best: is 1, but no checkpoint before the last is evaluated:"
        " there is no data.eval",
    ),
    "greedy training": (
        "rollout.sampling.temperature=0",
        "command line: rollout.sampling.temperature: is 0: a greedy policy has no gradient, and all 2 samples of a"
        " prompt would be the same; must be greater than 0",
    ),
    "a temperature that SGLang takes for 0": (
        "rollout.sampling.temperature=1e-7",
        "command line: rollout.sampling.temperature: is 1e-07: a greedy policy has no gradient, and all 2 samples of a"
        " prompt would be the same; must be greater than 0",
    ),
    **{
        f"training with {name}": (
            f"rollout.sampling.{name}={value}",
            f"command line: rollout.sampling.{name}: is {value}: the engine reports log-probabilities of the whole"
            " distribution, not of the truncated one, so the policy ratio would be wrong;"
            f" must be {off} in training (data.eval has its own {name})",
        )
        for name, value, off in (("top_p", "0.9", "1"), ("top_k", "20", "-1"), ("min_p", "0.05", "0"))
    },
    "sampling by SGLang's own defaults": (
        "rollout.sglang.speculative-accept-threshold-single=0.9",
        "command line: rollout.sglang.speculative-accept-threshold-single: is 0.9: it changes what SGLang samples, but"
        " not the log-probabilities that it reports, so the policy ratio would be wrong: leave it out, and set what"
        " you need in rollout.sampling",
    ),
}


COLOCATED = {
    "not in turns": (
        "algorithm.mode=one_step_off",
        "command line: placement.layout: is colocated: trainer and engines take turns on the same GPUs, but in mode"
        " one_step_off they work at the same time; set algorithm.mode to sync, or the layout to disaggregated",
    ),
    "no room": (
        "rollout.engines=2",
        "command line: rollout.engines: is 2, but with placement.layout colocated the trainer's 1 x 1 GPUs have room"
        " for only 1 engines of 1 GPUs on each of 1 nodes",
    ),
    "NCCL": (
        "weights.backend=nccl",
        "command line: weights.backend: is nccl, which cannot connect a trainer rank and an engine on the same GPU"
        " (placement.layout colocated): set it to ipc or gloo, or leave it out",
    ),
    "second buffers": (
        "weights.double_buffer=true",
        "command line: weights.double_buffer: cannot be used with placement.layout colocated: no engine generates"
        " while weights are sent",
    ),
    "fixed addresses": (
        "trainer.megatron.use-nccl-ub=true",
        "command line: trainer.megatron.use-nccl-ub: cannot be used with placement.layout colocated: it needs memory"
        " at fixed addresses, and the trainer's memory moves from turn to turn",
    ),
    "another array": (
        "slurm.rollout={partition: cheap}",
        "command line: slurm.rollout: has no effect with placement.layout colocated: there is only the trainer's array",
    ),
    "two components": (
        "slurm.layout=het",
        "command line: slurm.layout: is het, but with placement.layout colocated the run has only one group:"
        " set it to arrays",
    ),
}


@pytest.mark.parametrize("case", COLOCATED)
def test_what_the_colocated_layout_cannot_have(here, case):
    override, expected = COLOCATED[case]
    assert check_lines("placement.layout=colocated", override) == [expected]


def quantised(folder: Path, **config: object) -> None:
    (folder / "fp8").mkdir(exist_ok=True)
    described = LLAMA | {
        "architectures": ["Qwen3ForCausalLM"],
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    }
    (folder / "fp8/config.json").write_text(json.dumps(described | config))
    (folder / "fp8/tokenizer.json").write_text("{}")
    write_safetensors(folder / "fp8/model.safetensors", {"a": (1,)})


@pytest.mark.long
def test_engines_in_another_format_need_a_transport_that_reaches_them(here):
    (here / "model/config.json").write_text(json.dumps(LLAMA | {"architectures": ["Qwen3ForCausalLM"]}))
    quantised(here)
    gpus = Machine(cores=8, gpus=("0", "1"))
    overrides = ("rollout.model_path=fp8", "model.dtype=bfloat16")
    for transport in ("delta", "reshard"):
        assert check_lines(*overrides, f"weights.transport={transport}", machine=gpus) == []
        assert format_lines(*overrides, f"weights.transport={transport}") == []
    (line,) = check_lines("rollout.model_path=fp8", "weights.transport=disk")
    assert "is in the format fp8, which SGLang serves only on GPUs" in line
    (line,) = format_lines("rollout.model_path=fp8", "weights.transport=disk")
    assert "model.dtype: is float32" in line
    recipe = load_recipe(Path("recipe.yaml"), ("rollout.model_path=fp8", "weights.transport=disk"))
    assert [fault.place for fault in parser_faults("format", recipe)] == ["model.dtype"]
    described = json.loads((here / "fp8/config.json").read_text())
    quantised(here, **described | {"quantization_config": {"quant_method": "mxfp8"}})
    (line,) = format_lines(*overrides)
    assert "weights.transport: is reshard" in line
    assert "SGLang repacks mxfp8" in line
    assert "set the transport to broadcast, disk or delta, or use fp8" in line


def test_engines_without_a_folder_or_in_an_unknown_format_are_refused(here):
    (line,) = check_lines("rollout.model_path=nowhere")
    assert "rollout.model_path: is 'nowhere', which is not a folder with a config.json" in line
    quantised(here, quantization_config={"quant_method": "gptq"})
    (unknown,) = format_lines("rollout.model_path=fp8", "weights.transport=disk")
    assert "quant_method 'gptq' is not known" in unknown


def test_what_the_transports_ask_for(here):
    (line,) = check_lines("weights.folder=/tmp/here")
    assert "weights.folder: has no effect with weights.transport reshard" in line
    (line,) = check_lines("weights.double_buffer=true", "weights.transport=broadcast")
    assert "weights.double_buffer: has no effect with weights.transport broadcast" in line
    (line,) = check_lines("weights.local_folder=/tmp/here", "weights.transport=disk")
    assert "or set the transport to delta" in line
    two = ("rollout.nodes_per_engine=2", "rollout.sglang.tp-size=2")
    (line,) = check_lines(*two, "weights.transport=delta")
    assert "weights.transport: is delta, which keeps its copy on one node, but an engine has 2" in line
    assert check_lines(*two, "weights.transport=disk") == []


def test_data_parallel_attention(here):
    def lines(*arguments):
        return [line.split(": ", 2)[1:] for line in check_lines(*(f"rollout.sglang.{a}" for a in arguments))]

    attention, two, both = "enable-dp-attention=true", "dp-size=2", "tp-size=2"
    assert lines(both, two, attention, "enable-dp-lm-head=true", "ep-size=2") == []
    ((place, copies),) = lines("tp_size=2", "dp_size=2")
    assert place == "rollout.sglang.dp_size"
    assert "is 2 without enable-dp-attention" in copies
    assert "set rollout.engines to 2, or" in copies
    ((_, uneven),) = lines("tp-size=4", "dp-size=3", attention)
    assert "is 3, which does not divide tp-size (4)" in uneven
    ((place, none),) = lines(both, attention)
    assert place == "rollout.sglang.enable-dp-attention"
    assert "has no effect with one group" in none
    (few,) = check_lines(
        *(f"rollout.sglang.{a}" for a in ("tp-size=4", "dp-size=4", attention)), "rollout.concurrency=3"
    )
    assert "rollout.concurrency: is 3, less than the 4 groups of an engine" in few


def test_colocated_trainer_and_engine_need_one_gpu(here):
    one, colocated = Machine(cores=8, gpus=("0",)), "placement.layout=colocated"
    assert check_lines(colocated, "model.dtype=bfloat16", machine=one) == []
    (line,) = check_lines(colocated, machine=one)
    assert "model.dtype: is float32, which SGLang's kernels do not take on a GPU: set it to bfloat16" in line


@pytest.mark.parametrize("case", CROSS)
def test_what_sections_ask_of_each_other(here, case):
    override, expected = CROSS[case]
    assert check_lines(override) == [expected.replace("HERE", str(here))]


def test_broken_prompt_row_is_named_by_line(here):
    Path("train.jsonl").write_text('{"prompt": "a", "label": 1}\n{"prompt": 3, "label": 1}\n')
    assert check_lines() == [
        f"recipe.yaml:6:11: data.train.path: {here}/train.jsonl:2: 'prompt' is '3'; a string or a list of"
        " {role, content} messages is needed"
    ]


def test_missing_label_column_lists_the_columns(here):
    Path("train.jsonl").write_text('{"prompt": "a", "answer": 1}\n')
    assert check_lines() == [
        f"recipe.yaml:6:11: data.train.path: {here}/train.jsonl:1: no column 'label'; it has 'prompt', 'answer';"
        " set data.train.label_key to one of them (null: the rows have no label)"
    ]
    Path("train.jsonl").write_text('{"question": "a", "label": 1}\n')
    (line,) = check_lines()
    assert line.endswith(
        "no column 'prompt'; it has 'question', 'label'; set data.train.prompt_key to one of them"
    )


def test_float32_is_refused_where_slurm_gives_engines_gpus(here):
    assert check_lines("slurm.rollout.cpus-per-task=4", machine=None) == []
    (line,) = check_lines("slurm.rollout.gpus-per-node=1", machine=None)
    assert line.endswith("is float32, which SGLang's kernels do not take on a GPU: set it to bfloat16")


def test_best_checkpoints_must_fall_on_evaluations_after_other_stages(here):
    (here / "shown.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    recipe = (
        "checkpoint.keep_best=1", "checkpoint.interval=10", "data.eval.path=train.jsonl", "data.eval.interval=20",
        "algorithm.stages=[{kind: sft, data: {path: shown.jsonl}, steps: 30}, {kind: policy}]",
    )  # fmt: skip
    assert check_lines(*recipe) == []
    (line,) = check_lines(*recipe, "algorithm.stages.0.steps=25")
    assert "Make the steps before that stage (25) a multiple of 10" in line


def test_too_few_gpus(here):
    sizes = ("rollout.engines=2", "rollout.sglang.tp-size=2", "model.dtype=bfloat16")
    lines = check_lines(*sizes, machine=Machine(8, ("0", "1")))
    assert lines == [
        "recipe.yaml:14:1: trainer.ranks_per_node: the run needs 5 GPUs (1 for trainer ranks, 2 x 2 for engines),"
        " but this machine has 2: 0,1. `CUDA_VISIBLE_DEVICES= verst run` runs it on the CPU"
    ]


def test_routing_replay_on_a_mixture_of_experts_is_right(here):
    Path("model/config.json").write_text(json.dumps({**LLAMA, "num_experts": 8}))
    assert check_lines("algorithm.routing_replay=true") == []


def test_a_cache_outside_the_gpu_would_lose_the_routing(here):
    Path("model/config.json").write_text(json.dumps({**LLAMA, "num_experts": 8}))
    cache = "rollout.sglang.enable-hierarchical-cache=true"
    assert check_lines("algorithm.routing_replay=trainer", cache) == []
    [line] = check_lines("algorithm.routing_replay=rollout", cache)
    assert "loads cached tokens without the experts that computed them" in line


def test_drafts_would_mix_their_choices_with_the_models(here):
    model = {**LLAMA, "num_experts": 8}
    drafts = ("algorithm.routing_replay=rollout", "rollout.sglang.speculative-algorithm=NEXTN")
    Path("model/config.json").write_text(json.dumps(model))
    assert check_lines(*drafts) == []
    Path("model/config.json").write_text(json.dumps({**model, "index_topk": 2048, "index_n_heads": 32}))
    [line] = check_lines(*drafts)
    assert "is NEXTN: SGLang would return the draft's sparse-attention choices as those of layer 0" in line
    assert check_lines("algorithm.routing_replay=trainer", drafts[1]) == []


@pytest.mark.long  # asks Megatron's parser
def test_a_model_that_the_engine_would_run_as_another_one_is_refused(here):
    """SGLang gives every layer of a Qwen3-MoE experts; a run would train one model and generate with another."""
    model = {**LLAMA, "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8, "mlp_only_layers": [0]}
    Path("model/config.json").write_text(json.dumps(model))
    [fault] = parser_faults("megatron", load_recipe(Path("recipe.yaml")))
    assert fault.place == "model.path"
    assert fault.message.startswith("is 'model': mlp_only_layers=[0]")


OLD_HOOKS = """
def reward(response, label, metadata): ...
def optional(response, label=None, metadata=None): ...
class Scorer:
    def __call__(self, response, label, metadata): ...
scorer = Scorer()
async def generate(engine, prompt, sampling, seed): ...
"""


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        ("rollout.reward=old:reward", "reward(response, label, metadata)"),
        ("rollout.reward=old:optional", "optional(response, label=None, metadata=None)"),
        ("rollout.reward=old:scorer", "old:scorer(response, label, metadata)"),
        ("rollout.generate=old:generate", "generate(engine, prompt, sampling, seed)"),
    ],
)
def test_a_hook_of_several_values_is_told_what_it_gets_now(here, hook, told):
    Path("old.py").write_text(OLD_HOOKS)
    (line,) = check_lines(hook)
    change = A_REWARD if "reward" in hook else "a generate function takes one `GenerateCall` "
    assert f"it will be called with 1 positional argument, but it is defined as `{told}`: {change}" in line


def test_a_recipe_without_a_reward_needs_a_generate_function_that_scores(here):
    Path("game.py").write_text(
        "from verst.runtime.rewards import scores_itself\n@scores_itself\nasync def play(call): ...\n"
        "async def only_plays(call): ...\n"
    )
    assert check_lines("rollout.reward=null", "rollout.generate=game:play") == []
    for more in ([], ["rollout.generate=game:only_plays"]):
        (line,) = check_lines("rollout.reward=null", *more)
        assert (
            "rollout.reward: is missing. Name a reward, a `rollout.group_reward`, or a generate function that gives"
            in line
        )
    source = "{path: train.jsonl, max_prompt_tokens: 64, reward: verst.runtime.rewards:exact}"
    own = f"data.train={{sources: {{only: {source}}}}}"
    assert check_lines("rollout.reward=null", own) == []
    (line,) = check_lines("rollout.reward=null", own, "data.eval={path: train.jsonl}")
    assert "rollout.reward: is missing" in line
    Path("judge.py").write_text("def rank(answers): ...\ndef one(answers, label): ...\n")
    assert check_lines("rollout.reward=null", "rollout.group_reward=judge:rank") == []
    (line,) = check_lines("rollout.group_reward=judge:one")
    assert "rollout.group_reward: is 'judge:one'" in line
    assert "takes the list of all answers" in line
    bundled = "rollout.group_reward=verst.runtime.rewards:relative_length"
    assert check_lines(bundled, "rollout.group_reward_arguments={weight: 0.5}") == []
    (line,) = check_lines(bundled, "rollout.group_reward_arguments={weight: -1}")
    assert (
        "rollout.group_reward: is 'verst.runtime.rewards:relative_length': its arguments: weight must be"
        in line
    )
    (line,) = check_lines(bundled, "rollout.reward=null")
    assert "rollout.reward: is missing" in line
    with pytest.raises(ValueError, match="group_reward_arguments are given, but there is no group_reward"):
        RolloutConfig(reward="m:f", group_reward_arguments={"weight": 0.5})


def test_a_hook_may_be_async_or_a_class_or_imported(here):
    Path("more.py").write_text(
        "from my_hooks import reward as r\nclass Scorer:\n    def __call__(self, a): ...\n"
        "scorer = Scorer()\nfrom posixpath import *\n"
    )
    for hook in ("my_hooks:awaited", "more:r", "more:scorer"):
        assert check_lines(f"rollout.reward={hook}") == []
    (line,) = check_lines("algorithm.loss=ppo")
    assert (
        "must be a dotted path like `package.module:function`. Bundled: `verst.runtime.algorithms.losses:"
        in line
    )
    (line,) = check_lines("algorithm.loss=reinforce")
    assert line.endswith("You may mean `verst.runtime.algorithms.losses:reinforce`")
    (line,) = check_lines("rollout.filter=more:basename", "rollout.reward=more:Scorer")
    assert line.endswith(
        f"it will be called with 1 positional argument, but it is defined as `Scorer()`: {A_REWARD}"
    )
    (line,) = check_lines("rollout.reward=more:nothing")
    assert line.endswith("is 'more:nothing': more has no 'nothing'")


HOOKS = {
    "an import that fails": (
        "x = 1\nimport not_there\ndef f(a): ...\n",
        "importing it failed: raised ModuleNotFoundError: No module named 'not_there' (HERE/other.py:2, in <module>)",
    ),
    "an exit": (
        "import sys\nsys.exit('no licence')\ndef f(a): ...\n",
        "importing it failed: called sys.exit('no licence') (HERE/other.py:2, in <module>)",
    ),
    "a crash": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\ndef f(a): ...\n",
        "importing it ended Python (killed by SIGSEGV): no message",
    ),
    "a decorator that changes the arguments": (
        "def more(f):\n    return lambda a, b: f(a)\n@more\ndef f(a): ...\n",
        "it will be called with 1 positional argument, but it is defined as `<lambda>(a, b)`: " + A_REWARD,
    ),
    "no function": ("f = 3\n", "it is a int, not a function"),
}


@pytest.mark.parametrize("case", HOOKS)
def test_hooks_are_imported_in_a_process_of_their_own(here, case, capfd):
    source, expected = HOOKS[case]
    Path("other.py").write_text("print('a module that talks')\n" + source)
    (line,) = check_lines("rollout.reward=other:f")
    expected = expected.replace("HERE/other.py:2", f"{here}/other.py:3")
    assert line == f"command line: rollout.reward: is 'other:f': {expected}"
    assert "a module that talks" not in capfd.readouterr().out


def test_the_command_itself_imports_nothing_of_the_user(here):
    Path("package").mkdir()
    Path("package/__init__.py").write_text("import sys\nsys.heavy_was_imported = True\n")
    Path("package/inner.py").write_text("def f(a): ...\n")
    assert check_lines("rollout.reward=package.inner:f") == []
    assert not hasattr(sys, "heavy_was_imported")
    (line,) = check_lines("rollout.reward=package.outer:f")
    assert "there is no module `outer` inside `package`" in line


@pytest.mark.parametrize("label", ["3/4", "$18", "50%", "18 apples", "#### 18", ["18"]])
def test_a_label_that_the_bundled_reward_cannot_use_is_named_by_file_and_line(here, label):
    rows = [{"prompt": "a", "label": "1,000"}, {"prompt": "b", "label": label}]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (line,) = check_lines("rollout.reward=verst.runtime.rewards:number")
    assert line.startswith(
        f"recipe.yaml:6:11: data.train.path: {here}/train.jsonl:2: the label {label!r} is not a number such as 18"
    )
    # `exact` compares texts: only a list is none.
    assert (check_lines("rollout.reward=verst.runtime.rewards:exact") == []) == isinstance(label, str)


def test_places_that_cannot_be_used_are_faults(here):
    (line,) = check_lines("runs_dir=train.jsonl")
    assert line.endswith(
        f"runs_dir: is 'train.jsonl', which cannot be written: {here}/train.jsonl is not a folder"
    )
    (line,) = check_lines("runs_dir=/proc/1/runs")
    assert "runs_dir: is '/proc/1/runs', which cannot be written: " in line
    assert check_lines("runs_dir=made/when/needed") == []
    assert not Path("made").exists()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (line,) = check_lines(f"metrics.prometheus={{port: {port}}}")
        assert f"metrics.prometheus.port: is {port}, on which another process of this machine listens" in line


def test_a_check_of_labels_that_ends_early_says_where(here, capfd, monkeypatch):
    rows = [json.dumps({"prompt": "a", "label": str(n)}) for n in range(3)]
    Path("train.jsonl").write_text("\n".join(rows) + "\n")
    Path("slow.py").write_text(
        "import time\ntime.monotonic = iter(range(0, 1000, 15)).__next__\n"
        "def f(a): ...\nf.check_label = lambda label, metadata: None\n"
    )
    assert check_lines("rollout.reward=slow:f") == []
    assert "train.jsonl:2: the labels after this row were not checked" in capfd.readouterr().err


def test_a_tracker_without_its_package_or_a_place_to_write_is_a_fault(here, monkeypatch):
    monkeypatch.setattr("verst.launcher.check.metrics.find_spec", lambda name: None if name == "wandb" else 1)
    (missing,) = check_lines("metrics.wandb={project: x}", "metrics.tensorboard=true")
    assert (
        "metrics.wandb: needs the package wandb, which is not installed here: `pip install wandb`" in missing
    )
    assert check_lines("metrics.prometheus={port: 9000}") == []
    (nowhere,) = check_lines("metrics.prometheus={}")
    assert "metrics.prometheus: has neither a port nor a textfile" in nowhere
    (name,) = check_lines("metrics.prometheus={textfile: out.txt}")
    assert "metrics.prometheus.textfile: is 'out.txt': the node exporter reads only files" in name


def lfs_pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4294967296\n"
    (folder / "model.safetensors").write_text(text)


def pytorch_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def two_sets(folder: Path) -> None:
    write_safetensors(folder / "model-00001-of-00001.safetensors", {"a": (1,)})
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    os.utime(folder / "model-00001-of-00001.safetensors", (0, 0))


FOLDERS = {
    "git LFS": (lfs_pointer, "is a pointer of git LFS (72 bytes), not the file itself: run `git lfs pull`"),
    "PyTorch's files": (
        pytorch_only,
        "no safetensors weights to read. It has pytorch_model.bin: save them as",
    ),
    "cut short": (cut_short, "is not a whole safetensors file: "),
    "no tokenizer": (
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "/model has no tokenizer (tokenizer.json or",
    ),
    "two sets": (two_sets, "model.safetensors is newer. Remove the set that is out of date"),
    "a file beside": (
        lambda f: write_safetensors(f / "adapter.safetensors", {"a": (1,)}),
        "trainer read model.safetensors alone, engines read all of them",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_model_folder_that_cannot_be_read_is_told_by_the_plan(here, case):
    break_it, message = FOLDERS[case]
    break_it(here / "model")
    (line,) = check_lines()
    assert line.startswith("recipe.yaml:3:3: model.path: is 'model': ")
    assert message in line


@pytest.mark.long  # asks Megatron's parser twice
def test_weights_that_do_not_fit_are_told_by_the_plan(here):
    """Also a quantised folder: its settings come first, because they explain the other dtypes."""
    shapes = llama_shapes(LLAMA) | {
        "model.norm.weight": (15,),
        "model.layers.0.self_attn.q_proj.bias": (16,),
        "model.layers.0.self_attn.rotary_emb.inv_freq": (2,),
        "lm_head.weight": (64, 16),  # the same zeros as the embedding
    }
    del shapes["model.layers.1.mlp.up_proj.weight"]
    write_safetensors(here / "model/model.safetensors", shapes)
    recipe = load_recipe(Path("recipe.yaml"))
    (fault,) = parser_faults("megatron", recipe)
    assert (fault.place, fault.message.splitlines()) == (
        "model.path",
        [
            "is 'model': its weights do not fit its config.json:",
            "    model.layers.1.mlp.up_proj.weight (32, 16) is missing",
            "    model.norm.weight is (15,), but by config.json it should be (16,)",
            "    model.layers.0.self_attn.q_proj.bias (16,) is not read by the family llama: it would be lost",
        ],
    )
    quantised = LLAMA | {"quantization_config": {"quant_method": "compressed-tensors"}}
    Path("model/config.json").write_text(json.dumps(quantised))
    (fault,) = parser_faults("megatron", recipe)
    assert fault.place == "model.path"
    assert (
        "quantization_config (quant_method 'compressed-tensors'): the weights are quantised" in fault.message
    )
