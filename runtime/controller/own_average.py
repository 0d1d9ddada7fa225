"""Weighs the tokens of a step's updates with a function of the recipe's own (`algorithm.loss_average`)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from verst.runtime.algorithms.averages import AverageCall
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.controller.mini_batches import dealt
from verst.runtime.hooks.hook import Hook
from verst.runtime.hooks.values import token_weights_of
from verst.runtime.messages.sample import GroupMeta

_DEADLINE_S = 60.0  # for the weights of one update


class OwnAverage:
    """The recipe's own average. Raises HookError if it cannot be loaded."""

    def __init__(self, path: str, mini_batches: int) -> None:
        self._hook = Hook("average function", path, timeout_s=_DEADLINE_S)
        self._mini_batches = mini_batches

    @classmethod
    def of(cls, algorithm: AlgorithmConfig) -> OwnAverage | None:
        """The average of a recipe; None if it names one of ours."""
        path = algorithm.own_average
        return None if path is None else cls(path, algorithm.mini_batches)

    async def weights(self, step: int, groups: Sequence[GroupMeta], longest: int) -> list[list[float]]:
        """The weight of each trained token of each sample, [group][sample].

        The function is called once for each mini-batch, and sees its groups alone: each is an update of its own. One
        without a trained token has no update, and its weights are 0. Raises HookError as `token_weights_of` says.
        """
        found = {group.id: [0.0] * len(group.rewards) for group in groups}
        place = dealt(groups, self._mini_batches)
        for number in range(self._mini_batches):
            share = [group for group in groups if place[group.id] == number]
            if not any(n for group in share for n in group.trained_tokens):
                continue
            # A function that changes what it gets must not change what is trained.
            copies = msgspec.msgpack.decode(msgspec.msgpack.encode(share), type=tuple[GroupMeta, ...])
            of = f"step {step}" + (f", mini-batch {number + 1}" if self._mini_batches > 1 else "")
            weights = await self._hook(of, AverageCall(copies, longest), check=token_weights_of(share))
            found |= {group.id: row for group, row in zip(share, weights, strict=True)}
        return [found[group.id] for group in groups]
