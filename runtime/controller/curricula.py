"""Asks the recipe's curricula for new weights after each step, and keeps what they know across checkpoints."""

from __future__ import annotations

from collections.abc import Container, Iterable

import msgspec

from verst.runtime.data.curriculum import CurriculumCall, CurriculumState, mean_reward, weights_of
from verst.runtime.data.sources import TrainingPrompts
from verst.runtime.hooks.hook import Hook
from verst.runtime.messages.group_ids import prompt_of
from verst.runtime.messages.sample import GroupMeta

_DEADLINE_S = 60.0


class CurriculaState(msgspec.Struct, kw_only=True):
    """The part of a checkpoint that the curricula need."""

    rows: str  # which rows and which mix they are about
    sources: dict[str, CurriculumState]


class Curricula:
    """The curricula of all sources that have one. Raises HookError if one cannot be loaded."""

    def __init__(self, training: TrainingPrompts | None, rows: str = "") -> None:
        """`training` is None in a run that generates nothing. `rows` is a digest of its rows and their mix."""
        self._digest = rows
        self._sources = {} if training is None else training.curricula
        self._rows = {} if training is None else {name: training.prompts[name].rows for name in self._sources}
        self._source_of = None if training is None else training.source_of
        configs = {} if training is None else training.configs
        self._hooks = {
            name: Hook("curriculum", path, timeout_s=_DEADLINE_S)
            for name, source in configs.items()
            if (path := source.curriculum) is not None
        }
        self._rewards: dict[
            int, float | None
        ] = {}  # of groups that workers dropped, until the loop hears of the drop

    async def begin(
        self, version: int, steps: int, saved: bytes, earlier: Iterable[GroupMeta], done: Container[int] = ()
    ) -> None:
        """Begins a life of the run at this version, of `steps` in all. Raises HookError.

        `saved` is the `state` of its checkpoint, if there is one; with other rows than then, the curricula begin anew.
        `earlier` are the groups of lives before, and `done` the prompts that are trained or dropped.
        """
        self._steps = steps
        known = msgspec.msgpack.decode(saved, type=CurriculaState) if saved else None
        states = known.sources if known is not None and known.rows == self._digest else {}
        for name in self._hooks:
            if (state := states.get(name)) is not None:
                self._sources[name].restore(state)
            else:
                await self._renew(name, version)
        for meta in earlier:
            if meta.source in self._hooks and meta.row is not None and prompt_of(meta.id) not in done:
                self._sources[meta.source].adopt(prompt_of(meta.id), meta.row)

    def scored(self, group: int, reward: float | None) -> None:
        """A worker has dropped a group with this mean reward, and the loop will hear of it."""
        if self._hooks:
            self._rewards[group] = reward

    def dropped(self, group: int, *, reissued: bool) -> None:
        """A group was dropped, and unless its prompt is issued again, that is done with."""
        reward = self._rewards.pop(group, None)
        if not reissued:
            self._finished(group, reward)

    async def end_step(self, version: int, groups: Iterable[GroupMeta]) -> None:
        """A step on these groups has made `version`. Asks for new weights. Raises HookError."""
        for meta in groups:
            self._finished(meta.id, mean_reward(meta.rewards))
        for name in self._hooks:
            self._sources[name].end_step(version + 1)
            await self._renew(name, version)

    def state(self) -> bytes:
        """For a checkpoint; empty without a curriculum."""
        if not self._hooks:
            return b""
        states = {name: self._sources[name].state() for name in self._hooks}
        return msgspec.msgpack.encode(CurriculaState(rows=self._digest, sources=states))

    def _finished(self, group: int, reward: float | None) -> None:
        prompt = prompt_of(group)
        if self._source_of is None or not self._hooks:
            return
        if (source := self._sources.get(self._source_of(prompt))) is not None:
            source.finished(prompt, reward)

    async def _renew(self, name: str, version: int) -> None:
        source, rows = self._sources[name], self._rows[name]
        call = CurriculumCall(
            source=name, step=version + 1, steps=self._steps, rows=tuple(rows), history=source.history
        )
        place = f"{f'source {name}, ' if name else ''}step {version + 1}"
        source.renew(await self._hooks[name](place, call, check=weights_of(source.rows)), version + 1)
