"""A recipe with an agent that cannot work is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launcher.check.lines import check_lines

AGENTS = """
from verst.runtime.rewards import scores_itself
async def solve(call): ...
def plain(call): ...
async def old(base_url, prompt): ...
@scores_itself
async def scores(call): ...
"""


ITSELF = ["rollout.agent=agents:scores", "rollout.reward=null"]


def test_an_agent_that_works_is_accepted(here):
    Path("agents.py").write_text(AGENTS)
    assert check_lines("rollout.agent=agents:solve") == []
    assert check_lines(*ITSELF) == []
    for own in ("generate: 'agents:scores'", "generate: 'agents:solve', reward: 'my_hooks:reward'"):
        plain = "chat_template: false, path: train.jsonl"
        assert check_lines(*ITSELF, f"data.eval={{{plain}, {own}}}") == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            ["rollout.agent=agents:plain"],
            "is 'agents:plain': is a plain function: an agent must be async",
        ),
        (
            ["rollout.agent=agents:old"],
            "but it is defined as `old(base_url, prompt)`: an agent takes one `AgentCall`",
        ),
        (
            ["rollout.agent=agents:solve", "rollout.generate=agents:solve"],
            "rollout.agent: is beside rollout.generate",
        ),
        (
            ["rollout.agent=agents:solve", "data.train.chat_template=false"],
            "data.train.chat_template: is false: an agent's messages need the chat template",
        ),
        (
            ["rollout.agent=agents:solve", "data.eval={path: train.jsonl, chat_template: false}"],
            "data.eval.chat_template: is false: an agent's messages need the chat template",
        ),
        (["rollout.agent=agents:solve", "rollout.reward=null"], "rollout.reward: is missing. Name a reward"),
        (
            [*ITSELF, "data.eval={path: train.jsonl, generate: 'agents:solve'}"],
            "data.eval.reward: is missing. Name a reward",
        ),
        (
            [
                *ITSELF,
                "data.eval={math: {path: train.jsonl, generate: 'verst.runtime.rollout.generate:single_turn'}}",
            ],
            "data.eval.math.reward: is missing. Name a reward",
        ),
    ],
)
def test_an_agent_that_cannot_work_is_refused(here, changes, told):
    Path("agents.py").write_text(AGENTS)
    (line,) = check_lines(*changes)
    assert told in line
