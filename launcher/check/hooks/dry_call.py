"""Calls a recipe's functions once on made-up input, in the child process that imported them (`hook_import.py`).

A function that returns the wrong type, length or shape is at fault whatever it gets, and so is one that cannot handle
the type of its argument. Anything else that it raises may come from the made-up values: it is told, and is no fault.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from verst.launcher.check.asking.said import SAID
from verst.runtime.algorithms.averages import AverageCall
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.controller.batch_plan import Part
from verst.runtime.controller.logprob_filter import scored_samples
from verst.runtime.data.curriculum import CurriculumCall, SourceCurriculum, weights_of
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.happenings import StepEnd
from verst.runtime.hooks.hook import Hook
from verst.runtime.hooks.scored_step import ScoredStep
from verst.runtime.hooks.values import advantages_of, decisions_of, figures_of, token_weights_of
from verst.runtime.messages.jobs import Prompt
from verst.runtime.messages.sample import GroupMeta
from verst.runtime.messages.step_plan import SampleScore

_PLACE = "called on made-up input"


def dry_call_fault(key: str, path: str, algorithm: dict[str, Any]) -> str | None:
    """What is wrong with the function that the recipe's `key` names; None if nothing is, or if it is not called.

    `algorithm` is the recipe's section of that name.
    """
    call = _CALLS.get("curriculum" if key.endswith(".curriculum") else key)
    if call is None:
        return None
    try:
        call(path, AlgorithmConfig.model_validate(algorithm))
    except HookError as error:
        # "loss function 'm:f', called on made-up input: returned None, not a TokenLoss"
        problem = str(error).partition(f"{_PLACE}: ")[2] or str(error)
        if isinstance(error.__cause__, Exception) and not isinstance(
            error.__cause__, TypeError | AttributeError
        ):
            print(f"{SAID}{key}: {path!r}, {_PLACE}: {problem}", file=sys.stderr)
            return None
        hints = [hint for word, hint in _HINTS.items() if word in problem]
        return f"{_PLACE}: {problem}{''.join(hints)}"
    return None


# What an error of a function with an earlier signature mentions, and what to do.
_HINTS = {
    "'GroupMeta'": ". It gets all groups of a step: decorate a function of one group's rewards with "
    "`verst.runtime.algorithms.advantages:per_group`",
    "'TokenBatch' object has no": ". Options of the recipe are in `batch.config`; docs/hooks.md has all fields",
}


class _AnyScores(dict[str, list[float]]):
    """Parts of a reward by whatever name."""

    def __missing__(self, name: str) -> list[float]:
        return [0.5, 1.0, 0.0, 0.25]

    def __contains__(self, name: object) -> bool:
        return True

    def get(self, name: str, default: Any = None) -> Any:
        return self[name]


class _AnyScore(dict[str, float]):
    """The same of one sample."""

    def __missing__(self, name: str) -> float:
        return 0.5

    def __contains__(self, name: object) -> bool:
        return True

    def get(self, name: str, default: Any = None) -> Any:
        return self[name]


def _made_up_groups() -> list[GroupMeta]:
    return [
        GroupMeta(
            id=id,
            shard=0,
            lengths=[24, 31, 40, 28],
            trained_tokens=[8, 15, 24, 12],
            rewards=rewards,
            finish=["stop", "stop", "length", "stop"],
            scores=_AnyScores(),
            episodes=[0, 1, 2, 3],
            oldest_version=0,
        )
        for id, rewards in enumerate(([1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]))
    ]


def _advantage(path: str, algorithm: AlgorithmConfig) -> None:
    groups = _made_up_groups()
    hook = Hook("advantage function", path, timeout_s=60)
    asyncio.run(hook(_PLACE, tuple(groups), check=advantages_of(groups)))


def _average(path: str, algorithm: AlgorithmConfig) -> None:
    groups = _made_up_groups()
    hook = Hook("average function", path, timeout_s=60)
    asyncio.run(hook(_PLACE, AverageCall(tuple(groups), 1024), check=token_weights_of(groups)))


def _logprob_filter(path: str, algorithm: AlgorithmConfig) -> None:
    groups = _made_up_groups()
    advantages = [[1.0, -1.0, -1.0, 1.0], [0.0] * 4]
    scores = [
        SampleScore(
            group=group.id,
            index=index,
            logprobs=-0.9 * tokens,
            rollout_logprobs=-0.8 * tokens,
            difference=0.2 * tokens,
            entropy=1.1 * tokens,
            reference_logprobs=-tokens if algorithm.kl_coef else None,
            teacher_logprobs=-tokens if algorithm.teacher is not None else None,
        )
        for group in groups
        for index, tokens in enumerate(group.trained_tokens)
    ]
    found = scored_samples(1, Part("policy", groups, advantages, "token"), scores)
    samples = [dataclasses.replace(sample, scores=_AnyScore()) for sample in found]
    hook = Hook("log-probability filter", path, timeout_s=60)
    asyncio.run(hook(_PLACE, ScoredStep(step=1, samples=tuple(samples)), check=decisions_of(len(samples))))


def _loss(path: str, algorithm: AlgorithmConfig) -> None:
    from verst.launcher.check.hooks.made_up_tokens import made_up_tokens
    from verst.runtime.trainer.step.token_hooks import LossHook

    LossHook(path)(made_up_tokens(algorithm), _PLACE)


def _correction(path: str, algorithm: AlgorithmConfig) -> None:
    from verst.launcher.check.hooks.made_up_tokens import made_up_tokens
    from verst.runtime.trainer.step.token_hooks import CorrectionHook

    CorrectionHook(path)(made_up_tokens(algorithm), _PLACE)


def _kl(path: str, algorithm: AlgorithmConfig) -> None:
    from verst.launcher.check.hooks.made_up_tokens import made_up_tokens
    from verst.runtime.trainer.step.token_hooks import DivergenceHook

    tokens = made_up_tokens(algorithm)
    DivergenceHook(path)(tokens.logprobs, tokens.signals["reference_logprobs"], _PLACE)


def _curriculum(path: str, algorithm: AlgorithmConfig) -> None:
    rows = [Prompt(ids=[1, 2], text="?", label="1", metadata={}) for _ in range(3)]
    hook = Hook("curriculum", path, timeout_s=60)
    history = SourceCurriculum("", len(rows), 0).history
    call = CurriculumCall(source="", step=1, steps=algorithm.steps, rows=rows, history=history)
    asyncio.run(hook(_PLACE, call, check=weights_of(len(rows))))


def _metrics(path: str, algorithm: AlgorithmConfig) -> None:
    groups = _made_up_groups()
    line = {"kind": "step", "step": 1, "reward": 0.25, "seconds": {"step": 9.0}}
    hook = Hook("hook metrics", path, timeout_s=60)
    asyncio.run(hook(_PLACE, StepEnd(step=1, line=line, groups=groups), check=figures_of({})))


_CALLS: dict[str, Callable[[str, AlgorithmConfig], None]] = {
    "algorithm.advantage": _advantage,
    "hooks.metrics": _metrics,
    "curriculum": _curriculum,
    "algorithm.logprob_filter": _logprob_filter,
    "algorithm.loss": _loss,
    "algorithm.loss_average": _average,
    "algorithm.correction": _correction,
    "algorithm.kl": _kl,
}
