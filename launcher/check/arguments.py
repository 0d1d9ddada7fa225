"""Runs the checks that import torch, each in a child process: Megatron's and SGLang's own parsers.

Importing either package takes seconds and changes the process for good (their parsers print and exit, and
they set environment variables). So they run in parallel in child processes:
`python -m verst.launcher.check.parsers megatron`. A child gets the recipe as YAML on stdin and returns its
faults as JSON in the last line of stdout.
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
# The key that each parser checks.
_PLACES = {"megatron": "trainer.megatron", "sglang": "rollout.sglang", "format": "rollout.model_path"}


def argument_faults(recipe: Recipe) -> list[Fault]:
    """The faults that Megatron's and SGLang's parsers find, and those of the engines' format."""
    parsers = ["megatron", "sglang", *(["format"] if _engines_are_quantised(recipe) else [])]
    with ThreadPoolExecutor(max_workers=2) as pool:
        return [
            fault
            for faults in pool.map(lambda parser: parser_faults(parser, recipe), parsers)
            for fault in faults
        ]


def parser_faults(parser: str, recipe: Recipe) -> list[Fault]:
    """The faults that one parser finds: "megatron", "sglang" or "format"."""
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
                place,
                f"could not be checked: {parser}'s parser took more than {_DEADLINE_S:.0f} s. Python "
                f"may load slowly from this file system: try again. To see why, run `{' '.join(command)} < RECIPE`",
            )
        ]
    if done.returncode != 0:
        last = "\n    ".join(done.stderr.strip().splitlines()[-8:])
        return [Fault(place, f"could not be checked: {parser}'s parser failed:\n    {last}")]
    return msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=list[Fault])


def _engines_are_quantised(recipe: Recipe) -> bool:
    if recipe.rollout.model_path is None:
        return False  # they serve model.path, which may not be quantised: Megatron's check refuses it
    try:
        return bool(quantisation(model_description(recipe.rollout.model_path)))
    except ModelMissingError:
        return False
