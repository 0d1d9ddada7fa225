"""Runs the checks that import torch, each in a child process: Megatron's and SGLang's own parsers.

Importing either package takes seconds and changes the process for good (their parsers print and exit, and
they set environment variables). So they run side by side in child processes:
`python -m verst.launcher.check.model.parsers megatron`. A child gets the recipe as YAML on stdin and returns its
faults as JSON in the last line of stdout. The answers are kept for the next check (`kept_answers.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from verst.launcher.check.asking.child import ChildFailedError, ask
from verst.launcher.check.asking.kept_answers import keep, parser_question, recall
from verst.launcher.plan.model_source import ModelMissingError, model_description, quantisation
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe

_DEADLINE_S = 300.0
_NAMES = {
    "megatron": "Megatron's own parser",
    "sglang": "SGLang's own parser",
    "format": "the engines' weight format",
}
# The key that each parser checks.
_PLACES = {"megatron": "trainer.megatron", "sglang": "rollout.sglang", "format": "rollout.model_path"}


def start_parsers(recipe: Recipe) -> Callable[[], list[Fault]]:
    """Starts the parsers side by side, where their answers are not kept. Returns a function that waits for all faults.

    They find the faults of Megatron's and SGLang's arguments and those of the engines' format. Without engines, or
    without arguments for SGLang, there is nothing to ask it.
    """
    parsers = parsers_for(recipe)
    questions = {parser: parser_question(parser, recipe) for parser in parsers}
    kept = {parser: name and recall(name, list[Fault]) for parser, name in questions.items()}
    unknown = [parser for parser in parsers if kept[parser] is None]
    if unknown:
        # To stderr: `verst plan --json` prints to stdout.
        whose = " and ".join(_NAMES[parser] for parser in unknown)
        print(f"checking with {whose}, which takes some seconds …", file=sys.stderr, flush=True)
    pool = ThreadPoolExecutor(max_workers=len(parsers))
    asked = {parser: pool.submit(_ask, parser, recipe, questions[parser]) for parser in unknown}
    pool.shutdown(wait=False)

    def wait() -> list[Fault]:
        answers = {**kept, **{parser: answer.result() for parser, answer in asked.items()}}
        return [fault for parser in parsers for fault in answers[parser] or []]

    return wait


def parsers_for(recipe: Recipe) -> list[str]:
    """The parsers that have something to say of this recipe."""
    parsers = ["megatron"]
    if recipe.starts_engines:
        parsers += ["sglang"] if recipe.rollout.sglang else []
        parsers += ["format"] if _engines_are_quantised(recipe) else []
    return parsers


def parser_faults(parser: str, recipe: Recipe) -> list[Fault]:
    """The faults that one parser finds: "megatron", "sglang" or "format"."""
    name = parser_question(parser, recipe)
    kept = recall(name, list[Fault]) if name else None
    return _ask(parser, recipe, name) if kept is None else kept


def _ask(parser: str, recipe: Recipe, name: str | None) -> list[Fault]:
    """Asks a parser in a child process, and keeps its answer under `name`."""
    try:
        answer = ask(recipe, f"{parser}'s parser", _DEADLINE_S, "verst.launcher.check.model.parsers", parser)
    except ChildFailedError as error:
        return [Fault(_PLACES[parser], str(error))]
    faults = msgspec.json.decode(answer, type=list[Fault])
    if name is not None:
        keep(name, faults)
    return faults


def _engines_are_quantised(recipe: Recipe) -> bool:
    if recipe.rollout.model_path is None:
        return False  # they serve model.path, which may not be quantised: Megatron's check refuses it
    try:
        return bool(quantisation(model_description(recipe.rollout.model_path)))
    except ModelMissingError:
        return False
