"""A sample may not bring a signal that the ranks make themselves: it would be overwritten silently."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from verst.runtime.messages.sample import OWN_SIGNALS

STEP = Path(__file__).parents[4] / "runtime/trainer/step"


def test_every_signal_that_the_ranks_make_is_verst_own() -> None:
    made, read = set(), set()
    for path in STEP.glob("*.py"):
        tree = ast.parse(path.read_text())
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if getattr(call.func, "attr", "") == "with_signal" and isinstance(call.args[0], ast.Constant):
                made.add(call.args[0].value)
        read |= set(re.findall(r'signals\["(\w+)"\]', path.read_text()))
        scores = re.search(r"POLICY_SCORES = \((.*)\)", path.read_text())
        made |= set(re.findall(r"\w+", scores[1])) if scores else set()
    assert {"old_logprobs", "returns", "covariance_chosen", "policy_entropy"} <= made
    assert made <= OWN_SIGNALS
    assert read - {"temperature"} <= OWN_SIGNALS
