"""The rewards that come with Verst."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def exact(response: str, label: Any, metadata: dict[str, Any]) -> float:
    """1 if the response is the label, up to white space around it."""
    return float(response.strip() == str(label).strip())


def number(response: str, label: Any, metadata: dict[str, Any]) -> float:
    """1 if the last number in the response equals the label, else 0: "3 + 4 = 7" answers 7. `1,000` is a thousand."""
    found = _NUMBER.findall(response)
    return float(bool(found) and _decimal(found[-1]) == _decimal(str(label)))


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", "").strip())


def math(response: str, label: Any, metadata: dict[str, Any]) -> float:
    """1 if math-verify finds the response's final answer equal to the label (LaTeX or plain), else 0."""
    from math_verify import parse, verify

    # Its own timeouts are signals, which only the main thread can take; RewardFunction has a deadline.
    gold = parse(f"${label}$", parsing_timeout=None)
    answer = parse(response, parsing_timeout=None)
    return float(verify(gold, answer, timeout_seconds=None))


def reasoning_gym(response: str, label: Any, metadata: dict[str, Any]) -> float:
    """The score of the reasoning-gym task named by `metadata["source_dataset"]`, 0 to 1."""
    import reasoning_gym as gym

    score = gym.get_score_answer_fn(metadata["source_dataset"])
    entry = {"question": metadata.get("question", ""), "answer": label, "metadata": metadata}
    return float(score(response.strip(), entry))
