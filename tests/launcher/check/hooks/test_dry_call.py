"""A plan calls the functions of the algorithm once: a wrong value shows before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launcher.check.lines import check_lines

CALLED = {
    "an advantage of the old shape": (
        "algorithm.advantage",
        "def f(rewards):\n    mean = sum(rewards) / len(rewards)\n    return [r - mean for r in rewards]\n",
        "called on made-up input: raised TypeError: unsupported operand type(s) for +: 'int' and 'GroupMeta'"
        " (HERE/other.py:2, in f). It gets all groups of a step: decorate a function of one group's rewards with"
        " `verst.runtime.algorithms.advantages:per_group`",
    ),
    "an advantage that returns nothing": (
        "algorithm.advantage",
        "def f(groups): ...\n",
        "called on made-up input: returned None, not a list of 2 lists, one for each group",
    ),
    "an average of whole samples": (
        "algorithm.loss_average",
        "def f(call): return [[1 / 8] * 4 for g in call.groups]\n",
        "called on made-up input: returned weights that add up to 14.75 over all trained tokens; they must add up to 1 "
        "or less, and to more than 0. A weight is that of each token, not that of the whole sample",
    ),
    "a loss that averages": (
        "algorithm.loss",
        "from verst.runtime.algorithms.tokens import TokenLoss\ndef f(b): return TokenLoss(-b.logprobs.mean())\n",
        "called on made-up input: returned a loss of shape [] for 5 tokens; it must be [5], one value for each token",
    ),
    "a loss of the old shape": (
        "algorithm.loss",
        "def f(batch): return -batch.advantages * batch.logprobs.clamp(max=batch.clip_low)\n",
        "called on made-up input: raised AttributeError: 'TokenBatch' object has no attribute 'clip_low'"
        " (HERE/other.py:1, in f). Options of the recipe are in `batch.config`; docs/hooks.md has all fields",
    ),
    "a loss with wrong metrics": (
        "algorithm.loss",
        "from verst.runtime.algorithms.tokens import TokenLoss\ndef f(b): return TokenLoss(-b.logprobs, None)\n",
        "called on made-up input: returned None as metrics, not a dict of tensors",
    ),
    "a filter of scored samples that sees one sample": (
        "algorithm.logprob_filter",
        "def f(step): return step.samples[0].logprobs > -9\n",
        "called on made-up input: returned True, not a list with an entry for each sample",
    ),
    "a filter of scored samples without a decision": (
        "algorithm.logprob_filter",
        "def f(step): return [None for s in step.samples if 'style' in s.scores and s.scores['style']]\n",
        "called on made-up input: returned None, neither True nor False nor one of them with a reason, such as "
        '(False, "too_easy"), at place 0',
    ),
    "a correction below zero": (
        "algorithm.correction",
        "def f(batch): return batch.old_logprobs\n",
        "called on made-up input: returned 5 factors that are below 0 or not finite",
    ),
}


IN_DEFAULT = ("an advantage of the old shape", "a loss that averages")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in IN_DEFAULT else [pytest.mark.long]) for case in CALLED]
)
def test_the_functions_of_the_algorithm_are_called_once(here, case):
    place, source, expected = CALLED[case]
    Path("other.py").write_text(source)
    (line,) = check_lines(f"{place}=other:f")
    assert line == f"command line: {place}: is 'other:f': {expected.replace('HERE', str(here))}"


@pytest.mark.long
def test_what_made_up_values_may_cause_is_told_and_is_no_fault(here, capfd):
    Path("other.py").write_text("def f(groups): return [[1 / (g.id - 1)] * 4 for g in groups]\n")
    assert check_lines("algorithm.advantage=other:f") == []
    told = capfd.readouterr().err
    assert (
        f"'other:f', called on made-up input: raised ZeroDivisionError: division by zero ({here}/other.py:1,"
        in told
    )
    for source in (
        "g.scores['style']",
        "g.scores.get('style')",
        "g.scores['a'] if 'a' in g.scores else None",
    ):
        Path("other.py").write_text(f"async def f(groups): return [{source} for g in groups]\n")
        assert check_lines("algorithm.advantage=other:f") == []
    Path("other.py").write_text(
        "from verst.runtime.algorithms.tokens import TokenLoss\n"
        "def f(batch): return TokenLoss(-batch.logprobs * batch.config.clip_ratio_c)\n"
    )
    assert check_lines("algorithm.loss=other:f", "algorithm.clip_ratio_c=3.0") == []
    assert "made-up" not in capfd.readouterr().err
