"""The reward functions that come with Verst."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def exact(response: str, label: Any, metadata: dict[str, Any]) -> float:
    """1 if the response equals the label, apart from white space around them, else 0."""
    return float(response.strip() == str(label).strip())


def number(response: str, label: Any, metadata: dict[str, Any]) -> float:
    """1 if the last number in the response equals the label, else 0. "3 + 4 = 7" gives 7; `1,000` is a thousand."""
    found = _NUMBER.findall(response)
    return float(bool(found) and _decimal(found[-1]) == _decimal(str(label)))


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", "").strip())


def math(response: str, label: Any, metadata: dict[str, Any]) -> float:
    """1 if the response's final answer equals the label (LaTeX or plain) according to math-verify, else 0."""
    from math_verify import parse, verify

    # math-verify's own timeouts use signals, which only work in the main thread. RewardFunction has a deadline.
    gold = parse(f"${label}$", parsing_timeout=None)
    answer = parse(response, parsing_timeout=None)
    return float(verify(gold, answer, timeout_seconds=None))


def reasoning_gym(response: str, label: Any, metadata: dict[str, Any]) -> float:
    """The score, 0 to 1, that the reasoning-gym task `metadata["source_dataset"]` gives the response."""
    import reasoning_gym as gym

    score = gym.get_score_answer_fn(metadata["source_dataset"])
    entry = {"question": metadata.get("question", ""), "answer": label, "metadata": metadata}
    return float(score(response.strip(), entry))
