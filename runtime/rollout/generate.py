"""Turns a prompt into a response: the default generate function, and the parts for writing your own.

The recipe names a generate function by its dotted path (`rollout.generate`):

```python
async def my_generate(call: GenerateCall) -> Response:
    conversation = Conversation(call)
    turn = await conversation.generate()
    # The model sees these tokens, but is not trained on them.
    conversation.add(call.tokenizer.encode(tool(call.tokenizer.decode(turn.ids)), add_special_tokens=False))
    await conversation.generate()
    return conversation.response()
```
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from verst.runtime.hooks.score import Score
from verst.runtime.messages.jobs import Prompt
from verst.runtime.messages.sample import FinishReason, Sample
from verst.runtime.rollout.config import SamplingConfig
from verst.runtime.rollout.engine.engine import Engine, Generation


@dataclass(frozen=True, kw_only=True)
class GenerateCall:
    """What a generate function gets: make one answer to `prompt`."""

    engine: Engine  # the worker's own; a `Conversation` calls it
    prompt: Prompt
    sampling: SamplingConfig  # of training or of the evaluation
    seed: int | None  # of this answer's draws; the same for all its turns, whose draws differ by position
    tokenizer: Any  # the model's, of transformers
    evaluation: bool = False
    group: int = 0  # the prompt group, or the row of the held-out file
    index: int = 0  # which of the group's answers
    set: str = ""  # of an evaluation: the name of its set
    # In tokens; None: no limit. A `Conversation` keeps to them.
    longest_sample: int | None = None  # that the trainer and the engine can take, prompt included
    longest_input: int | None = None  # of one turn, that the engine takes


class Response(msgspec.Struct, kw_only=True):
    """Everything after the prompt: R tokens. The policy sampled those whose loss mask is 1."""

    ids: np.ndarray  # int32 [R]
    logprobs: np.ndarray  # float32 [R], 0 where the loss mask is 0
    loss_mask: np.ndarray  # uint8 [R]
    weight_versions: np.ndarray  # int32 [R]
    finish: FinishReason  # why the last turn ended; "abort" if any turn was aborted
    routing: np.ndarray | None  # uint8 [P+R-1, MoE layers, entry]
    selected: np.ndarray | None = None  # uint8 [layers, bytes of P+R-1 tokens] (`sync/replay/selection.py`)
    # float32 [R] each; "temperature" is needed (`Sample.signals`)
    signals: dict[str, np.ndarray] = {}
    untrainable: str = ""  # why the response cannot be trained on; empty if it can
    metadata: dict[str, Any] = {}
    turns: int = 1  # how often the policy was asked
    messages: list[dict[str, Any]] = []  # the chat, prompt included, in OpenAI's form; [] if it is not known
    prompt_ids: list[int] | None = None  # the prompt's tokens; None: those of the row's prompt
    score: float | Score | None = None  # of the whole episode; the reward is then not called

    def sample(
        self,
        prompt_ids: list[int],
        *,
        group: int,
        index: int,
        reward: float,
        metadata: dict[str, Any],
        trained: bool = True,
    ) -> Sample:
        """Makes the scored sample; an evaluation's is not `trained` on. `prompt_ids` are those of the row's prompt.

        Raises ValueError if the response has no tokens, or cannot be trained on.
        """
        if trained and self.untrainable:
            raise ValueError(f"sample {index} of group {group}: {self.untrainable}")
        sample = Sample(
            group=group,
            index=index,
            prompt_ids=np.array(prompt_ids if self.prompt_ids is None else self.prompt_ids, dtype=np.int32),
            response_ids=self.ids,
            logprobs=self.logprobs,
            loss_mask=self.loss_mask,
            weight_versions=self.weight_versions,
            reward=reward,
            finish=self.finish,
            routing=self.routing,
            selected=self.selected,
            signals=self.signals,
            metadata=metadata | self.metadata,
        )
        sample.validate(trained)
        return sample


class Conversation:
    """A sequence in which turns of the policy alternate with texts of others (tools, users).

    It never grows longer than the trainer and the engine can take (`GenerateCall.longest_sample`). A turn that reaches
    the limit ends there, and later ones are empty; both have the finish "length".
    """

    def __init__(self, call: GenerateCall, prompt_ids: list[int] | None = None) -> None:
        """`prompt_ids`: another prompt than the row's, such as that of a sub-agent or after a reset of the context."""
        self.ids = list(call.prompt.ids if prompt_ids is None else prompt_ids)
        self._prompt_ids = None if prompt_ids is None else list(prompt_ids)
        self._engine, self._sampling, self._seed = call.engine, call.sampling, call.seed
        self._prompt_tokens = len(self.ids)
        self._longest = call.longest_sample
        self._longest_input = call.longest_input
        self._full = False
        self._turns: list[Generation] = []
        self._others: list[int] = []  # tokens added after the last turn
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        self._untrainable = ""
        self._routing: list[np.ndarray] = []
        self._selected: list[np.ndarray] = []

    async def generate(self, sampling: SamplingConfig | None = None) -> Generation:
        """Lets the policy continue the sequence. All turns use the same seed; their draws differ by position.

        `sampling` replaces the conversation's for this turn. In training it may have another temperature above 0,
        and another limit, but no top_p, top_k or min_p: `Response.sample` would refuse the response.
        """
        used = sampling or self._sampling
        room = self._room()
        self._full = room is not None and room < 1
        if self._full:
            return _empty_turn(len(self.ids))
        if room is not None and room < used.max_new_tokens:
            used = used.model_copy(update={"max_new_tokens": room})
        turn = await self._engine.generate(self.ids, used, self._seed)
        if self._others:
            count = len(self._others)
            version = turn.weight_versions[0] if len(turn.ids) else self._engine.version
            zeros = np.zeros(count)
            versions = np.full(count, version, dtype=np.int32)
            ids = np.array(self._others, dtype=np.int32)
            nothing = zeros.astype(np.float32)
            self._parts.append((ids, nothing, zeros.astype(np.uint8), versions, nothing))
            self._others = []
        ones = np.ones(len(turn.ids), dtype=np.uint8)
        temperature = np.full(len(turn.ids), 0.0 if used.greedy else used.temperature, dtype=np.float32)
        self._parts.append((turn.ids, turn.logprobs, ones, turn.weight_versions, temperature))
        if used.truncations and not self._untrainable:
            self._untrainable = _truncated(len(self._turns) + 1, used)
        if turn.routing is not None:
            # The engine's answer covers the whole sequence. Rows of earlier turns are kept from when those turns were
            # sampled, perhaps under older weights.
            self._routing.append(turn.routing[sum(len(rows) for rows in self._routing) :])
        if turn.selected is not None:
            self._selected.append(turn.selected[:, sum(part.shape[1] for part in self._selected) :])
        self._turns.append(turn)
        self.ids += turn.ids.tolist()
        return turn

    def _room(self) -> int | None:
        """How many tokens a turn may have now; None: no limit. A first prompt is never too long: data are checked."""
        if self._longest_input is not None and self._turns and len(self.ids) > self._longest_input:
            return 0
        return None if self._longest is None else self._longest - len(self.ids)

    def add(self, ids: list[int]) -> None:
        """Appends tokens that the policy did not sample. They only become part of the response if a turn follows."""
        self._others += ids
        self.ids += ids

    def drop_added(self) -> None:
        """Takes back what was added since the last turn."""
        if self._others:
            del self.ids[-len(self._others) :]
            self._others = []

    def response(self) -> Response:
        """The response up to the end of the last turn. Raises ValueError before the first turn."""
        if not self._turns:
            full = f": the prompt of {self._prompt_tokens} tokens leaves no room" if self._full else ""
            raise ValueError(f"a conversation without a turn has no response{full}")
        ids, logprobs, loss_mask, versions, temperature = (
            np.concatenate(arrays) for arrays in zip(*self._parts, strict=True)
        )
        return Response(
            ids=ids,
            logprobs=logprobs,
            loss_mask=loss_mask,
            weight_versions=versions,
            finish=self._finish(),
            routing=np.concatenate(self._routing) if self._routing else None,
            selected=np.concatenate(self._selected, axis=1) if self._selected else None,
            signals={"temperature": temperature},
            untrainable=self._untrainable,
            turns=len(self._turns),
            prompt_ids=self._prompt_ids,
        )

    def _finish(self) -> FinishReason:
        # Tokens are missing from an aborted turn, whichever it was, so the whole response is of no use.
        if any(turn.finish == "abort" for turn in self._turns):
            return "abort"
        return "length" if self._full else self._turns[-1].finish


def _empty_turn(prompt_tokens: int) -> Generation:
    return Generation(
        ids=np.zeros(0, np.int32),
        logprobs=np.zeros(0, np.float32),
        weight_versions=np.zeros(0, np.int32),
        finish="length",
        routing=None,
        prompt_tokens=prompt_tokens,
        cached_tokens=0,
        seconds=0.0,
    )


def _truncated(turn: int, sampling: SamplingConfig) -> str:
    given = " and ".join(f"{name} {value}" for name, value in sampling.truncations.items())
    return (
        f"its turn {turn} was sampled with {given}, but the engine reports log-probabilities of the whole "
        "distribution, so its tokens would be trained with wrong ones: leave top_p, top_k and min_p off in training"
    )


async def single_turn(call: GenerateCall) -> Response:
    """The default generate function: one answer to one prompt."""
    conversation = Conversation(call)
    await conversation.generate()
    return conversation.response()
