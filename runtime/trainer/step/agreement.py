"""Whether the engines compute the model that is trained: their log-probabilities against the trainer's.

Before the first update engine and trainer hold the same weights, so they must say nearly the same about each token.
What is left comes from rounding and, in a mixture of experts without routing replay, from experts chosen near a tie.
Measured means are below 0.04 nats in bfloat16 (dense and experts, FP8 engines too), 0.2 to 0.3 with sparse attention
whose choices are not replayed, and about 1e-5 in float32. A model that is read differently, or another temperature,
is 0.3 nats to several.
"""

from __future__ import annotations

from collections.abc import Mapping

# The largest mean |difference| per token, in nats, that is taken for the same model.
BOUNDS = {"float32": 0.01, "bfloat16": 0.3}

FIGURE = "logprob_mean_diff"
# The same over tokens of older versions, which differ also because the weights have changed since.
OLDER = "logprob_mean_diff_older"


class EngineDisagreesError(RuntimeError):
    """The engines sample from another model than the trainer trains."""


class Agreement:
    """Refuses the first update if engine and trainer differ by more than `bound` nats per token."""

    def __init__(
        self, bound: float | None, dtype: str, *, replays: bool, only_step: int | None = None
    ) -> None:
        """`bound`: the recipe's, or None for the default of `dtype`. `replays`: routing is replayed.

        `only_step`: refuses in this step alone. In a run whose answers outlive a weight version, a resumed life may
        begin with tokens that stand on older keys and values, which differ for that reason.
        """
        self._bound = BOUNDS[dtype] if bound is None else bound
        self._dtype = dtype
        self._replays = replays
        self._only_step = only_step
        self._trusted = False

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Checks a step's metrics before its update. Raises EngineDisagreesError in the first step that has the figure.

        The same on every rank, because the metrics are.
        """
        difference = metrics.get(FIGURE)
        if self._trusted or difference is None or self._only_step not in (None, step):
            return
        if not difference <= self._bound:  # also a NaN
            raise EngineDisagreesError(
                f"step {step + 1}, before its update: engine and trainer hold the same weights, but their "
                f"log-probabilities differ by {difference:.3g} nats per token on average, and by "
                f"{metrics.get('logprob_max_diff', difference):.3g} at most; the bound is {self._bound:g} "
                f"(trainer.max_logprob_diff). {suspects(self._dtype, self._replays)}"
            )
        self._trusted = True


def suspects(dtype: str, replays: bool) -> str:
    """What to look at first when engine and trainer differ, the most frequent cause first."""
    found = [
        "rollout.sampling (a temperature or a cut that one side does not apply)",
        "rope_parameters and other keys of config.json that were changed by hand",
        "rollout.model_path and rollout.sglang (another or a quantised model, a quantised KV cache)",
        "hooks that change tokens after they were sampled",
    ]
    if not replays:
        found.insert(
            2, "algorithm.routing_replay, which is off (for a mixture of experts or sparse attention)"
        )
    if dtype == "bfloat16":
        found.append(
            "bfloat16 itself: model.dtype float32 on a small model tells rounding from another model"
        )
    return "Look at: " + "; ".join(found)
