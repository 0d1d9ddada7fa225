"""Checks that a hook's dotted path, `pkg.module:name`, exists, if possible without importing the module.

Importing a reward function may import torch, which takes seconds. So `verst plan` reads the module's source
instead. It imports the module only if the name may come from elsewhere (`from x import *`, `__getattr__`, no
source).
"""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from verst.launcher.recipe.faults import nearest

_IMPORT_DEADLINE_S = 120
# Bundled hook -> the package that it imports when it is called, the extra that installs it.
_EXTRAS = {"verst.runtime.rewards:reasoning_gym": ("reasoning_gym", "tasks")}


def hook_fault(dotted: str, arguments: int | None) -> str | None:
    """What is wrong with the hook at `dotted`; None if it can be called with `arguments` positional arguments.

    `arguments` is None for a hook that is not a function.
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
        return _import_fault(dotted)
    try:
        names, open_ended = _top_level(origin)
    except SyntaxError as error:
        return f"is {dotted!r}: syntax error at {origin}:{error.lineno}: {error.msg}"
    if name in names:
        return _arity_fault(dotted, names[name], arguments)
    if open_ended:
        return _import_fault(dotted)
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


def _find(module: str) -> Path | None:
    """The module's source file, None if it has none. Raises ImportError if there is no such module."""
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)  # the run's processes, started with `python -m`, have it too
    try:
        importlib.invalidate_caches()
        parts = module.split(".")
        for length in range(1, len(parts) + 1):
            package = ".".join(parts[:length])
            spec = importlib.util.find_spec(package)
            if spec is None:
                inside = f" inside `{'.'.join(parts[: length - 1])}`" if length > 1 else ""
                where = inside or f" on the Python path or in {here}"
                raise ImportError(f"there is no module `{parts[length - 1]}`{where}")
    finally:
        if added:
            sys.path.remove(here)
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


def _arity_fault(dotted: str, node: ast.AST, arguments: int | None) -> str | None:
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
    if node.decorator_list or (
        required <= arguments and (arguments <= positional or signature.vararg) and not keyword_only
    ):
        return None
    given = ast.unparse(signature)
    return (
        f"is {dotted!r}: it will be called with {arguments} positional arguments, but it is defined as "
        f"`{node.name}({given})`"
    )


def _import_fault(dotted: str) -> str | None:
    """The fault of a hook that cannot be imported, tried in a child process; None if it can."""
    module, _, name = dotted.partition(":")
    program = "import importlib, operator, sys; operator.attrgetter(sys.argv[2])(importlib.import_module(sys.argv[1]))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, module, name],
            capture_output=True,
            text=True,
            timeout=_IMPORT_DEADLINE_S,
        )
    except subprocess.TimeoutExpired:
        return f"is {dotted!r}: importing it took more than {_IMPORT_DEADLINE_S} s"
    if done.returncode == 0:
        return None
    return f"is {dotted!r}: importing it failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
