"""How Megatron's parameters map to Hugging Face tensors: one table of rules per architecture family.

A family is a list of `Rule`s. A rule describes one whole Megatron parameter, before any sharding, as a
reshape (`view`) whose slices along one axis are Hugging Face tensors. It also says which axis of that view
tensor or expert parallelism splits. Everything else follows from the rules (see `layout.py`): which rank holds
what, import, export, checkpoints in Hugging Face form, weight sync, sizes for the memory estimate.

Example: `linear_qkv.weight` of G query groups with q queries each and heads of width d is
[G * (q + 2) * d, H]. As view [G, q + 2, d, H] the queries are slices 0..q of axis 1, the key is slice q,
the value slice q + 1, and tensor parallelism splits axis 0.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HfConfig = Mapping[str, Any]  # config.json as a dictionary
ArgumentValue = bool | int | float | str | list[int | float | str]

# Modules that each hold a FAMILY. Users add theirs by dotted path (`model.family` in the recipe).
BUILT_IN = (
    "verst.recipes.models.llama",
    "verst.recipes.models.qwen3",
    "verst.recipes.models.qwen3_moe",
    "verst.recipes.models.deepseek_v3",
    "verst.recipes.models.deepseek_v32",
    "verst.recipes.models.glm_moe_dsa",
)


@dataclass(frozen=True)
class Part:
    """One Hugging Face tensor inside a Megatron parameter."""

    hf: str
    shape: tuple[int, ...]
    start: int  # its first slice along the rule's `axis`
    length: int  # and how many slices


@dataclass(frozen=True)
class Rule:
    """One whole Megatron parameter and the Hugging Face tensors it is made of.

    names: its names under different layer specs, tried in this order. They are relative to the chunk (embedding and
        head) or to `decoder.layers.N` (layers); `{expert}` stands for the number of the local expert.
    ndim: dimensions of the Megatron parameter. If `view` has more, its leading axes are merged into the first.
    view, parts, axis: the slices of `view` along `axis` are the Hugging Face tensors `parts`.
    shard: the axis of `view` that tensor parallelism splits (for experts: expert tensor parallelism). That splits
        dimension `hf_dim` of each Hugging Face tensor. None: every rank holds the whole parameter.
    expert: the expert's number in the layer; None: not an expert's parameter.
    padded: Megatron rounds the sharded axis up to a multiple of the group's size.
    """

    names: tuple[str, ...]
    ndim: int
    view: tuple[int, ...]
    parts: tuple[Part, ...]
    axis: int = 0
    shard: int | None = None
    hf_dim: int = 0
    expert: int | None = None
    padded: bool = False


@dataclass(frozen=True)
class Family:
    """An architecture family: Megatron's arguments for it and its mapping table.

    megatron_args(config): Megatron's own argument names (no dashes in front) and their values; True is a bare
        flag. Raises ValueError for a configuration that the family cannot express.
    embedding(config), head(config), layer(config, i): the rules of the first stage, of the last stage and of
        decoder layer i.
    engine_fault(config): what SGLang gets wrong about a configuration that Megatron can train, or None.
    frozen(config, i): the buffers of decoder layer i that keep the checkpoint's values: they are not trained, not
        sent to engines, and exported as they came.
    together(name): neighbouring tensors with the same value are always sent in one bucket, because SGLang has to
        load them in one call.
    left_out(config, name): whether a tensor of a checkpoint may be left out of training and export. Any other tensor
        that the rules do not name is refused. By default those that `harmless` says.
    model_types: the values of `model_type` in config.json that belong to the family. transformers' configuration class
        of the first gives the defaults of keys that config.json leaves out (`sync/hf/model_config.py`). With none,
        the functions above get config.json as it is.
    scored_as: transformers' class of the architecture with a score in place of the logits, whose tensors are those of
        the model and `score.weight`. Without one, reward models of the family are refused.
    described: what config.json of an export says otherwise than that of the folder which the model comes from.
    """

    name: str
    architectures: tuple[str, ...]
    megatron_args: Callable[[HfConfig], dict[str, ArgumentValue]]
    embedding: Callable[[HfConfig], Sequence[Rule]]
    head: Callable[[HfConfig], Sequence[Rule]]
    layer: Callable[[HfConfig, int], Sequence[Rule]]
    engine_fault: Callable[[HfConfig], str | None] = lambda config: None
    frozen: Callable[[HfConfig, int], Sequence[Rule]] = lambda config, i: ()
    together: Callable[[str], str] = lambda name: name
    left_out: Callable[[HfConfig, str], bool] = lambda config, name: harmless(config, name)
    model_types: tuple[str, ...] = ()
    scored_as: str | None = None
    described: Mapping[str, Any] = field(default_factory=dict)

    def num_layers(self, config: HfConfig) -> int:
        """How many decoder layers the model has."""
        return int(config["num_hidden_layers"])


def harmless(config: HfConfig, name: str) -> bool:
    """Whether a tensor follows from config.json (rotary frequencies), or is of a layer for multi-token prediction."""
    if name.endswith(".rotary_emb.inv_freq"):
        return True
    found = re.match(r"model\.layers\.(\d+)\.", name)
    layers, extra = config["num_hidden_layers"], config.get("num_nextn_predict_layers") or 0
    return found is not None and layers <= int(found[1]) < layers + extra


def replicated(names: tuple[str, ...] | str, hf: str, shape: tuple[int, ...]) -> Rule:
    """A parameter that every rank of the stage holds whole, such as a norm or a router."""
    return Rule(_names(names), len(shape), shape, (Part(hf, shape, 0, shape[0]),))


def column_parallel(names: tuple[str, ...] | str, hf: str, out_size: int, in_size: int) -> Rule:
    """A weight [out, in], split along the output."""
    shape = (out_size, in_size)
    return Rule(_names(names), 2, (1, *shape), (Part(hf, shape, 0, 1),), shard=1)


def row_parallel(
    names: tuple[str, ...] | str, hf: str, out_size: int, in_size: int, expert: int | None = None
) -> Rule:
    """A weight [out, in], split along the input."""
    shape = (out_size, in_size)
    return Rule(_names(names), 2, shape, (Part(hf, shape, 0, out_size),), shard=1, hf_dim=1, expert=expert)


def vocabulary(names: tuple[str, ...] | str, hf: str, vocab: int, hidden: int) -> Rule:
    """A weight [vocabulary, hidden], split along the vocabulary, which Megatron pads to a multiple of the split."""
    shape = (vocab, hidden)
    return Rule(_names(names), 2, shape, (Part(hf, shape, 0, vocab),), shard=0, padded=True)


def gate_up(
    names: tuple[str, ...] | str, gate: str, up: str, ffn: int, hidden: int, expert: int | None = None
) -> Rule:
    """SwiGLU's first linear: each rank holds its rows of the gate, then its rows of the up projection."""
    shape = (ffn, hidden)
    parts = (Part(gate, shape, 0, 1), Part(up, shape, 1, 1))
    return Rule(_names(names), 2, (2, *shape), parts, shard=1, expert=expert)


def grouped_qkv(
    name: str, q: str, k: str, v: str, groups: int, per_group: int, head: int, hidden: int
) -> Rule:
    """Megatron's linear_qkv.weight: group by group, its queries, its key and its value."""
    parts = (
        Part(q, (groups * per_group * head, hidden), 0, per_group),
        Part(k, (groups * head, hidden), per_group, 1),
        Part(v, (groups * head, hidden), per_group + 1, 1),
    )
    return Rule((name,), 2, (groups, per_group + 2, head, hidden), parts, axis=1, shard=0)


def _names(names: tuple[str, ...] | str) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def family_for(config: HfConfig, dotted: str | None = None) -> Family:
    """Finds the family of a model: the one at `dotted` (`pkg.module:NAME`) if given, else the built-in family
    of the model's architecture.

    Raises ValueError if the dotted path does not lead to a Family, or if no built-in family fits.
    """
    if dotted:
        return _load_family(dotted)
    known: dict[str, Family] = {}
    for module in BUILT_IN:
        family = importlib.import_module(module).FAMILY
        known.update(dict.fromkeys(family.architectures, family))
    wanted = list(config.get("architectures") or [])
    for architecture in wanted:
        if architecture in known:
            return known[architecture]
    raise ValueError(
        f"no model family for architectures {wanted} in config.json; known: {', '.join(sorted(known))}. "
        "Name your own with `model.family: pkg.module:NAME`"
    )


def _load_family(dotted: str) -> Family:
    module, _, name = dotted.partition(":")
    if not name:
        raise ValueError(f"model family {dotted!r} is not of the form pkg.module:NAME")
    try:
        family = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model family {dotted!r} cannot be loaded: {error}") from error
    if not isinstance(family, Family):
        raise ValueError(
            f"model family {dotted!r} is a {type(family).__name__}, not a verst.sync.layout.mapping.Family"
        )
    return family


def sharded_view(rule: Rule, size: int) -> tuple[int, ...]:
    """The rule's view of one rank's share when the sharded axis is split `size` ways.

    Raises ValueError if the axis does not divide.
    """
    if rule.shard is None:
        return rule.view
    whole = rule.view[rule.shard]
    if rule.padded:
        whole = math.ceil(whole / size) * size
    if whole % size:
        raise ValueError(
            f"{rule.names[0]} ({rule.parts[0].hf}): {whole} cannot be split {size} ways; "
            f"choose a tensor parallel size that divides {whole}"
        )
    return (*rule.view[: rule.shard], whole // size, *rule.view[rule.shard + 1 :])


def merged_shape(view: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """The shape of the Megatron parameter of `ndim` dimensions that `view` reshapes."""
    lead = len(view) - ndim + 1
    return (math.prod(view[:lead]), *view[lead:])
