"""Finds the faults of options one by one."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping

from verst.runtime.messages.model_config import ArgumentValue
from verst.runtime.trainer.model.arguments.architecture import ARCHITECTURE, PREFERENCES
from verst.runtime.trainer.model.arguments.command_line import parsed_values

# Options that other parts of the recipe or Verst itself decide. Setting one in trainer.megatron is a fault.
_DECIDED_ELSEWHERE = {
    "micro-batch-size": "the batch plan sizes micro-batches; set trainer.max_tokens_per_microbatch",
    "global-batch-size": "set algorithm.prompts_per_step and algorithm.samples_per_prompt",
    "train-iters": "set algorithm.steps",
    "train-samples": "set algorithm.steps",
    "bf16": "set model.dtype: bfloat16",
    "fp16": "set model.dtype to bfloat16 or float32",
    "load": "checkpoints live in the run folder; see the checkpoint section",
    "save": "checkpoints live in the run folder; see the checkpoint section",
    "save-interval": "set checkpoint.interval",
    "async-save": "set checkpoint.async",
    "data-path": "set data.train.path",
    "calculate-per-token-loss": "the step plan carries each token's weight",
    "yaml-cfg": "write the options into trainer.megatron",
    "perform-rl-step": "Verst has its own step",
    "tokenizer-type": "the tokenizer comes with model.path",
    "no-initialization": "weights come from model.path",
    "overlap-param-gather": "every step's weights go to the engines at once, so there is nothing to overlap",
    "use-tp-pp-dp-mapping": "ranks are laid out in the order tp-cp-ep-dp-pp",
    "moe-enable-routing-replay": "set algorithm.routing_replay",
    "rl-use-sequence-packing": "micro-batches are packed sequences always",
    "hybrid-context-parallel": "every sequence is split over all context-parallel ranks",
}

# What other systems and papers call Megatron's options.
OTHER_NAMES = {
    "learning-rate": "lr",
    "learningrate": "lr",
    "min-learning-rate": "min-lr",
    "lr-scheduler": "lr-decay-style",
    "lr-scheduler-type": "lr-decay-style",
    "warmup-steps": "lr-warmup-iters",
    "lr-warmup-steps": "lr-warmup-iters",
    "warmup-ratio": "lr-warmup-fraction",
    "lr-warmup-ratio": "lr-warmup-fraction",
    "betas": "adam-beta1 and adam-beta2",
    "beta1": "adam-beta1",
    "beta2": "adam-beta2",
    "eps": "adam-eps",
    "epsilon": "adam-eps",
    "max-grad-norm": "clip-grad",
    "grad-clip": "clip-grad",
    "gradient-clipping": "clip-grad",
    "gradient-clip": "clip-grad",
    "wd": "weight-decay",
    "tp": "tensor-model-parallel-size",
    "tp-size": "tensor-model-parallel-size",
    "tensor-parallel-size": "tensor-model-parallel-size",
    "pp": "pipeline-model-parallel-size",
    "pp-size": "pipeline-model-parallel-size",
    "pipeline-parallel-size": "pipeline-model-parallel-size",
    "cp": "context-parallel-size",
    "cp-size": "context-parallel-size",
    "ep": "expert-model-parallel-size",
    "ep-size": "expert-model-parallel-size",
    "expert-parallel-size": "expert-model-parallel-size",
    "etp": "expert-tensor-parallel-size",
    "activation-checkpointing": "recompute-granularity",
    "gradient-checkpointing": "recompute-granularity",
}

# Values that Megatron knows and Verst cannot train with.
_NOT_HERE = {
    "optimizer": {
        name: "checkpoints hold Adam's state and no other optimizer's; leave it out"
        for name in ("sgd", "muon", "dist_muon", "adaptive_muon", "lion", "soap")
    },
}


def option_faults(
    parser: argparse.ArgumentParser,
    megatron: Mapping[str, ArgumentValue],
    model_shape: Mapping[str, ArgumentValue],
) -> list[str]:
    """Lists options that are unknown, malformed, set elsewhere in the recipe, or against the checkpoint."""
    actions = {o.removeprefix("--"): a for a in parser._actions for o in a.option_strings}
    from_checkpoint = parsed_values(parser, actions, model_shape)
    architecture = {actions[name].dest for name in ARCHITECTURE if name in actions}
    faults = []
    for name, value in megatron.items():
        action = actions.get(name)
        if action is None:
            faults.append(_unknown(name, list(actions)))
            continue
        if name in _DECIDED_ELSEWHERE:
            faults.append(f"{name}: not an option here: {_DECIDED_ELSEWHERE[name]}")
            continue
        if isinstance(action, argparse._StoreAction) and isinstance(value, bool):
            faults.append(f"{name}: needs a value, got {str(value).lower()}")
            continue
        try:
            parsed = parsed_values(parser, actions, {name: value})[action.dest]
        except argparse.ArgumentError as error:
            faults.append(f"{name}: {error.message}")
            continue
        if fault := _NOT_HERE.get(name, {}).get(str(parsed)):
            faults.append(f"{name}: is {value}: {fault}")
            continue
        if name in PREFERENCES:
            continue
        if action.dest in from_checkpoint:
            if parsed != from_checkpoint[action.dest]:
                faults.append(
                    f"{name}: the recipe says {value}, the checkpoint {from_checkpoint[action.dest]}; leave it out"
                )
        elif action.dest in architecture and parsed != action.default:
            faults.append(
                f"{name}: the recipe says {value}, but the architecture decides it, and the model's family leaves it "
                f"at {action.default}: trainer and engines would compute different models; leave it out"
            )
    return faults


def _unknown(name: str, known: list[str]) -> str:
    plain = name.lstrip("-").replace("_", "-")
    if (meant := OTHER_NAMES.get(plain)) is not None:
        return f"{name}: Megatron has no such option; its name is {meant}"
    near = difflib.get_close_matches(plain, known, n=1, cutoff=0.6)
    return f"{name}: Megatron has no such option" + (f"; nearest is {near[0]}" if near else "")
