"""Makes the sample of a response, and checks what only the worker knows: vocabulary, newest weights, longest sample."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from verst.runtime.actors.codec import decode, encode
from verst.runtime.hooks.frames import shown
from verst.runtime.hooks.hook import Hook
from verst.runtime.hooks.score import Score
from verst.runtime.hooks.values import score_of
from verst.runtime.messages.sample import Group, Sample, decode_group, encode_group, value_fault
from verst.runtime.rollout.engine.client import EngineError
from verst.runtime.rollout.generate import Response, single_turn

_ARRAYS = ("ids", "logprobs", "loss_mask", "weight_versions")
_MAY_BE_NONE = ("routing", "selected")


def are_responses(value: Any) -> list[Response]:
    """The check of a generate function's value: a Response, or a sequence of them.

    Raises ValueError for anything else, and if they bring different scores: an episode has one.
    """
    responses = [_response(value)] if not isinstance(value, list | tuple) else [_response(v) for v in value]
    if not responses:
        raise ValueError("returned no Response")
    own = {msgspec.json.encode(score): score for r in responses if (score := own_score(r)) is not None}
    if len(own) > 1:
        raise ValueError(
            f"returned Responses of one episode with different scores: {', '.join(map(repr, own.values()))}. An "
            "episode has one score: give it to one of them, or the same to all"
        )
    return responses


def own_score(response: Response) -> Score | None:
    """The score that a generate function gave itself; None if it gave none."""
    return None if response.score is None else score_of(response.score)


def _response(value: Any) -> Response:
    if not isinstance(value, Response):
        raise ValueError(f"returned {shown(value)}, not a Response")
    if not isinstance(value.signals, dict) or not isinstance(value.metadata, dict):
        raise ValueError("returned a Response whose signals or metadata are no dict")
    if value.prompt_ids is not None and not (
        isinstance(value.prompt_ids, list) and all(type(token) is int for token in value.prompt_ids)
    ):
        raise ValueError(
            f"returned a Response whose prompt_ids is {shown(value.prompt_ids)}, not a list of int"
        )
    arrays = {name: getattr(value, name) for name in _ARRAYS}
    arrays |= {name: array for name in _MAY_BE_NONE if (array := getattr(value, name)) is not None}
    arrays |= {f"signals[{name!r}]": signal for name, signal in value.signals.items()}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"returned a Response whose {name} is {shown(array)}, not a numpy array")
    return value


def unsendable(group: Group, *, vocabulary: int | None, newest: int) -> str:
    """What in a group cannot be stored or trained on, after a filter has seen it; "" if it all can.

    `vocabulary` and `newest` are those of `checked_sample`.
    """
    try:
        for sample in group.samples:
            _plain_figures(sample.metadata)
        group.validate()  # names what is wrong with a figure
        decode_group(encode_group(group))  # as the store does
        faults = [fault for sample in group.samples for fault in _worker_faults(sample, vocabulary, newest)]
    except (ValueError, TypeError, OverflowError) as error:
        return str(error)
    except Exception as error:  # it may hold anything: a sample may be no sample
        return f"{type(error).__name__}: {error}"
    return "; ".join(faults)


def checked_sample(
    generate: Hook,
    place: str,
    response: Response,
    unscored: dict[str, Any],
    *,
    vocabulary: int | None,
    newest: int,
) -> Sample:
    """Makes the sample of a response, with a reward of 0 until it is scored.

    Args:
        generate: the function that made the response.
        place: which sample, for messages.
        response: what it returned.
        unscored: the further arguments of `Response.sample`.
        vocabulary: the number of the model's token ids; None: not known.
        newest: the engine's weight version now.

    Raises HookError if the response breaks a rule of samples; EngineError if it is the bundled function's, which
    returns the engine's answer as it came.
    """
    try:
        _plain_figures(response.metadata)
        sample = response.sample(reward=0.0, **unscored)
        faults = _worker_faults(sample, vocabulary, newest)
        if response.metadata:
            decode(dict[str, Any], encode(response.metadata))  # as the store does
    except (ValueError, TypeError, OverflowError) as error:
        faults = [str(error)]
    if not faults:
        return sample
    problem = "returned a response that cannot be trained on: " + "; ".join(faults)
    if generate.function is single_turn:
        raise EngineError(f"{place}: the engine {problem}")
    raise generate.fault(place, problem)


def description_of(model: str) -> dict[str, Any]:
    """The config.json of a local model folder; empty if there is none."""
    try:
        description: dict[str, Any] = json.loads((Path(model) / "config.json").read_text())
    except FileNotFoundError:
        return {}
    return description


def vocabulary_size(description: Mapping[str, Any]) -> int | None:
    """The number of token ids of a model by its config.json; None if that does not say."""
    size = description.get("vocab_size") or (description.get("text_config") or {}).get("vocab_size")
    return int(size) if size else None


def _plain_figures(metadata: dict[str, Any]) -> None:
    """Makes Python's numbers of numpy's in a hook's own figures, which are means as a rule."""
    figures = metadata.get("figures")
    if isinstance(figures, dict):
        metadata["figures"] = {k: v.item() if isinstance(v, np.generic) else v for k, v in figures.items()}


def _worker_faults(sample: Sample, vocabulary: int | None, newest: int) -> list[str]:
    faults = []
    for name, ids in (("prompt_ids", sample.prompt_ids), ("response_ids", sample.response_ids)):
        if vocabulary is not None and (bad := ids >= vocabulary).any():
            faults.append(value_fault(name, ids, bad, f"outside the vocabulary of {vocabulary}"))
    versions: np.ndarray = sample.weight_versions
    if (bad := versions > newest).any():
        faults.append(
            value_fault("weight_versions", versions, bad, f"newer than the engine's, which is {newest}")
        )
    return faults


def too_long(group: Group, max_tokens: int | None) -> str | None:
    """Says which sample is longer than `max_tokens`, prompt included; None if none is, or without a limit."""
    longest = max(group.samples, key=lambda sample: sample.length)
    if max_tokens is None or longest.length <= max_tokens:
        return None
    return (
        f"sample {longest.index} has {longest.length} tokens; the trainer takes {max_tokens} "
        "(trainer.max_tokens_per_microbatch, less padding)"
    )
