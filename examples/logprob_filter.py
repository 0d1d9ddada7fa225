"""A filter of a step's samples, by what the trainer and the engine say about their tokens.

algorithm: {logprob_filter: "logprob_filter:close_and_unsure"}
"""

from verst.runtime.hooks.scored_step import ScoredSample, ScoredStep

FAR = 0.05  # nats per token
SURE = 0.01


def close_and_unsure(step: ScoredStep) -> list[bool | tuple[bool, str]]:
    """Drops answers on which engine and trainer differ, and wrong ones of which the policy was sure."""
    closest = min(step.samples, key=_gap)
    return [True if sample is closest else _judged(sample) for sample in step.samples]


def _judged(sample: ScoredSample) -> bool | tuple[bool, str]:
    if _gap(sample) > FAR:
        return False, "far"
    sure = sample.entropy < SURE * sample.trained_tokens
    return (False, "sure") if sure and sample.advantage < 0 else True


def _gap(sample: ScoredSample) -> float:
    return sample.difference / sample.trained_tokens
