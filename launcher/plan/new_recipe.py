"""Implements `verst init`: writes a commented recipe for a model, a prompt file and a number of GPUs.

It chooses what can be known beforehand: a layout that fits into the GPUs' memory by the estimate of `memory.py`, and
the columns of the prompt file. The rest are the values that most runs begin with, each with a word on what it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from verst.launcher.plan.memory import in_words, parameters_of
from verst.launcher.plan.model_source import is_mixture_of_experts, model_description, model_folder
from verst.launcher.recipe.faults import UserError
from verst.runtime.data.records import DataError, read_records
from verst.runtime.run.folder import write_atomically

_PER_NODE = 8
_TRAINER_SHARE, _ENGINE_SHARE = (
    0.6,
    0.35,
)  # of a GPU's memory; the rest is for activations and caches
_PROMPTS = ("prompt", "question", "problem", "instruction", "messages", "input", "query")
_LABELS = ("label", "answer", "solution", "ground_truth", "target", "output")


@dataclass(frozen=True)
class Layout:
    """Parallel sizes for a number of GPUs, all of which trainer and engines use in turns."""

    nodes: int
    ranks_per_node: int
    tp: int = 1
    pp: int = 1
    ep: int = 1
    engine_tp: int = 1
    fits: bool = True

    @property
    def gpus(self) -> int:
        return self.nodes * self.ranks_per_node


def write_recipe(model: str, out: Path, gpus: int, gpu_gib: float, data: Path | None, reward: str) -> int:
    """Writes the recipe to `out`. Returns the exit code. Raises UserError when it exists or cannot be written."""
    if out.exists():
        raise UserError(f"{out} already exists: choose another file with --out")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.absolute().parent}")
    folder = model_folder(model)
    description = model_description(model) if folder is not None else {}
    counted = None if folder is None else parameters_of(folder)
    layout = choose_layout(gpus, gpu_gib * 2**30, counted or (0, 0), description) if gpus else None
    write_atomically(out, recipe_text(out.stem, model, layout, description, data, reward).encode(), 0o644)
    print(f"wrote {out}. Next: `verst plan {out}`, `verst check-reward {out}`, then `verst run {out}`")
    if counted is None:
        print(
            f"the size of {model} is not known here: check that trainer and engines fit, with `verst plan {out}`"
        )
    elif layout is not None and not layout.fits:
        print(
            f"{sum(counted) / 1e9:.1f}B parameters do not fit into {gpus} GPUs of {in_words(gpu_gib * 2**30)}: "
            "take more GPUs"
        )
    return 0


def choose_layout(gpus: int, memory: float, counted: tuple[int, int], description: dict[str, Any]) -> Layout:
    """The smallest splits with which a model in bfloat16 fits. `counted`: parameters outside and inside experts.

    Weights take 2 bytes a parameter, gradients 4, and Adam 12, spread over the data-parallel ranks (Megatron's
    distributed optimizer).
    """
    nodes = -(-gpus // _PER_NODE)
    if gpus % nodes:
        raise UserError(f"--gpus {gpus} cannot be spread evenly over nodes of at most {_PER_NODE} GPUs")
    dense, experts = counted
    heads = int(description.get("num_key_value_heads") or description.get("num_attention_heads") or gpus)
    count = int(description.get("num_experts") or description.get("n_routed_experts") or 0)
    widths = [w for w in (1, 2, 4, 8) if gpus // nodes % w == 0 and heads % w == 0]
    whole = 2 * (dense + experts)  # bytes of the weights
    engine_tp = next((w for w in widths if whole / w <= _ENGINE_SHARE * memory), widths[-1])
    layouts: list[tuple[float, Layout]] = []
    for pp in (p for p in (1, 2, 4, 8, 16) if gpus % p == 0):
        for tp in (w for w in widths if gpus % (w * pp) == 0):
            ep = next((e for e in (8, 4, 2) if experts and count % e == 0 and gpus % (e * pp) == 0), 1)
            held = dense / (tp * pp) + experts / (ep * pp)
            nbytes = held * (6 + 12 / (gpus // (tp * pp)))
            fits = nbytes <= _TRAINER_SHARE * memory and whole / engine_tp <= _ENGINE_SHARE * memory
            layouts.append((nbytes, Layout(nodes, gpus // nodes, tp, pp, ep, engine_tp, fits)))
    return next((layout for _, layout in layouts if layout.fits), min(layouts, key=lambda one: one[0])[1])


def recipe_text(
    name: str,
    model: str,
    layout: Layout | None,
    description: dict[str, Any],
    data: Path | None,
    reward: str,
) -> str:
    """The recipe as YAML. `layout` None: one rank and one engine on the CPU."""
    prompt_key, label_key = _columns(data)
    moe = is_mixture_of_experts(description)
    dtype = "float32  # faster than bfloat16 on most CPUs" if layout is None else "bfloat16"
    replay = "\n  routing_replay: rollout  # train on the experts that the engine chose" if moe else ""
    return f"""\
# Written by `verst init`. Every key: docs/recipes.md, or `verst schema`.
#   verst plan {name}.yaml          check it, and see what would run where
#   verst check-reward {name}.yaml  call the reward on some rows, without an engine
name: {name}

model:
  path: {model}
  dtype: {dtype}

data:
  train:
    path: {data or "train.jsonl"}  # a JSONL or parquet file, one prompt a row
    prompt_key: {prompt_key}  # the column with the prompt: a string or a list of chat messages
    label_key: {label_key}  # the column that the reward compares the answer with; null: none
    max_prompt_tokens: 512  # longer prompts are left out
  # eval: {{path: eval.jsonl, prompt_key: {prompt_key}, label_key: {label_key}}}  # scored before, during and after

algorithm:
  steps: 100
  prompts_per_step: 32
  samples_per_prompt: 8  # answers to each prompt; the advantage of one is relative to the others
  clip_low: 0.2  # the policy ratio is clipped outside 1 - clip_low … 1 + clip_high
  clip_high: 0.2
  kl_coef: 0.0  # above 0: a reference model holds the policy back{replay}

rollout:
  reward: {reward}  # your own: a dotted path, package.module:function
  sampling:
    temperature: 1.0
    max_new_tokens: 1024  # longer answers are cut off
{_engines(layout)}
trainer:
{_trainer(layout)}
checkpoint:
  interval: 20  # steps
  keep: 2
"""


def _engines(layout: Layout | None) -> str:
    if layout is None:
        return "  engines: 1\n"
    engines = max(1, layout.gpus // layout.engine_tp)
    sglang = (
        f"\n  sglang:\n    tp-size: {layout.engine_tp}  # GPUs of each engine\n"
        if layout.engine_tp > 1
        else "\n"
    )
    return f"  engines: {engines}{sglang}"


def _trainer(layout: Layout | None) -> str:
    lines = []
    if layout is not None:
        lines += [
            f"  nodes: {layout.nodes}",
            f"  ranks_per_node: {layout.ranks_per_node}  # one for each GPU",
        ]
    lines += ["  max_tokens_per_microbatch: 8192  # lower it if a rank runs out of memory", "  megatron:"]
    lines += ["    lr: 1e-6", "    weight-decay: 0.01", "    clip-grad: 1.0"]
    if layout is not None:
        lines.append("    use-distributed-optimizer: true")
        sizes = {"tensor": layout.tp, "pipeline": layout.pp, "expert": layout.ep}
        lines += [f"    {kind}-model-parallel-size: {size}" for kind, size in sizes.items() if size > 1]
        lines += ["    sequence-parallel: true"] if layout.tp > 1 else []
        lines += ["    expert-tensor-parallel-size: 1"] if layout.ep > 1 and layout.tp > 1 else []
        lines += ["", "placement:", "  layout: colocated  # trainer and engines take turns on the same GPUs"]
    return "\n".join(lines) + "\n"


def _columns(data: Path | None) -> tuple[str, str]:
    """The prompt's and the label's column of a prompt file. Raises UserError when it cannot be read."""
    if data is None:
        return "prompt", "label"
    try:
        rows = list(islice(read_records(data), 1))
    except DataError as error:
        raise UserError(str(error)) from error
    columns = list(rows[0][1]) if rows else []
    prompt = next((name for name in _PROMPTS if name in columns), None)
    if prompt is None:
        raise UserError(
            f"{data}: none of its columns looks like a prompt: {', '.join(columns)}; rename one to `prompt`"
        )
    return prompt, next((name for name in _LABELS if name in columns and name != prompt), "null")
