"""Runs a check that imports much in a child process: the recipe goes to its stdin, the answer is its last line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import yaml

from verst.launcher.recipe.recipe import Recipe


class ChildFailedError(Exception):
    """The child took too long or failed. The message says which."""


def ask(recipe: Recipe, what: str, within_s: float, module: str, *arguments: str) -> str:
    """The last line that `python -m MODULE ARGUMENT…` prints for a recipe. Raises ChildFailedError.

    `what` begins the message: "Megatron's parser".
    """
    command: Sequence[str] = (sys.executable, "-m", module, *arguments)
    try:
        done = subprocess.run(
            command,
            input=yaml.safe_dump(recipe.resolved()),
            capture_output=True,
            text=True,
            timeout=within_s,
        )
    except subprocess.TimeoutExpired:
        raise ChildFailedError(
            f"could not be checked: {what} took more than {within_s:.0f} s. Python may load slowly from this file "
            f"system: try again. To see why, run `{' '.join(command)} < RECIPE`"
        ) from None
    if done.returncode != 0:
        last = "\n    ".join(done.stderr.strip().splitlines()[-8:])
        raise ChildFailedError(f"could not be checked: {what} failed:\n    {last}")
    return done.stdout.strip().splitlines()[-1]
