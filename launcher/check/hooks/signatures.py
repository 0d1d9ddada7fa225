"""Whether a hook takes what it will be called with, and what to change if it does not."""

from __future__ import annotations

from collections.abc import Sequence

NO_REWARD = (
    "is missing. Name a reward, a `rollout.group_reward`, or a generate function that gives each answer its "
    "`Response.score` and is marked with `scores_itself` (from verst.runtime.rewards)"
)
NOT_ASYNC = "is a plain function: an agent must be async, because the policy answers it in the same process"
# Last part of a key of the recipe -> what its function takes.
_TAKES = {
    "reward": (
        "a reward takes one `Answer` (from verst.runtime.rewards). Write `def reward(answer):` and use `answer.text`, "
        "`answer.label` and `answer.metadata`"
    ),
    "group_reward": (
        "a group reward takes the list of all answers to a prompt. Write `def group_reward(answers):` and return a "
        "list of one number for each"
    ),
    "generate": (
        "a generate function takes one `GenerateCall` (from verst.runtime.rollout.generate). Write "
        "`async def generate(call):` and use `Conversation(call)`, `call.prompt`, `call.sampling` and `call.seed`"
    ),
    "agent": (
        "an agent takes one `AgentCall` (from verst.runtime.rollout.chat_server.agent). Write `async def agent(call):` "
        "and use `call.base_url`, `call.api_key` and `call.messages`"
    ),
}
# What the arguments were called that `Answer` and `GenerateCall` have replaced.
_REPLACED = {"reward": {"label", "metadata"}, "generate": {"prompt", "sampling"}}


def wrong_signature(place: str, arguments: int, name: str, signature: str) -> str:
    """The fault of a function that cannot be called with so many positional arguments. `signature` is without `()`."""
    many = "argument" if arguments == 1 else "arguments"
    key = _last(place)
    hint = f": {_TAKES[key]}" if key in _TAKES else ""
    return f"it will be called with {arguments} positional {many}, but it is defined as `{name}({signature})`{hint}"


def has_replaced_arguments(place: str, names: Sequence[str]) -> bool:
    """Whether a function has the arguments of an earlier version, though it could be called without some of them."""
    replaced = _REPLACED.get(_last(place))
    return replaced is not None and replaced <= set(names)


def _last(place: str) -> str:
    """The last key of a place; those of a reward's parts are rewards."""
    return "reward" if place.startswith("rollout.reward.") else place.rpartition(".")[2]
