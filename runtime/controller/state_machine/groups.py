"""The prompt groups of a run: the state of each, and how many more may be issued.

A group is issued to an engine, accepted (journalled), in training, and trained, in this order. Or it is dropped, and
another group takes its place. A group that is too old is dropped, too, but its prompt is issued again, as another
group (`runtime/messages/group_ids.py`), a few times at most.

Two rules bound the staleness. Let η be the bound, B the number of groups in a step, and `lag` the number of versions
that an engine's weights are behind.

1. An engine gets a prompt only while fewer than (1 + η - lag) B groups are outstanding, i.e. issued and not yet
   trained. If groups are trained in order, none is then older than η versions. (The rule of AReaL's staleness manager,
   arXiv 2505.24298, section 5.1, counted in groups.) It bounds work in advance.
2. A group whose oldest token is more than η versions behind the weights to be trained is dropped, in every mode. It
   makes the bound hold where groups finish out of order, or come from another life of the run.

A life that resumes from version V makes the versions after V anew. Groups of an earlier life bear the numbers of
versions that are gone, and are marked with V (`GroupMeta.common_version`): what is computed from a version as the
policy that is being trained must not take one for the other. Their age is counted by number all the same. Without
staleness each version is made again from the same groups, so it is the same, and nothing is marked.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

import msgspec

from verst.runtime.controller.state_machine.drops import Drop
from verst.runtime.controller.state_machine.id_set import IdSet
from verst.runtime.controller.state_machine.in_order import InOrder
from verst.runtime.messages.group_ids import group_id, prompt_of, reissue_of
from verst.runtime.messages.sample import GroupMeta


class Groups:
    """All groups of a run, by the number of their prompt.

    A call takes the time of a heap operation, however many groups are issued; `expire` looks at all accepted groups.
    """

    def __init__(
        self,
        per_step: int,
        staleness: int,
        in_order: bool,
        done: IdSet,
        *,
        reissues: Mapping[int, int] | None = None,
        max_issues: int = 3,
        max_tokens: int | None = None,
    ) -> None:
        """Begins with the prompts of earlier lives of the run: call `restore` with the groups that the store has.

        Args:
            done: prompts that were trained or dropped.
            reissues: of other prompts, how often each was issued again because its group was too old.
            max_issues: how often a prompt is issued at most.
            max_tokens: the longest sample that can be trained on; None for no limit.
        """
        self.per_step, self.staleness = per_step, staleness
        self.done = done
        self.reissues = dict(reissues or {})
        self._max_issues, self._max_tokens = max_issues, max_tokens
        self._accepted: dict[int, GroupMeta] = {}
        self._order = InOrder() if in_order else None
        self._outstanding: set[int] = set()  # issued and not yet trained, in any state
        self._requeued: set[int] = set()  # issued before, and to be issued again
        self._requeued_order: list[int] = []  # a heap of these, and of some no longer in the set
        self._next = done.below
        self._training: dict[int, GroupMeta] = {}
        self._failures: dict[int, int] = {}
        self._discardable: list[int] = []  # journalled groups that the next checkpoint makes unnecessary
        self._saving: dict[int, tuple[int, ...]] = {}  # version -> groups that its checkpoint covers

    def restore(
        self, journalled: Iterable[GroupMeta], version: int, common_versions: Mapping[int, int]
    ) -> list[Drop]:
        """Takes in the groups that the store has. Returns those that cannot be trained on.

        Some may have been trained since they were journalled. Of several groups of a prompt the last issued counts.

        version: that of the checkpoint, whose `common_versions` hold for groups of lives before the one that wrote it.
        """
        drops = []
        for meta in sorted(journalled, key=lambda meta: -meta.id):
            if not self._repeats_versions:
                common = min(version, common_versions.get(meta.id, version))
                meta = msgspec.structs.replace(meta, common_version=common)
            drops += self.accept(meta, version)
        return drops

    def common_versions(self) -> dict[int, int]:
        """The common version of each marked group that is not trained yet."""
        waiting = [*self._accepted.values(), *self._training.values()]
        return {meta.id: meta.common_version for meta in waiting if meta.common_version is not None}

    @property
    def _repeats_versions(self) -> bool:
        """Whether a life makes the versions of an earlier one again, as they were."""
        return self._order is not None and self.staleness == 0

    # --- generation ---------------------------------------------------------------------------------

    def allowance(self, lag: int) -> int:
        """How many more groups may be issued to an engine whose weights are `lag` versions behind."""
        free = (1 + self.staleness - lag) * self.per_step - len(self._outstanding)
        if lag == 0:
            # A resumed run may have more groups than the bound allows, and wait for a requeued one that precedes them.
            free = max(free, 0)
        return free + len(self._requeued)  # requeued groups are already outstanding

    def issue(self) -> int:
        """The next group to generate: of a requeued prompt if there is any, else of a new one."""
        while self._requeued_order:
            prompt = heapq.heappop(self._requeued_order)
            if prompt in self._requeued:
                self._requeued.discard(prompt)
                return self._group(prompt)
        while self._next in self.done or self._next in self._outstanding:
            self._next += 1
        self._outstanding.add(self._next)
        if self._order is not None:
            self._order.issue(self._next)
        return self._group(self._next)

    def requeue(self, ids: Iterable[int]) -> None:
        """Puts back groups that were lost with their engine."""
        for id in ids:
            if self._is_open(id):
                self._issue_again(prompt_of(id))

    def failed(self, id: int) -> int:
        """Puts back a group that could not be generated. Returns how often it has failed."""
        if not self._is_open(id):
            return 0
        self._failures[id] = self._failures.get(id, 0) + 1
        self._issue_again(prompt_of(id))
        return self._failures[id]

    def accept(self, meta: GroupMeta, version: int) -> list[Drop]:
        """A group is journalled. It may be reported more than once.

        Returns it if it is dropped, because it cannot be trained on by version `version` or later.
        """
        prompt = prompt_of(meta.id)
        if not self._is_open(meta.id):
            known = self._accepted.get(prompt) or self._training.get(prompt)
            if known is None or known.id != meta.id:
                self._discardable.append(meta.id)
            return []
        if reissue_of(meta.id):  # in another life of the run, perhaps
            self.reissues[prompt] = reissue_of(meta.id)
        self._requeued.discard(prompt)
        if (unfit := self._unfit(meta, version)) is not None:
            return [self._reject(meta, *unfit)]
        if self._order is not None:
            self._order.accept(prompt)
        self._accepted[prompt] = meta
        self._outstanding.add(prompt)
        return []

    def drop(self, id: int) -> bool:
        """A worker dropped a group. Returns False if that has no effect, because the group is no longer open."""
        if not self._is_open(id):
            return False
        self._drop_prompt(prompt_of(id))
        return True

    def _group(self, prompt: int) -> int:
        return group_id(prompt, self.reissues.get(prompt, 0))

    def _is_open(self, id: int) -> bool:
        """Whether a group may still be accepted. It is not once its prompt is issued as another group."""
        prompt = prompt_of(id)
        if prompt in self.done or prompt in self._accepted or prompt in self._training:
            return False
        return reissue_of(id) >= self.reissues.get(prompt, 0)

    def _issue_again(self, prompt: int) -> None:
        self._outstanding.add(prompt)
        self._requeued.add(prompt)
        heapq.heappush(self._requeued_order, prompt)
        if self._order is not None:
            self._order.reopen(prompt)

    def _drop_prompt(self, prompt: int) -> None:
        self._close(prompt)
        if self._order is not None:
            self._order.drop(prompt)

    def _close(self, prompt: int) -> None:
        """The prompt is trained or dropped for good."""
        self._outstanding.discard(prompt)
        self._requeued.discard(prompt)
        self.reissues.pop(prompt, None)
        self.done.add(prompt)

    # --- groups that cannot be trained on -----------------------------------------------------------

    def expire(self, version: int) -> list[Drop]:
        """Drops the accepted groups that are too old for weights of `version`."""
        old = [meta for meta in self._accepted.values() if version - meta.oldest_version > self.staleness]
        drops = []
        for meta in old:
            del self._accepted[prompt_of(meta.id)]
            drops.append(self._reject(meta, "stale", self._age(meta, version)))
        return drops

    def _unfit(self, meta: GroupMeta, version: int) -> tuple[str, str] | None:
        """Why a group cannot be trained on by version `version`: a reason and its detail. None if it can."""
        if self._max_tokens is not None and max(meta.lengths) > self._max_tokens:
            sample = meta.lengths.index(max(meta.lengths))
            return "too_long", (
                f"sample {sample} has {meta.lengths[sample]} tokens; the trainer takes {self._max_tokens} "
                "(trainer.max_tokens_per_microbatch, less padding)"
            )
        if not any(meta.trained_tokens):
            return "masked", "it has no token to train on: its loss masks are all zero"
        if version - meta.oldest_version > self.staleness:
            return "stale", self._age(meta, version)
        return None

    def _age(self, meta: GroupMeta, version: int) -> str:
        return (
            f"its oldest token is of version {meta.oldest_version}, {version - meta.oldest_version} behind; "
            f"at most {self.staleness} may be (algorithm.max_staleness)"
        )

    def _reject(self, meta: GroupMeta, reason: str, detail: str) -> Drop:
        """Drops a journalled group; if it is only too old, its prompt is issued again."""
        prompt, issues = prompt_of(meta.id), reissue_of(meta.id) + 1
        self._discardable.append(meta.id)
        again = reason == "stale" and issues < self._max_issues
        if again:
            self.reissues[prompt] = issues
            self._issue_again(prompt)
        else:
            self._drop_prompt(prompt)
            detail += f"; its prompt was issued {issues} times" if reason == "stale" else ""
        return Drop(meta.id, reason, detail, again)

    # --- training -----------------------------------------------------------------------------------

    @property
    def accepted(self) -> int:
        """The number of groups that wait to be trained on."""
        return len(self._accepted)

    def ready(self) -> bool:
        """Whether all groups of the next step are accepted."""
        return self._order.ready(self.per_step) if self._order is not None else self.accepted >= self.per_step

    def begin_step(self) -> tuple[GroupMeta, ...]:
        """Takes the groups of the next step, which must be ready: the next in order, else the oldest."""
        if self._order is not None:
            prompts = self._order.take(self.per_step)
        else:
            oldest = heapq.nsmallest(
                self.per_step, ((meta.oldest_version, prompt) for prompt, meta in self._accepted.items())
            )
            prompts = [prompt for _, prompt in oldest]
        self._training = {prompt: self._accepted.pop(prompt) for prompt in prompts}
        return tuple(self._training.values())

    def end_step(self) -> None:
        """The step has ended: its groups are trained."""
        training, self._training = self._training, {}
        for prompt, meta in training.items():
            self._close(prompt)
            self._discardable.append(meta.id)

    # --- checkpoints --------------------------------------------------------------------------------

    def begin_save(self, version: int) -> None:
        """A checkpoint begins. It covers all groups that are trained or dropped so far."""
        self._saving[version] = tuple(self._discardable)
        self._discardable = []

    def end_save(self, version: int) -> tuple[int, ...]:
        """The checkpoint is complete. Returns the groups that no longer need to be journalled."""
        return self._saving.pop(version, ())
