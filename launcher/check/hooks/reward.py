"""Implements `verst check-reward`: calls a recipe's reward on rows of its prompt file, without an engine.

Each row is scored with its own label as the answer, with an empty answer, and with an answer of the user's. The calls
are made as in a run: in a process of their own, which has the recipe's deadline and bound of memory and can be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from verst.launcher.check.hooks.hooks import hook_fault, hooks_here
from verst.launcher.check.rows.rendered import rendered
from verst.launcher.recipe.faults import Fault, RecipeError, UserError
from verst.launcher.recipe.load import parse_recipe
from verst.launcher.recipe.recipe import Recipe, hook_places, is_reward, reward_parts
from verst.runtime.data.chat import with_answer
from verst.runtime.data.files import path_in_full
from verst.runtime.data.prompts import checked_row
from verst.runtime.data.records import DataError, read_records
from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import HookError
from verst.runtime.rewards.score import RewardFunction

_LABEL, _EMPTY, _GIVEN = "the label", "nothing", "--answer"


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call of the reward."""

    row: str  # "train.jsonl:17"
    answer: str  # which one it was
    text: str
    label: Any = None
    reward: float | None = None  # None: it failed
    parts: dict[str, float] = {}  # of the reward
    fault: str = ""
    seconds: float = 0.0


def check_reward(
    recipe_path: Path, overrides: list[str], rows: int, answers: list[str], as_json: bool
) -> int:
    """Prints each call. Returns the exit code: 1 if a call failed or took longer than a run allows.

    Raises RecipeError for faults of the recipe and UserError when the reward cannot be called at all.
    """
    file, recipe, faults = parse_recipe(recipe_path, overrides)
    if recipe is not None and not faults:
        rewards = {place: hook for place, hook in hook_places(recipe).items() if is_reward(place)}
        given = {place for place, part in reward_parts(recipe).items() if part.arguments}
        found = {
            place: hook_fault(dotted, None if place in given else arguments, place)
            for place, (dotted, arguments) in rewards.items()
        }
        faults = [Fault(place, fault) for place, fault in found.items() if fault is not None]
    if recipe is None or faults:
        raise RecipeError(file.name, [file.line(fault) for fault in faults])
    with hooks_here(), _prints_to_stderr():
        calls = asyncio.run(_calls(recipe, rows, answers))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(calls)).decode())
    else:
        named = " + ".join(part.function for part in reward_parts(recipe).values())
        _print(calls, named or "the reward")
    return 1 if any(call.fault for call in calls) else 0


@contextlib.contextmanager
def _prints_to_stderr() -> Iterator[None]:
    """What the reward prints is not this command's output."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


async def _calls(recipe: Recipe, rows: int, answers: list[str]) -> list[Call]:
    """Raises UserError if the rows cannot be read or the reward cannot be loaded."""
    made: list[Call] = []
    for name in recipe.data.train.by_name():
        made += await _calls_of(recipe, name, rows, answers)
    return made


async def _calls_of(recipe: Recipe, name: str, rows: int, answers: list[str]) -> list[Call]:
    """The calls for the rows of one source of prompts."""
    made: list[Call] = []
    rollout, source = recipe.rollout, recipe.data.train.by_name()[name]
    file = path_in_full(source.path)
    path = source.reward or rollout.reward
    if path is None:
        other = "group reward, which needs all answers to a prompt, or its generate function,"
        raise UserError(f"the recipe has no rollout.reward: its {other} scores answers")
    try:
        async with RewardFunction(
            path,
            timeout_s=rollout.reward_timeout_s,
            processes=1,
            memory_gib=rollout.reward_memory_gib,
        ) as reward:
            checked = [checked_row(record, source) for record in islice(read_records(file), rows)]
            shown = await asyncio.to_thread(rendered, recipe, name, len(checked), answers)
            for row, prompt, of_label in zip(checked, shown.prompts, shown.labels, strict=True):
                texts: list[tuple[str, str, list[int]]] = [(_EMPTY, "", [])]
                texts += [(_GIVEN, text, ids) for text, ids in zip(answers, shown.answers, strict=True)]
                if row.label is not None:
                    texts.insert(0, (_LABEL, str(row.label), of_label))
                for kind, text, ids in texts:
                    call = Call(row=row.where, answer=kind, text=text, label=row.label)
                    answer = Answer(
                        text=text,
                        label=row.label,
                        metadata=row.metadata,
                        prompt=prompt,
                        ids=ids,
                        messages=with_answer(row.messages, text),
                    )
                    made.append(await _called(reward, call, answer))
    except (DataError, HookError) as error:  # HookError: the reward cannot be loaded
        raise UserError(str(error)) from error
    return made


async def _called(reward: RewardFunction, call: Call, answer: Answer) -> Call:
    """The call with its reward or its fault, whose stack is logged. Raises UserError if the reward cannot be loaded."""
    place = f"{call.row}, scoring {_named(call)}"
    began = time.monotonic()
    try:
        value = await reward.score(answer, place=place)
    except HookError as error:
        if error.kind == "load":
            raise UserError(str(error)) from error
        fault = str(error).partition(f"{place}: ")[2] or str(error)
        return msgspec.structs.replace(call, fault=fault, seconds=time.monotonic() - began)
    return msgspec.structs.replace(
        call, reward=value.value, parts=value.parts, seconds=time.monotonic() - began
    )


def _print(calls: list[Call], reward: str) -> None:
    table = Table("row", "label", "answer", "reward", "ms", box=None, padding=(0, 2, 0, 0))
    for call in calls:
        shown = _named(call)
        parts = "".join(f" {name} {part:g}" for name, part in call.parts.items())
        value = Text(call.fault, style="red") if call.reward is None else Text(f"{call.reward:g}{parts}")
        place = Text(call.row.rpartition("/")[2])
        table.add_row(place, Text(_short(call.label)), Text(shown), value, f"{1000 * call.seconds:.0f}")
    Console().print(table)
    means = {
        kind: fmean(found)
        for kind in dict.fromkeys(call.answer for call in calls)
        if (found := [c.reward for c in calls if c.answer == kind and c.reward is not None])
    }
    print(", ".join(f"mean for {kind}: {value:g}" for kind, value in means.items()))
    if _LABEL in means and means[_LABEL] <= means.get(_EMPTY, float("-inf")):
        print(
            f"note: {reward} gives the label itself no more than an empty answer. That is right only if it expects "
            "more than the label: try an answer as the model would write it, with --answer",
            file=sys.stderr,
        )


def _named(call: Call) -> str:
    return repr(_short(call.text)) if call.answer == _GIVEN else call.answer


def _short(value: object) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= 32 else text[:29] + "..."
