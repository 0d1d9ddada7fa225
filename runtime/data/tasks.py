"""Makes the data of the bundled recipes: training problems and held-out problems, with no problem in both.

Each function writes `train.jsonl` and `eval.jsonl` into a folder, and for the toy task what stages train on. The same
arguments always give the same bytes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from verst.runtime.messages.exact_numbers import kept


def addition(folder: Path | str, largest: int = 20, held_out: int = 100, seed: int = 0) -> Path:
    """Writes problems "What is a + b? Answer with only the number." for a and b from 0 to `largest`.

    a + b and b + a are one problem: both are trained on, or both are held out. `eval.jsonl` has about `held_out`
    rows.
    """
    pairs = [(a, b) for a in range(largest + 1) for b in range(a, largest + 1)]
    random.Random(seed).shuffle(pairs)
    rows: dict[str, list[dict[str, Any]]] = {"eval": [], "train": []}
    for a, b in pairs:
        split = rows["eval" if len(rows["eval"]) < held_out else "train"]
        for x, y in sorted({(a, b), (b, a)}):
            question = f"What is {x} + {y}? Answer with only the number."
            split.append({"prompt": question, "label": str(x + y)})
    return _write(folder, rows)


def from_reasoning_gym(
    folder: Path | str, name: str, train: int = 2000, held_out: int = 100, seed: int = 0, **settings: Any
) -> Path:
    """Writes problems of the reasoning-gym task `name`, with the task's own `settings`.

    The reward `reasoning_gym` scores them. Fractions and integers of more than 64 bits are kept as text, from which
    the reward makes them again. Raises ValueError if no problem is left to train on, or if one holds other values
    that a file cannot.
    """
    import reasoning_gym as gym

    rows: dict[str, list[dict[str, Any]]] = {"eval": [], "train": []}
    seen: set[str] = set()
    # Small tasks repeat their questions, so draw more than needed and keep each question once.
    for entry in gym.create_dataset(name, size=4 * (train + held_out), seed=seed, **settings):
        question = entry["question"]
        if question in seen:
            continue
        seen.add(question)
        split = rows["eval" if len(rows["eval"]) < held_out else "train"]
        if len(split) == train and split is rows["train"]:
            break
        metadata = kept(entry["metadata"], f"{name}: metadata") | {"question": question}
        label = kept(entry["answer"], f"{name}: answer")
        split.append({"prompt": question, "label": label, "metadata": metadata})
    if len(rows["train"]) < 1:
        raise ValueError(
            f"reasoning-gym's {name} has only {len(seen)} different problems with these settings, and all are held out"
        )
    return _write(folder, rows)


def reversal(
    folder: Path | str, digits: int = 5, train: int = 4000, held_out: int = 200, seed: int = 0
) -> Path:
    """Writes the toy task of the tiny models: the answer to "reverse 40213=" is "31204".

    The reward `exact` scores them. The demonstrations solve the training problems. `preferences.jsonl` and
    `eval_preferences.jsonl` have for each problem the right answer and one of random digits. Raises ValueError if there
    are too few strings of `digits` digits.
    """
    if train + held_out > 10**digits:
        raise ValueError(
            f"there are only {10**digits} strings of {digits} digits, but {train + held_out} problems are needed"
        )
    problems = random.Random(seed).sample(range(10**digits), train + held_out)
    rows = []
    for problem in problems:
        text = f"{problem:0{digits}d}"
        rows.append({"prompt": f"reverse {text}=", "label": text[::-1]})
    held, trained = rows[:held_out], rows[held_out:]
    shown = [{"prompt": row["prompt"], "response": row["label"]} for row in trained]
    wrong = random.Random(f"{seed}/wrong")
    pairs = [
        [
            {"prompt": row["prompt"], "chosen": row["label"], "rejected": _wrong(row["label"], wrong)}
            for row in some
        ]
        for some in (trained, held)
    ]
    files = {"eval": held, "train": trained, "demonstrations": shown}
    return _write(folder, {**files, "preferences": pairs[0], "eval_preferences": pairs[1]})


def _wrong(digits: str, choice: random.Random) -> str:
    """Other digits at random, at times one more or one less."""
    count = len(digits) + choice.choice([0, 0, 0, -1, 1])
    while (found := "".join(str(choice.randrange(10)) for _ in range(count))) == digits:
        pass
    return found


def _write(folder: Path | str, files: dict[str, list[dict[str, Any]]]) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text(_lines(rows))
    return folder


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
