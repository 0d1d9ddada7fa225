"""The reward of programs: a Python program in the response is run on test cases, in the sandbox.

What a case expects never enters the sandbox: the program runs there, and its output or return value is compared here.
So a program cannot find the right answers, and cannot pass by ending early or by an `__eq__` of its own. A test that is
written as any other Python than `assert call == literal` must run beside the program. It has passed if a random word is
printed after it. That stops programs that end early, but not one that searches its own file for the word.
"""

from __future__ import annotations

import ast
import math
import re
import secrets
import time
from collections.abc import Collection, Iterator
from typing import Any

import msgspec

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import LabelError
from verst.runtime.hooks.limits import limited
from verst.runtime.hooks.preparation import prepared_by
from verst.runtime.hooks.score import Score
from verst.runtime.rewards.arguments import typed
from verst.runtime.rewards.final import after_thought
from verst.runtime.rewards.labels import checks_labels, decoded
from verst.runtime.sandbox import Outcome, Sandbox, SandboxError, SandboxLimits
from verst.runtime.sandbox.methods import Protection, check_names

_REQUIRED: tuple[Protection, ...] = ("network", "files")
_FENCE = "```"
_LANGUAGE = re.compile(r"[ \t]*([\w+-]*)")
_PYTHON = ("", "python", "py", "python3")


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One test: standard input and output, or a call and its value, or a statement of Python that must not raise."""

    stdin: str = ""
    program: str = ""  # runs after the response's program
    expected: Any = None  # the output, or the value of a call
    kind: str = "stdin"  # or "call", "statement"


def cases_of(label: Any, metadata: dict[str, Any]) -> list[Case]:
    """The cases of a label, as data, or as JSON in a text. Raises LabelError.

    Forms: `[{"input", "output", "testtype": "stdin" or "functional"}, …]` with the function's name in the row's
    `func_name` (LiveCodeBench), `{"inputs": […], "outputs": […], "fn_name"?}` (APPS, TACO), and
    `["assert f(1) == 2", …]` (MBPP).
    """
    data = decoded(label)
    try:
        if isinstance(data, dict):
            pairs = list(zip(data["inputs"], data["outputs"], strict=True))
            cases = [_pair(given, wanted, data.get("fn_name")) for given, wanted in pairs]
        elif isinstance(data, list):
            cases = [_case(entry, metadata) for entry in data]
        else:
            raise ValueError("it is neither a list nor an object")
    except (KeyError, TypeError, ValueError, SyntaxError) as error:
        raise LabelError(f"the label has no test cases: {type(error).__name__}: {error}") from None
    if not cases:
        raise LabelError("the label has no test cases: the list is empty")
    return cases


def _case(entry: Any, metadata: dict[str, Any]) -> Case:
    if isinstance(entry, str):
        return _statement(entry)
    if not isinstance(entry, dict):
        raise TypeError(f"a case has no input and output, but is {entry!r}")
    if entry.get("testtype", "stdin") == "stdin":
        return _pair(entry["input"], entry["output"], None)
    nested = decoded(metadata["metadata"]) if metadata.get("metadata") else {}
    name = entry.get("func_name") or metadata.get("func_name") or nested.get("func_name")
    if not name:
        raise ValueError("a functional test needs the function's name, in the row's column func_name")
    arguments = [decoded(line) for line in entry["input"].split("\n") if line.strip()]
    return _pair(arguments, decoded(entry["output"]), name)


def _pair(given: Any, wanted: Any, function: str | None) -> Case:
    if function is None:
        texts = ["\n".join(map(str, side)) if isinstance(side, list) else side for side in (given, wanted)]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"input and output must be texts, not {type(given).__name__}")
        return Case(stdin=texts[0], expected=texts[1])
    if not function.isidentifier() or not isinstance(given, list):
        raise ValueError(f"a call of {function!r} needs a list of arguments")
    return _call(
        f"(Solution() if 'Solution' in globals() else __import__('__main__')).{function}(*{given!r})", wanted
    )


def _statement(text: str) -> Case:
    """An assertion of a call's value is a call; anything else runs as it is."""
    body = ast.parse(text.strip()).body
    test = body[0].test if len(body) == 1 and isinstance(body[0], ast.Assert) else None
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        try:
            return _call(ast.unparse(test.left), ast.literal_eval(test.comparators[0]))
        except ValueError:
            pass
    return Case(program=text, kind="statement")


def _call(expression: str, expected: Any) -> Case:
    return Case(program=expression, expected=expected, kind="call")


def program_of(text: str) -> str | None:
    """The program of a response: its last block of Python after `</think>`; None if it has none."""
    blocks = [body for language, body in _blocks(after_thought(text)) if language.lower() in _PYTHON]
    return blocks[-1] if blocks else None


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """The blocks of code of a text, with their languages; in time in proportion to the text."""
    end = 0
    while (start := text.find(_FENCE, end)) >= 0:
        line = text.find("\n", start) + 1
        close = text.find(_FENCE, line) if line else -1
        if close < 0:
            return
        if found := _LANGUAGE.match(text, start + len(_FENCE), line):
            yield found[1], text[line:close]
        end = close + len(_FENCE)


def _check(
    *,
    require: Any,
    seconds: float,
    total_seconds: float,
    memory_mib: int,
    most_cases: int | None,
    **more: Any,
) -> None:
    check_names(require)
    times = 0 < seconds < math.inf and total_seconds > 0
    if not times or memory_mib < 64 or (most_cases is not None and most_cases < 1):
        raise ValueError(
            "seconds and total_seconds must be above 0, memory_mib 64 or more, and most_cases 1 or more"
        )


def _start(**arguments: Any) -> None:
    """Shows at the run's start whether this machine can protect as required."""
    Sandbox(require=arguments.get("require", _REQUIRED)).close()


@limited(lost=0.0)
@prepared_by(_start)
@typed(_check)
@checks_labels(cases_of)
def code(
    answer: Answer,
    *,
    require: Collection[str] = _REQUIRED,  # of `Protection`: the check names all of them
    seconds: float = 6.0,
    total_seconds: float = 45.0,
    memory_mib: int = 1024,
    share: bool = False,
    most_cases: int | None = None,
) -> Score:
    """1 if the Python program in the response passes all of the label's test cases, else 0. Part: `passed`, the share.

    The program is the last block of code after `</think>`. It runs in the sandbox, once for each case, and stops at the
    first that fails unless `share` is set; cases that were not run count as failed.

    Args:
        answer: the answer.
        require: what the sandbox must protect from; the run does not start on a machine that cannot.
        seconds: of the clock and of CPU time, for each case.
        total_seconds: for all cases; those left then count as failed. Keep it below `rollout.reward_timeout_s`.
        memory_mib: for each case.
        share: the value is the share of cases that passed.
        most_cases: leave out the cases after so many.
    """
    cases = cases_of(answer.label, answer.metadata)[:most_cases]
    program = program_of(answer.text)
    if program is None:
        return Score(0.0, {"passed": 0.0})
    limits = SandboxLimits(seconds=seconds, cpu_seconds=math.ceil(seconds), memory_mib=memory_mib)
    passed = 0
    with _started(limits, tuple(require)) as sandbox:
        until = time.monotonic() + total_seconds
        for case in cases:
            if time.monotonic() > until:
                break
            right = _passes(sandbox, program, case)
            passed += right
            if not right and not share:
                break
    part = passed / len(cases)
    return Score(part if share else float(passed == len(cases)), {"passed": part})


def _started(limits: SandboxLimits, require: Collection[str]) -> Sandbox:
    try:
        return Sandbox(limits, require=require)
    except SandboxError:  # such as a node that is short of processes for a moment
        return Sandbox(limits, require=require)


def _passes(sandbox: Sandbox, program: str, case: Case) -> bool:
    if case.kind == "stdin":
        return _same_text(sandbox.run(program, case.stdin), case.expected)
    word = secrets.token_hex(16)
    if case.kind == "statement":
        outcome = sandbox.run(f"{program}\n\n{case.program}\nprint({word!r})")
        return outcome.status == "ok" and outcome.stdout.rstrip("\n").rpartition("\n")[2] == word
    outcome = sandbox.run(f"{program}\n\nprint({word!r} + repr({case.program}))")
    _, found, written = outcome.stdout.rpartition(word)
    return outcome.status == "ok" and bool(found) and _same_value(written.rstrip("\n"), case.expected)


def _same_text(outcome: Outcome, expected: str) -> bool:
    """Lines are compared without white space at their ends; where they differ, words as numbers."""
    found, wanted = (text.rstrip().split("\n") for text in (outcome.stdout, expected))
    if outcome.status != "ok" or len(found) != len(wanted):
        return False
    return all(
        a.rstrip() == b.rstrip() or _same_numbers(a.split(), b.split())
        for a, b in zip(found, wanted, strict=True)
    )


def _same_numbers(found: list[str], wanted: list[str]) -> bool:
    return len(found) == len(wanted) and all(
        a == b or _close(a, b) for a, b in zip(found, wanted, strict=True)
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _close(a: str, b: str) -> bool:
    """Numbers with a decimal point or exponent may differ by rounding; integers may not."""
    first, second = _number(a), _number(b)
    if first is None or second is None or (a.lstrip("+-").isdigit() and b.lstrip("+-").isdigit()):
        return False
    return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-9)


def _same_value(written: str, expected: Any) -> bool:
    try:
        return _plain(ast.literal_eval(written)) == _plain(expected)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return False


def _plain(value: Any) -> Any:
    """JSON has no tuples: they count as lists."""
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value
