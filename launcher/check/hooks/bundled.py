"""Names the hooks that come with Verst, for messages about a hook that a recipe names wrongly."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

# Key of a recipe -> the module to name in a recipe, and the types of a hook's first argument.
_MODULES = {
    "rollout.reward": ("verst.runtime.rewards", ["Answer"]),
    "rollout.group_reward": ("verst.runtime.rewards", ["list[Answer]"]),
    "data.train.curriculum": ("verst.runtime.data.curricula", ["CurriculumCall"]),
    "rollout.generate": ("verst.runtime.rollout.generate", ["GenerateCall"]),
    "rollout.filter": ("verst.runtime.rollout.filters", ["Group"]),
    "rollout.sample_filter": ("verst.runtime.rollout.sample_filters", ["Group"]),
    # `per_group` makes advantage functions of functions of one group's rewards.
    "algorithm.advantage": ("verst.runtime.algorithms.advantages", ["list[float]", "Sequence[GroupMeta]"]),
    "algorithm.loss": ("verst.runtime.algorithms.losses", ["TokenBatch"]),
    "algorithm.correction": ("verst.runtime.algorithms.corrections", ["TokenBatch"]),
    "algorithm.kl": ("verst.runtime.algorithms.divergences", ["Tensor"]),
}
PLACES = tuple(_MODULES)


def bundled_hooks(place: str) -> dict[str, str]:
    """The bundled hooks of the recipe's key `place`: name -> dotted path. Empty for a key that has none."""
    return {path.rpartition(":")[2]: path for path, _ in described_hooks(place)}


def described_hooks(place: str) -> list[tuple[str, str]]:
    """The bundled hooks of the recipe's key `place`: dotted path, and the first paragraph of the docstring.

    It reads the source, because importing the losses would import torch.
    """
    if place.endswith(".curriculum"):
        place = "data.train.curriculum"
    if place.endswith(".reward") or place.startswith("rollout.reward."):  # also those of sources, and parts
        place = "rollout.reward"
    if place not in _MODULES:
        return []
    module, types = _MODULES[place]
    found = []
    for node in _functions(module):
        arguments = node.args.args
        if arguments and arguments[0].annotation and ast.unparse(arguments[0].annotation) in types:
            told = (ast.get_docstring(node) or "").partition("\n\n")[0]
            found.append((f"{module}:{node.name}", " ".join(told.split())))
    return found


def _functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The public functions of a module, and those that a package takes from its own modules."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{module}."):
            names = {alias.name for alias in node.names}
            yield from (function for function in _functions(node.module or "") if function.name in names)


def bundled_hint(place: str, written: str) -> str:
    """What to say about the bundled hooks of the key `place` where a recipe has `written`; "" if there are none."""
    hooks = bundled_hooks(place)
    if written in hooks:
        return f". You may mean `{hooks[written]}`"
    return f". Bundled: {', '.join(f'`{path}`' for path in hooks.values())}" if hooks else ""
