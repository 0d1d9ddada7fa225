"""Decides which layers are quantised: the engine's rule, read from `quantization_config` or written into one.

An engine quantises all linear layers except those named by `ignore` (`modules_to_not_convert`). It never quantises
embeddings, norms, routers and the head. It fuses query, key and value, gate and up, and all experts of a layer, so each
of these sets is quantised as a whole or not at all.

`ignore` is read as SGLang reads it:
- Style "path" (FP8, MXFP8, ModelOpt): an entry matches a module whose path contains it as whole components, so also
  everything below that module (`mlp.gate` does not match `mlp.gate_up_proj`); `*` stands for anything.
- Style "suffix" (compressed-tensors): an entry matches a path that equals it or ends with it.
- In both, `re:` is followed by a regular expression that must match from the start of the path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Style = Literal["path", "suffix"]

_NEVER = frozenset(
    (
        "embed_tokens",
        "wte",
        "wpe",
        "lm_head",
        "gate",
        "router",
        "shared_expert_gate",
        "eh_proj",
        "weights_proj",
    )
)
_EMBEDDINGS = ("embed_tokens", "wte", "wpe")
# Leaf names of the weights that the engine fuses into one matrix, and the leaf name of that matrix.
_FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
    **dict.fromkeys(("w1", "w3"), "w13"),
    **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa"), "fused_qkv_a_proj_with_mqa"),
}
_EXPERTS = re.compile(r"(.*\.experts)\.\d+\.")


def fused_group(name: str) -> str:
    """The name of the engine's matrix that this weight is fused into; its own name if it is not fused."""
    module, _, leaf = name.removesuffix(".weight").rpartition(".")
    return f"{module}.{_FUSED[leaf]}.weight" if leaf in _FUSED else name


def matches(pattern: str, module: str, style: Style = "path") -> bool:
    """Whether an entry of `ignore` matches a module's path."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    if style == "suffix":
        return module == pattern or module.endswith("." + pattern)
    if "*" in pattern:
        expression = re.escape(pattern).replace(r"\*", ".*")
        return any(re.fullmatch(expression, part) for part in (module, *module.split(".")))
    return f".{pattern.rstrip('.')}." in f".{module}."


@dataclass(frozen=True)
class Selection:
    """The rule for one model. With `experts_only` only routed experts are quantised."""

    ignore: tuple[str, ...] = ()
    style: Style = "path"
    experts_only: bool = False

    def takes(self, name: str, shape: Sequence[int]) -> bool:
        """Whether a tensor is quantised. Raises ValueError for a tensor that holds all experts of a layer."""
        module = name.removesuffix(".weight")
        leaf = module.rpartition(".")[2]
        if len(shape) == 3 and "experts" in module:
            raise ValueError(f"{name} {tuple(shape)} holds all experts; formats need one tensor per expert")
        if not name.endswith(".weight") or len(shape) != 2 or leaf in _NEVER or "norm" in leaf:
            return False
        if self.experts_only and not _EXPERTS.match(name):
            return False
        fused = fused_group(name).removesuffix(".weight")
        return not any(matches(p, m, self.style) for p in self.ignore for m in {module, fused})


def chosen(shapes: Mapping[str, Sequence[int]], selection: Selection) -> frozenset[str]:
    """The tensors of a model that are quantised.

    Raises ValueError that names each matrix of the engine of which only a part would be quantised.
    """
    taken = frozenset(name for name, shape in shapes.items() if selection.takes(name, shape))
    wholes: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        if name.endswith(".weight") and len(shape) == 2:
            wholes.setdefault(_engine_matrix(name), []).append(name)
    split = [
        f"{whole}: {next(m for m in members if m in taken)} is, {next(m for m in members if m not in taken)} is not"
        for whole, members in wholes.items()
        if 0 < sum(m in taken for m in members) < len(members)
    ]
    if split:
        lines = "\n  ".join(split[:10] + ([f"and {len(split) - 10} more"] if len(split) > 10 else []))
        raise ValueError(
            f"the engine fuses tensors of which only some would be quantised; ignore all or none:\n  {lines}"
        )
    return taken


def _engine_matrix(name: str) -> str:
    experts = _EXPERTS.match(name)
    return experts[1] if experts else fused_group(name)


def ignored(shapes: Mapping[str, Sequence[int]], taken: Iterable[str], style: Style) -> list[str]:
    """The `ignore` list of all linear layers that are not among `taken`; a layer's experts are one entry."""
    taken = frozenset(taken)
    entries: dict[str, None] = {}
    for name, shape in shapes.items():
        if name in taken or not name.endswith(".weight") or len(shape) != 2:
            continue
        if name.removesuffix(".weight").rpartition(".")[2] in _EMBEDDINGS:
            continue
        experts = _EXPERTS.match(name)
        if experts:
            entries[experts[1] if style == "path" else f"re:{re.escape(experts[1])}\\..*"] = None
            continue
        entries[name.removesuffix(".weight")] = None
        entries[fused_group(name).removesuffix(".weight")] = None
    return list(entries)


def of_config(config: Mapping[str, Any]) -> Selection:
    """Reads the rule from a `quantization_config`."""
    method = config.get("quant_method")
    if method == "compressed-tensors":
        return Selection(tuple(config.get("ignore") or ()), "suffix")
    names = (config.get(key) for key in ("ignored_layers", "modules_to_not_convert", "ignore"))
    return Selection(tuple(next((n for n in names if n), ())), "path")
