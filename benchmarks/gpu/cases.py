"""Measures case after case on a GPU machine, as many as fit into its time, and writes the figures after each."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from one_trainer_one_engine import machine  # beside this file


def measure_cases[T](
    file: str, cases: Iterable[T], measure: Callable[[argparse.Namespace, list[str], T], dict[str, Any]]
) -> None:
    """Calls `measure(options, overrides, case)` for each case of recipes/tiny-moe.yaml, and writes `file` into `--out`.

    `overrides` are those of the command line. What `measure` returns has "wall_seconds".
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--seconds", type=float, default=500, help="begin no case after so many seconds")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    options.recipe = "tiny-moe"
    own, began, found = options.overrides, time.monotonic(), []
    options.out.mkdir(parents=True, exist_ok=True)
    for case in cases:
        if found and time.monotonic() - began + found[-1]["wall_seconds"] > options.seconds:
            break
        found.append(measure(options, own, case))
        print(json.dumps(found[-1]), flush=True)
        (options.out / file).write_text(json.dumps({"cases": found, **machine()}, indent=2) + "\n")
