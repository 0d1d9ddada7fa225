"""Checks of a recipe that import torch, each in a process of its own: Megatron's and SGLang's own parsers.

Importing either takes seconds and changes the process for good (argument parsers that print and exit,
environment variables), so both run beside each other in children: `python -m verst.launcher.check.parsers
megatron`. The recipe goes in as YAML on stdin, faults come back as the last line of stdout.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import msgspec
import yaml

from verst.launcher.plan.model_source import ModelMissingError, model_description, quantisation
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe

_DEADLINE_S = 300.0
# Where in the recipe each of them looks.
_PLACES = {"megatron": "trainer.megatron", "sglang": "rollout.sglang", "format": "rollout.model_path"}


def argument_faults(recipe: Recipe) -> list[Fault]:
    """Faults of `trainer.megatron` and `rollout.sglang`, as their own parsers see them, and of the engines' format."""
    parsers = ["megatron", "sglang", *(["format"] if _is_quantised(recipe) else [])]
    with ThreadPoolExecutor(max_workers=2) as pool:
        return [
            fault
            for faults in pool.map(lambda parser: parser_faults(parser, recipe), parsers)
            for fault in faults
        ]


def parser_faults(parser: str, recipe: Recipe) -> list[Fault]:
    """What one of the parsers, "megatron", "sglang" or "format", has to say."""
    command = [sys.executable, "-m", "verst.launcher.check.parsers", parser]
    place = _PLACES[parser]
    try:
        done = subprocess.run(
            command,
            input=yaml.safe_dump(recipe.resolved()),
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
        )
    except subprocess.TimeoutExpired:
        return [
            Fault(
                place, f"{parser}'s own parser took more than {_DEADLINE_S:.0f} s; run `{' '.join(command)}`"
            )
        ]
    if done.returncode != 0:
        last = "\n    ".join(done.stderr.strip().splitlines()[-8:])
        return [Fault(place, f"could not be checked: {parser}'s own parser failed:\n    {last}")]
    return msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=list[Fault])


def _is_quantised(recipe: Recipe) -> bool:
    try:
        return bool(quantisation(model_description(recipe.rollout.model_path or recipe.model.path)))
    except ModelMissingError:
        return False
