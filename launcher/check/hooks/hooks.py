"""Checks the functions that a recipe names: each can be imported and takes the arguments that it will get.

The module's source is read first, which is quick and knows the nearest name. Then the modules are imported, each in a
child process (`hook_import.py`): a user's module may import torch, print, exit or crash. The child also calls the
functions of the algorithm once on made-up input, and shows the labels of the prompt files to a reward that can check
them.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from verst.launcher.check.asking.said import SAID
from verst.launcher.check.hooks.bundled import bundled_hint
from verst.launcher.check.hooks.signatures import NO_REWARD, has_replaced_arguments, wrong_signature
from verst.launcher.recipe.faults import Fault, nearest
from verst.launcher.recipe.recipe import Recipe, hook_places, is_reward, reward_parts
from verst.runtime.data.config import PromptFileConfig
from verst.runtime.data.files import path_in_full

_IMPORT_DEADLINE_S = 120
# Bundled hook -> the package that it imports when it is called, the extra that installs it.
_EXTRAS = {"verst.runtime.rewards:reasoning_gym": ("reasoning_gym", "tasks")}

_SHAPING = "verst.runtime.rewards:relative_length"  # a group reward that needs another reward before it


def hook_faults(recipe: Recipe) -> Iterator[Fault]:
    """The faults of a recipe's hooks, and the first label of each prompt file that the reward cannot use."""
    sound: dict[str, tuple[str, int | None]] = {}
    keywords = {place: part.arguments for place, part in reward_parts(recipe).items() if part.arguments}
    if recipe.rollout.group_reward_arguments:
        keywords["rollout.group_reward"] = recipe.rollout.group_reward_arguments
    for place, (dotted, arguments) in hook_places(recipe).items():
        if fault := hook_fault(dotted, None if place in keywords else arguments, place):
            # Someone who writes just `gspo` looks for a bundled hook.
            yield Fault(place, fault + bundled_hint(place, dotted) if dotted.isidentifier() else fault)
        # Ours are known, and import torch.
        elif is_reward(place) or place in keywords or not dotted.startswith("verst."):
            sound[place] = dotted, arguments
    generates = _generate_functions(recipe)
    for place, missing in _must_score(recipe).items():
        if generates[place].startswith("verst."):  # none of ours scores an answer
            yield Fault(missing, NO_REWARD)
    if recipe.rollout.agent is not None:
        yield from _agent_faults(recipe)
    by_module: dict[str, list[str]] = {}
    for place, (dotted, _) in sound.items():
        by_module.setdefault(dotted.partition(":")[0], []).append(place)
    with ThreadPoolExecutor(max_workers=2) as pool:
        for faults in pool.map(lambda places: _imported(recipe, places, sound, keywords), by_module.values()):
            yield from faults


def _generate_functions(recipe: Recipe) -> dict[str, str]:
    """The generate functions of a recipe, or its agent, by their keys: of training and of evaluation sets."""
    if not recipe.algorithm.generates:
        return {}
    rollout, data = recipe.rollout, recipe.data
    first = (
        ("rollout.generate", rollout.generate) if rollout.agent is None else ("rollout.agent", rollout.agent)
    )
    sets = {data.eval_place(name): each.generate for name, each in data.eval_sets.items()}
    return dict([first]) | {f"{place}.generate": path for place, path in sets.items() if path is not None}


def _must_score(recipe: Recipe) -> dict[str, str]:
    """The generate functions whose answers no reward scores, each with the key of the reward that is missing."""
    scoring = recipe.rollout.reward, recipe.rollout.group_reward
    if any(given not in (None, _SHAPING) for given in scoring):
        return {}
    data = recipe.data
    scored = {f"{data.eval_place(name)}.generate" for name, each in data.eval_sets.items() if each.reward}
    # A teacher teaches what no reward scores. Evaluations need scores nevertheless.
    if recipe.algorithm.teacher is not None or all(each.reward for each in data.train.by_name().values()):
        unscored = [each for each in data.eval_sets.values() if each.reward is None and each.generate is None]
        scored |= set() if unscored else {"rollout.generate", "rollout.agent"}
    return {
        place: "rollout.reward"
        if place.startswith("rollout.")
        else f"{place.removesuffix('.generate')}.reward"
        for place in _generate_functions(recipe)
        if place not in scored
    }


def _agent_faults(recipe: Recipe) -> Iterator[Fault]:
    """What an agent cannot be used with."""
    usual = type(recipe.rollout).model_fields["generate"].default
    if recipe.rollout.generate != usual:
        yield Fault("rollout.agent", "is beside rollout.generate: name one of them")
    data = recipe.data
    answered = {data.eval_place(name): each for name, each in data.eval_sets.items() if each.generate is None}
    files: PromptFileConfig
    for section, files in {**data.train.sections(), **answered}.items():
        if not files.chat_template:
            yield Fault(f"{section}.chat_template", "is false: an agent's messages need the chat template")


def hook_fault(dotted: str, arguments: int | None, place: str = "") -> str | None:
    """What the source of the hook at `dotted` shows to be wrong; None if it can be called with `arguments` arguments.

    `arguments` is None for a hook that is not a function. `place` is its key in the recipe.
    """
    module, colon, name = dotted.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
        return f"is {dotted!r}, must be a dotted path like `package.module:function`"
    if fault := _missing_package(dotted):
        return fault
    try:
        origin = _find(module)
    except ImportError as error:
        return f"is {dotted!r}: {error}"
    if origin is None or "." in name:
        return None
    try:
        names, open_ended = _top_level(origin)
    except SyntaxError as error:
        return f"is {dotted!r}: syntax error at {origin}:{error.lineno}: {error.msg}"
    if name in names:
        return _arity_fault(dotted, names[name], arguments, place)
    if open_ended:
        return None
    functions = [
        known for known, node in names.items() if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return f"is {dotted!r}: {origin} defines no `{name}`.{nearest(name, functions)}"


def _missing_package(dotted: str) -> str | None:
    """The fault of a bundled hook whose extra package is not installed; None for any other hook."""
    package, extra = _EXTRAS.get(dotted, ("", ""))
    if not package or importlib.util.find_spec(package) is not None:
        return None
    return (
        f"is {dotted!r}: it needs the package {package}, which is not installed: "
        f"`scripts/environment.sh {extra}` in the checkout installs it"
    )


@contextlib.contextmanager
def hooks_here() -> Iterator[None]:
    """The current folder is on the Python path, as it is for the run's processes."""
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)


def _find(module: str) -> Path | None:
    """The module's source file, None if it has none. Raises ImportError if there is no such module."""
    with hooks_here():
        importlib.invalidate_caches()
        parts = module.split(".")
        spec: ModuleSpec | None = None
        for length in range(1, len(parts) + 1):
            package = ".".join(parts[:length])
            if spec is None or parts[0] == "verst":
                spec = importlib.util.find_spec(package)
            else:  # unlike importlib.util, this does not import the packages around the module
                spec = PathFinder.find_spec(package, spec.submodule_search_locations)
            if spec is None:
                inside = f" inside `{'.'.join(parts[: length - 1])}`" if length > 1 else ""
                where = inside or f" on the Python path or in {os.getcwd()}"
                raise ImportError(f"there is no module `{parts[length - 1]}`{where}")
    assert spec is not None
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def _top_level(source: Path) -> tuple[dict[str, ast.AST], bool]:
    """The names that a module defines at its top level, and whether it may have others."""
    names: dict[str, ast.AST] = {}
    open_ended = False
    statements = list(ast.parse(source.read_text(encoding="utf-8"), filename=str(source)).body)
    while statements:
        node = statements.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = node
            open_ended |= node.name == "__getattr__"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update({(alias.asname or alias.name).split(".")[0]: node for alias in node.names})
            open_ended |= "*" in names
        elif isinstance(node, ast.Assign):
            names.update({target.id: node for target in node.targets if isinstance(target, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node
        elif isinstance(node, ast.If | ast.Try | ast.With):
            statements += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return names, open_ended


def _arity_fault(dotted: str, node: ast.AST, arguments: int | None, place: str) -> str | None:
    """The fault of a function whose signature does not accept `arguments` positional arguments; None if it does."""
    if arguments is None or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    signature = node.args
    positional = len(signature.posonlyargs) + len(signature.args)
    required = positional - len(signature.defaults)
    keyword_only = [
        argument.arg
        for argument, default in zip(signature.kwonlyargs, signature.kw_defaults, strict=True)
        if default is None
    ]
    takes = required <= arguments and (arguments <= positional or signature.vararg) and not keyword_only
    replaced = has_replaced_arguments(place, [argument.arg for argument in signature.args])
    if node.decorator_list or (takes and not replaced):
        return None
    return f"is {dotted!r}: {wrong_signature(place, arguments, node.name, ast.unparse(signature))}"


def _imported(
    recipe: Recipe,
    places: list[str],
    hooks: dict[str, tuple[str, int | None]],
    keywords: dict[str, dict[str, Any]],
) -> list[Fault]:
    """The faults that show when the hooks at `places`, all of one module, are imported in a child process."""
    questions = [
        [
            place,
            *hooks[place],
            _label_files(recipe, place) if is_reward(place) else [],
            keywords.get(place, {}),
        ]
        for place in places
    ]
    answers, theirs = os.pipe()
    command = [sys.executable, "-P", "-m", "verst.launcher.check.hooks.hook_import", str(theirs)]
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", ""), *sys.path]))
    try:
        with os.fdopen(theirs, "wb", closefd=True) as ours, os.fdopen(answers, "rb") as lines:
            done = subprocess.run(
                command,
                input=json.dumps(
                    {
                        "algorithm": recipe.algorithm.resolved(),
                        "hooks": questions,
                        "unscored": _must_score(recipe),
                    }
                ),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=_IMPORT_DEADLINE_S,
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=[theirs],
            )
            ours.close()
            found = [json.loads(line) for line in lines]
    except subprocess.TimeoutExpired:
        dotted = hooks[places[0]][0]
        return [Fault(places[0], f"is {dotted!r}: importing it took more than {_IMPORT_DEADLINE_S} s")]
    for line in done.stderr.splitlines():
        if line.startswith(SAID):
            print(line.removeprefix(SAID), file=sys.stderr, flush=True)
    faults = []
    for place, answer in zip(places, found, strict=False):
        if answer is not None:
            file, fault = answer
            faults.append(Fault(file or place, fault if file else f"is {hooks[place][0]!r}: {fault}"))
    if len(found) < len(places):  # the child ended before it could say
        place = places[len(found)]
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        how = (
            f"killed by {signal.Signals(-done.returncode).name}"
            if done.returncode < 0
            else f"exit code {done.returncode}"
        )
        faults.append(Fault(place, f"is {hooks[place][0]!r}: importing it ended Python ({how}): {last}"))
    return faults


def _label_files(recipe: Recipe, place: str) -> list[tuple[str, str, str | None]]:
    """The prompt files whose labels the reward at `place` gets: key, path and label column."""
    data = recipe.data
    sources = data.train.sections()
    sets = {data.eval_place(name): each for name, each in data.eval_sets.items()}
    if not place.startswith("rollout.reward"):
        section = place.removesuffix(".reward")
        files: dict[str, PromptFileConfig] = {section: (sources | sets)[section]}
    else:
        files = {section: source for section, source in sources.items() if source.reward is None}
        files |= {section: each for section, each in sets.items() if each.reward is None}
    return [(f"{section}.path", path_in_full(file.path), file.label_key) for section, file in files.items()]
