"""Calls a reward on rows of a prompt file, for `verst check-reward`: `python -m verst.launcher.check.reward_calls`.

Reads the question as JSON from stdin and writes a JSON line for each call. What the reward prints goes to stderr.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import msgspec

from verst.runtime.data.config import TrainFileConfig
from verst.runtime.data.prompts import checked_row
from verst.runtime.data.records import DataError, read_records
from verst.runtime.hooks.dotted import load_function
from verst.runtime.hooks.frames import told
from verst.runtime.hooks.values import finite_number


def main() -> None:
    """Answers the question on stdin."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    question = msgspec.json.decode(sys.stdin.buffer.read())
    try:
        reward = load_function(question["reward"], "reward function")
        for call in _calls(reward, question):
            out.write(msgspec.json.encode(call) + b"\n")
    except DataError as error:
        sys.exit(f"{error}")


def _calls(reward: Callable[..., Any], question: dict[str, Any]) -> Iterator[dict[str, Any]]:
    config = TrainFileConfig.model_validate(question["file"])
    for record in islice(read_records(config.path), question["rows"]):
        row = checked_row(record, config)
        answers = [("nothing", ""), *(("--answer", text) for text in question["answers"])]
        if row.label is not None:
            answers.insert(0, ("the label", str(row.label)))
        for kind, text in answers:
            call = _call(reward, question["timeout_s"], text, row.label, row.metadata)
            yield {"row": row.where, "answer": kind, "text": text, "label": row.label, **call}


def _call(
    reward: Callable[..., Any], timeout_s: float, text: str, label: Any, metadata: dict[str, Any]
) -> dict[str, Any]:
    began = time.monotonic()
    try:
        value = reward(text, label, metadata)
        if inspect.isawaitable(value):
            value = asyncio.run(_wait(value))
    except Exception as error:  # a user's function may raise anything
        traceback.print_exc()
        return {"fault": told(error), "seconds": time.monotonic() - began}
    seconds = time.monotonic() - began
    try:
        number = finite_number(value)
    except ValueError as error:
        return {"fault": str(error), "seconds": seconds}
    limit = f"rollout.reward_timeout_s is {timeout_s:g}"
    return {
        "reward": number,
        "fault": f"took {seconds:.1f} s; {limit}" if seconds > timeout_s else "",
        "seconds": seconds,
    }


async def _wait(value: Any) -> Any:
    return await value


if __name__ == "__main__":
    main()
