"""A small recipe that is right, with the files it names: tests break one thing of it at a time."""

from __future__ import annotations

import json
from pathlib import Path

from tests.launcher.model_folders import llama_shapes, write_safetensors
from verst.launcher.plan.machine import Machine
from verst.launcher.recipe.load import parse_recipe
from verst.launcher.recipe.recipe import Recipe

MACHINE = Machine(cores=2)

RECIPE = """\
name: test
model:
  path: model
  dtype: float32
data:
  train: {path: train.jsonl, max_prompt_tokens: 64}
algorithm:
  steps: 3
  prompts_per_step: 4
  samples_per_prompt: 2
rollout:
  reward: my_hooks:reward
  sampling: {max_new_tokens: 8}
trainer:
  megatron: {lr: 1e-4}
"""

HOOKS = """\
def reward(answer):
    return 1.0

async def awaited(answer):
    return 1.0

def two(answer, label):
    return 1.0

NUMBER = 3
"""

# The shape of a Llama of 16 hidden units.
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 64,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    """recipe.yaml, train.jsonl, my_hooks.py and a model without a trained weight in `folder`."""
    (folder / "recipe.yaml").write_text(text)
    (folder / "train.jsonl").write_text('{"prompt": "1 + 1 =", "label": "2"}\n')
    (folder / "my_hooks.py").write_text(HOOKS)
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model/config.json").write_text(json.dumps(LLAMA))
    write_tokenizer(folder / "model")
    write_safetensors(folder / "model/model.safetensors", llama_shapes(LLAMA))
    return folder / "recipe.yaml"


def parsed(*overrides: str) -> Recipe:
    """The recipe in recipe.yaml, which has no fault of the schema."""
    _, recipe, faults = parse_recipe(Path("recipe.yaml"), overrides)
    assert recipe is not None
    assert faults == []
    return recipe


def write_tokenizer(folder: Path) -> None:
    """The files of a tokenizer with a token per letter and a chat template, in the model folder `folder`."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    letters = ["<|end|>", "<unk>", *"0123456789abcdefghijklmnopqrstuvwxyz +=<|>"]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "unk_token": "<unk>",
        "chat_template": "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
