"""Whether the engines' own folder is the model that is trained. Imports transformers, so `parsers.py` asks it.

`rollout.model_path` may store the weights in another format. Everything else in its config.json that decides what the
model computes must be as in `model.path`: engines that rotate or route otherwise would sample from another policy than
the one that is trained, with the same weights. Both configurations are compared as transformers completes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from verst.launcher.check.model.description import description_if_any
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe
from verst.sync.layout.mapping import Family, HfConfig

_PLACE = "rollout.model_path"
# Keys that decide nothing of what an engine computes, in five groups: the format of the weights, bookkeeping, what
# transformers' own code returns, what training alone uses, and layers for multi-token prediction.
_OTHERWISE = {
    "quantization_config", "compression_config", "dtype", "torch_dtype",
    "transformers_version", "auto_map", "attn_implementation", "id2label", "label2id", "num_labels", "problem_type",
    "use_cache", "return_dict", "use_return_dict", "output_attentions", "output_hidden_states", "output_router_logits",
    "torchscript", "chunk_size_feed_forward", "is_encoder_decoder", "pretraining_tp", "ep_size",
    "initializer_range", "gradient_checkpointing", "router_aux_loss_coef", "router_jitter_noise", "aux_loss_alpha",
    "seq_aux", "num_nextn_predict_layers",
}  # fmt: skip
_OTHERWISE_ENDS = ("_token_id", "_token_ids", "_dropout", "_pdrop")
_LONGEST = 80  # characters of a value that a message shows


def served_model_faults(recipe: Recipe, family: Family, trained: HfConfig) -> Iterator[Fault]:
    """The faults of `rollout.model_path`'s config.json. A missing folder gives none: another check reports it.

    `trained` is the completed configuration of model.path, and `family` its family.
    """
    from verst.sync.hf.model_config import completed

    path = recipe.rollout.model_path
    description = None if path is None else description_if_any(path)
    if description is None:
        return
    try:
        others = list(differences(completed(description, family), trained))
        engine_fault = family.engine_fault(description)
    except (ValueError, KeyError) as error:
        yield Fault(_PLACE, f"is {path!r}: {error}")
        return
    if others:
        shown = "".join(f"\n    {other}" for other in others)
        yield Fault(
            _PLACE,
            f"is {path!r}, which is a different model from model.path by config.json, as transformers completes it. "
            f"Write the same into both, or make the folder from model.path with `verst convert`:{shown}",
        )
    if engine_fault:
        yield Fault(_PLACE, f"is {path!r}: {engine_fault}")


def differences(served: HfConfig, trained: HfConfig) -> Iterator[str]:
    """Each key by which two completed configurations describe different functions of the weights, with both values."""
    ours, theirs = dict(_deciding(served)), dict(_deciding(trained))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            yield f"{key} {_shown(ours.get(key))} where model.path has {_shown(theirs.get(key))}"


def _deciding(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The keys that decide what a model computes, those of sections as SECTION.KEY, with their values."""
    for key, value in config.items():
        if key in _OTHERWISE or key.startswith("_") or key.endswith(_OTHERWISE_ENDS):
            continue
        if key == "type" and "rope_type" in config:  # its older name
            continue
        if key == "max_position_embeddings" and not _context_moves_positions(config):
            continue
        if isinstance(value, Mapping):
            yield from _deciding(value, f"{above}{key}.")
        elif value is not None:
            yield above + key, value


def _context_moves_positions(config: Mapping[str, Any]) -> bool:
    """Whether the rotary positions depend on the longest context. If not, it is a bound alone, and may differ."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = [
        rope,
        *(kind for kind in rope.values() if isinstance(kind, Mapping)),
    ]  # some have one for a kind of layer
    return any(_depends_on_context(kind) for kind in kinds)


def _depends_on_context(rope: Mapping[str, Any]) -> bool:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "yarn":  # the context stands in for either
        return not (rope.get("factor") and rope.get("original_max_position_embeddings"))
    return kind not in ("default", "linear", "llama3")


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
