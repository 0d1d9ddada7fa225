"""Which layers are quantised: the engine's rule, read from config.json's `quantization_config` or made for one.

An engine quantises all linear layers but those that `ignore` (`modules_to_not_convert`) names; embeddings,
norms, routers and the head it never does. Since it fuses query, key and value, gate and up, and all experts of a
layer, these go together.

`ignore` is read as SGLang reads it. Style "path" (FP8, MXFP8, ModelOpt): a name matches itself, what is below it
and any run of whole path components (`mlp.gate` is not in `mlp.gate_up_proj`); `*` stands for anything. Style
"suffix" (compressed-tensors): a name matches itself and as the end of a path. `re:` before a regular expression
that matches from the start works in both.
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
# What the engine holds as one matrix.
_FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
    **dict.fromkeys(("w1", "w3"), "w13"),
    **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa"), "fused_qkv_a_proj_with_mqa"),
}
_EXPERTS = re.compile(r"(.*\.experts)\.\d+\.")


def fused_group(name: str) -> str:
    """The name of the matrix that the engine puts this weight into; its own when it stands alone."""
    module, _, leaf = name.removesuffix(".weight").rpartition(".")
    return f"{module}.{_FUSED[leaf]}.weight" if leaf in _FUSED else name


def matches(pattern: str, module: str, style: Style = "path") -> bool:
    """Whether an entry of `ignore` names a module."""
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
    """The rule for one model. `experts_only`: nothing but routed experts."""

    ignore: tuple[str, ...] = ()
    style: Style = "path"
    experts_only: bool = False

    def takes(self, name: str, shape: Sequence[int]) -> bool:
        """Whether the tensor is quantised. Raises ValueError for experts that are fused into one tensor."""
        module = name.removesuffix(".weight")
        leaf = module.rpartition(".")[2]
        if len(shape) == 3 and "experts" in module:
            raise ValueError(f"{name} {tuple(shape)} holds all experts; formats are of one tensor per expert")
        if not name.endswith(".weight") or len(shape) != 2 or leaf in _NEVER or "norm" in leaf:
            return False
        if self.experts_only and not _EXPERTS.match(name):
            return False
        fused = fused_group(name).removesuffix(".weight")
        return not any(matches(p, m, self.style) for p in self.ignore for m in {module, fused})


def chosen(shapes: Mapping[str, Sequence[int]], selection: Selection) -> frozenset[str]:
    """The tensors of a model that are quantised.

    Raises ValueError naming each matrix of the engine that would be quantised in part.
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
        raise ValueError(f"the engine fuses what would be quantised in part; ignore all or none:\n  {lines}")
    return taken


def _engine_matrix(name: str) -> str:
    experts = _EXPERTS.match(name)
    return experts[1] if experts else fused_group(name)


def ignored(shapes: Mapping[str, Sequence[int]], taken: Iterable[str], style: Style) -> list[str]:
    """The `ignore` list that tells an engine which linear layers are not among `taken`, experts as one entry."""
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
    """The rule that a `quantization_config` states."""
    method = config.get("quant_method")
    if method == "compressed-tensors":
        return Selection(tuple(config.get("ignore") or ()), "suffix")
    names = (config.get(key) for key in ("ignored_layers", "modules_to_not_convert", "ignore"))
    return Selection(tuple(next((n for n in names if n), ())), "path")
