"""Implements `verst check-reward`: calls a recipe's reward on rows of its prompt file, without an engine.

Each row is scored with its own label as the answer, with an empty answer, and with an answer of the user's. The calls
are made in a child process (`reward_calls.py`), which the user's code may crash, hang or fill with imports.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from verst.launcher.check.hooks import hook_fault
from verst.launcher.recipe.faults import Fault, RecipeError, UserError
from verst.launcher.recipe.load import parse_recipe

_START_S = 120.0  # to import the reward
_LABEL, _EMPTY, _GIVEN = "the label", "nothing", "--answer"


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call of the reward."""

    row: str  # "train.jsonl:17"
    answer: str  # which one it was
    text: str
    label: Any = None
    reward: float | None = None  # None: it failed
    fault: str = ""
    seconds: float = 0.0


def check_reward(
    recipe_path: Path, overrides: list[str], rows: int, answers: list[str], as_json: bool
) -> int:
    """Prints each call. Returns the exit code: 1 if a call failed or took longer than a run allows.

    Raises RecipeError for faults of the recipe and UserError when the reward cannot be called at all.
    """
    file, recipe, faults = parse_recipe(recipe_path, overrides)
    if recipe is not None and not faults and (fault := hook_fault(recipe.rollout.reward, 3)):
        faults = [Fault("rollout.reward", fault)]
    if recipe is None or faults:
        raise RecipeError(file.name, [file.line(fault) for fault in faults])
    question = {
        "reward": recipe.rollout.reward,
        "file": recipe.data.train.model_dump(mode="json"),
        "rows": rows,
        "timeout_s": recipe.rollout.reward_timeout_s,
        "answers": answers,
    }
    calls = _ask(question, _START_S + recipe.rollout.reward_timeout_s * rows * (2 + len(answers)))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(calls)).decode())
    else:
        _print(calls, recipe.rollout.reward)
    return 1 if any(call.fault for call in calls) else 0


def _ask(question: dict[str, Any], within_s: float) -> list[Call]:
    command = [sys.executable, "-m", "verst.launcher.check.reward_calls"]
    try:
        done = subprocess.run(
            command,
            input=msgspec.json.encode(question),
            stdout=subprocess.PIPE,
            timeout=within_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        calls = _read(error.stdout or b"")
        last = f" after {calls[-1].row}" if calls else ""
        raise UserError(f"{question['reward']} gave no answer within {within_s:.0f} s{last}") from error
    calls = _read(done.stdout)
    if done.returncode == 0:
        return calls
    last = (
        f"; the last call that came back was that of {calls[-1].row}, answer {calls[-1].answer}"
        if calls
        else ""
    )
    raise UserError(f"{question['reward']} ended its process (exit code {done.returncode}){last}")


def _read(output: bytes) -> list[Call]:
    return [msgspec.json.decode(line, type=Call) for line in output.split(b"\n")[:-1]]


def _print(calls: list[Call], reward: str) -> None:
    table = Table("row", "label", "answer", "reward", "ms", box=None, padding=(0, 2, 0, 0))
    for call in calls:
        shown = call.answer if call.answer != _GIVEN else repr(call.text)
        value = Text(call.fault, style="red") if call.reward is None else Text(f"{call.reward:g}")
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


def _short(value: object) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= 32 else text[:29] + "..."
