"""The types of the sample stream: a sample, a finished prompt group, and the controller's metadata of it.

A *prompt group* is one prompt with its `samples_per_prompt` responses. Groups are numbered by the dataset
cursor, so an id identifies the prompt throughout the run, across restarts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from verst.runtime.actors.codec import Buffer, decode, encode

FinishReason = Literal["stop", "length", "abort"]


class Sample(msgspec.Struct, kw_only=True, frozen=True):
    """One response to one prompt, as the engine produced it and the reward scored it.

    P prompt tokens, R response tokens, L mixture-of-experts layers.
    """

    group: int
    index: int  # its place in the group; a group has more samples than samples_per_prompt if an episode has several
    prompt_ids: np.ndarray  # int32 [P], P >= 1
    response_ids: np.ndarray  # int32 [R], R >= 1
    logprobs: np.ndarray  # float32 [R], of the sampled token under the rollout policy, nats
    loss_mask: np.ndarray  # uint8 [R], 1 where the token is trained on
    weight_versions: np.ndarray  # int32 [R], the engine's weight version for each token
    reward: float  # finite
    finish: FinishReason
    # uint8 [P+R-1, L, entry] (`sync/replay/routing.py`): the experts chosen for every token except the last,
    # whose routing the engine never computes. None for a dense model or without routing replay.
    routing: np.ndarray | None = None
    # uint8 [layers that choose, bytes] (`sync/replay/selection.py`): the positions that sparse attention
    # selected for the same tokens. None for a model that attends to all positions, or without replay.
    selected: np.ndarray | None = None
    # float32 [R] each, one value for each response token. "temperature" is what the engine divided the logits by
    # when it sampled the token; 0 for a greedy token, and for one that the policy did not sample.
    signals: dict[str, np.ndarray] = {}
    scores: dict[str, float] = {}  # the parts of the reward, by name, where the reward function tells them
    # Samples of one episode share this number; by default each sample is an episode of its own.
    episode: int | None = None
    # What the generate function adds, beside the texts. A dict of numbers under "figures" is reported with the step.
    metadata: dict[str, Any] = {}

    @property
    def figures(self) -> dict[str, float]:
        """The user's own figures of this sample, by name."""
        return self.metadata.get("figures") or {}

    @property
    def length(self) -> int:
        """The number of prompt and response tokens together."""
        return len(self.prompt_ids) + len(self.response_ids)

    def validate(self, trained: bool = True) -> None:
        """Raises ValueError naming every invariant of the fields that does not hold.

        An evaluation's answer is not `trained` on, so it may be greedy.
        """
        where = f"sample {self.index} of group {self.group}"
        tokens = len(self.response_ids)
        faults = []
        if len(self.prompt_ids) < 1 or tokens < 1:
            faults.append(
                f"has {len(self.prompt_ids)} prompt and {tokens} response tokens; needs one or more of each"
            )
        for name, dtype in _PER_TOKEN.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.ndim != 1:
                faults.append(f"{name} is {array.dtype} {list(array.shape)}, not {dtype} [tokens]")
            elif name != "prompt_ids" and len(array) != tokens:
                faults.append(f"{name} has {len(array)} entries for {tokens} response tokens")
        if not np.isfinite(self.reward):
            faults.append(f"reward is {self.reward}, not a finite number")
        if all(getattr(self, name).dtype == dtype for name, dtype in _PER_TOKEN.items()):
            faults += self._token_faults()
        faults += self._signal_faults()
        if trained and not faults:
            faults += self._temperature_faults()
        faults += self._figure_faults()
        faults += [
            f"scores[{name!r}] is {value!r}, not a finite number"
            for name, value in self.scores.items()
            if not isinstance(value, int | float) or not math.isfinite(value)
        ]
        if self.routing is not None:
            faults += self._routing_faults()
        if (selected := self.selected) is not None and (selected.dtype != np.uint8 or selected.ndim != 2):
            faults.append(f"selected is {selected.dtype} {list(selected.shape)}, not uint8 [layers, bytes]")
        if faults:
            raise ValueError(f"{where}: " + "; ".join(faults))

    def _signal_faults(self) -> list[str]:
        faults = []
        for name, signal in self.signals.items():
            if name in OWN_SIGNALS:
                faults.append(f"signals has {name!r}, which Verst itself makes: use another name")
            elif signal.dtype != np.float32 or signal.shape != self.response_ids.shape:
                faults.append(
                    f"signals[{name!r}] is {signal.dtype} {list(signal.shape)}, not float32 "
                    f"{list(self.response_ids.shape)}"
                )
            elif not np.isfinite(signal).all():
                faults.append(f"signals[{name!r}] has a value that is not finite")
        return faults

    def _temperature_faults(self) -> list[str]:
        """The trainer must compute log-probabilities at the temperature at which the engine reported them."""
        trained = np.flatnonzero(self.loss_mask)
        temperature = self.signals.get("temperature")
        if temperature is None:
            return (
                ["signals has no 'temperature', the sampling temperature of each token"]
                if len(trained)
                else []
            )
        wrong = trained[temperature[trained] <= 0]
        if not len(wrong):
            return []
        return [
            f"signals['temperature'] is {temperature[wrong[0]]} for response token {wrong[0]}, which the loss mask "
            "says to train on; greedy tokens have no policy gradient: sample them at a temperature above 0"
        ]

    def _token_faults(self) -> list[str]:
        """The faults of single values: which token, and its value."""
        wrong = [
            ("logprobs", ~np.isfinite(self.logprobs), "not a finite number"),
            ("logprobs", self.logprobs > LOGPROB_ROUNDING, "above 0, which no probability has"),
            ("loss_mask", self.loss_mask > 1, "neither 0 nor 1"),
            ("prompt_ids", self.prompt_ids < 0, "no token id"),
            ("response_ids", self.response_ids < 0, "no token id"),
            ("weight_versions", self.weight_versions < 0, "no weight version"),
        ]
        return [value_fault(name, getattr(self, name), bad, why) for name, bad, why in wrong if bad.any()]

    def _figure_faults(self) -> list[str]:
        figures = self.figures
        if not isinstance(figures, dict):
            return [f"metadata['figures'] is {type(figures).__name__}, not a dict of numbers"]
        return [
            f"metadata['figures'][{name!r}] is {value!r}, not a finite number"
            for name, value in figures.items()
            if not isinstance(value, int | float) or not np.isfinite(value)
        ]

    def _routing_faults(self) -> list[str]:
        assert self.routing is not None
        if self.routing.dtype != np.uint8 or self.routing.ndim != 3:
            return [
                f"routing is {self.routing.dtype} {list(self.routing.shape)}, not uint8 [P+R-1, L, entry]"
            ]
        if len(self.routing) != self.length - 1:
            return [f"routing covers {len(self.routing)} tokens, not {self.length - 1}"]
        return []


def value_fault(name: str, values: np.ndarray, bad: np.ndarray, why: str) -> str:
    """Words for the first value of a per-token array that is wrong. `bad` marks those that are; one must be."""
    place = int(bad.argmax())
    value = values.reshape(-1)[place]
    return f"{name} has {value} at token {place}, {why}"


# The trainer makes these for itself.
OWN_SIGNALS = frozenset(
    [
        "rollout_logprobs", "old_logprobs", "reference_logprobs", "teacher_logprobs", "policy_logprobs",
        "policy_entropy", "values", "returns", "covariance", "covariance_chosen",
    ]
)  # fmt: skip

# Engines compute log-probabilities in bfloat16 or fp32; those of near certain tokens can be rounded to above 0.
LOGPROB_ROUNDING = 1e-4

_PER_TOKEN = {
    "prompt_ids": np.dtype(np.int32),
    "response_ids": np.dtype(np.int32),
    "logprobs": np.dtype(np.float32),
    "loss_mask": np.dtype(np.uint8),
    "weight_versions": np.dtype(np.int32),
}


class Group(msgspec.Struct, kw_only=True, frozen=True):
    """A finished prompt group, which a rollout worker pushes and a store shard journals."""

    id: int
    samples: list[Sample]
    source: str = ""  # the name of the prompt's source, if the recipe has several
    row: int | None = None  # the prompt's row in it, among those that are not left out

    def validate(self) -> None:
        """Raises ValueError when a sample is malformed or belongs to another group or place."""
        if not self.samples:
            raise ValueError(f"group {self.id} has no samples")
        for place, sample in enumerate(self.samples):
            if (sample.group, sample.index) != (self.id, place):
                raise ValueError(
                    f"group {self.id}: place {place} holds sample {sample.index} of group {sample.group}"
                )
            sample.validate()

    def meta(self, shard: int) -> GroupMeta:
        """The metadata of this group for the controller, once shard `shard` has journalled it."""
        return GroupMeta(
            id=self.id,
            shard=shard,
            lengths=[s.length for s in self.samples],
            trained_tokens=[int(s.loss_mask.sum()) for s in self.samples],
            rewards=[s.reward for s in self.samples],
            finish=[s.finish for s in self.samples],
            scores=_scores(self.samples),
            episodes=[s.index if s.episode is None else s.episode for s in self.samples],
            signals=sorted(set.intersection(*(set(s.signals) for s in self.samples)) - {"temperature"}),
            oldest_version=min(int(s.weight_versions.min()) for s in self.samples),
            figures=_sums_of_figures(self.samples),
            source=self.source,
            row=self.row,
        )


class GroupMeta(msgspec.Struct, kw_only=True, frozen=True):
    """The metadata of a journalled group, without its data. Only this passes through the controller."""

    id: int
    shard: int  # the store shard that journalled it
    lengths: list[int]  # prompt + response tokens of each sample
    trained_tokens: list[int]  # tokens under each sample's loss mask
    rewards: list[float]
    finish: list[FinishReason]
    oldest_version: int  # the oldest weight version that generated any of its tokens
    figures: dict[
        str, tuple[float, int]
    ] = {}  # the user's own, by name: the sum, and how many samples have it
    # The parts of the rewards by name, one for each sample; NaN for a sample without the part.
    scores: dict[str, list[float]] = {}
    episodes: list[int] = []  # the episode of each sample
    signals: list[str] = []  # the names of the signals that all of its samples bring, besides "temperature"
    # Of a group that an earlier life of the run made: the newest weight version that this life has in common with it.
    # What the group calls by a later number were other weights. None for a group of this life.
    common_version: int | None = None
    source: str = ""  # the name of the prompt's source, if the recipe has several
    row: int | None = None  # the prompt's row in it, among those that are not left out

    @property
    def truncated(self) -> list[bool]:
        """Whether each sample ended at a limit of length."""
        return [finish == "length" for finish in self.finish]

    @property
    def first_of_episodes(self) -> list[int]:
        """The place of each episode's first sample, in order. Samples without episodes are one each."""
        numbers = self.episodes or range(len(self.rewards))
        return sorted({number: place for place, number in reversed(list(enumerate(numbers)))}.values())

    def by_episode(self) -> GroupMeta:
        """The same with one entry for each episode, in the order of the first samples.

        Rewards and scores are those of the episode, which its samples have in common; lengths and trained tokens are
        sums; it ended as its last sample did.
        """
        first = self.first_of_episodes
        if len(first) == len(self.rewards):
            return self
        parts = [[p for p, n in enumerate(self.episodes) if n == self.episodes[place]] for place in first]
        return msgspec.structs.replace(
            self,
            lengths=[sum(self.lengths[p] for p in places) for places in parts],
            trained_tokens=[sum(self.trained_tokens[p] for p in places) for places in parts],
            rewards=[self.rewards[place] for place in first],
            finish=[self.finish[places[-1]] for places in parts],
            scores={name: [values[place] for place in first] for name, values in self.scores.items()},
            episodes=[self.episodes[place] for place in first],
        )

    def for_samples(self, values: Sequence[float]) -> list[float]:
        """One value for each sample, from one for each of its episodes in the order of `by_episode`."""
        numbers = self.episodes or list(range(len(self.rewards)))
        of = dict(zip((numbers[place] for place in self.first_of_episodes), values, strict=True))
        return [of[number] for number in numbers]


def _scores(samples: list[Sample]) -> dict[str, list[float]]:
    names = sorted({name for sample in samples for name in sample.scores})
    return {name: [sample.scores.get(name, math.nan) for sample in samples] for name in names}


def _sums_of_figures(samples: list[Sample]) -> dict[str, tuple[float, int]]:
    sums: dict[str, tuple[float, int]] = {}
    for sample in samples:
        for name, value in sample.figures.items():
            total, count = sums.get(str(name), (0.0, 0))
            sums[str(name)] = total + float(value), count + 1
    return sums


def encode_group(group: Group) -> list[Buffer]:
    """Encodes a group as buffers for the wire or the journal."""
    return encode(group)


def decode_group(buffers: list[Buffer]) -> Group:
    """Decodes and validates a group. Raises ValueError if it is malformed."""
    group = decode(Group, buffers)
    group.validate()
    return group
