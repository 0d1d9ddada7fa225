"""The promise: a run whose engines compute another model does not train, and says what to look at."""

from __future__ import annotations

import pytest

from verst.runtime.trainer.step.agreement import Agreement, EngineDisagreesError


def metrics(mean: float) -> dict[str, float]:
    return {"logprob_mean_diff": mean, "logprob_max_diff": 4 * mean}


@pytest.mark.parametrize(
    ("bound", "dtype", "sound", "wrong"),
    [(None, "float32", 3e-5, 0.6), (None, "bfloat16", 0.25, 0.4), (1.0, "bfloat16", 0.9, 1.1)],
)
def test_another_model_is_refused_before_the_first_update(bound, dtype, sound, wrong):
    Agreement(bound, dtype, replays=True).check(0, metrics(sound))
    with pytest.raises(
        EngineDisagreesError, match=rf"step 4, before its update: .* by {wrong:.3g} nats per token"
    ):
        Agreement(bound, dtype, replays=True).check(3, metrics(wrong))


def test_a_figure_that_is_no_number_is_refused():
    with pytest.raises(EngineDisagreesError, match="differ by nan nats"):
        Agreement(None, "float32", replays=True).check(0, metrics(float("nan")))


def test_later_steps_only_warn():
    agreement = Agreement(None, "float32", replays=True)
    agreement.check(0, {"loss": 1.0})  # demonstrations, or only tokens of older versions
    agreement.check(1, metrics(1e-5))
    agreement.check(2, metrics(5.0))


@pytest.mark.parametrize(("replays", "named"), [(False, True), (True, False)])
def test_routing_replay_is_suspected_where_it_is_off(replays, named):
    with pytest.raises(EngineDisagreesError) as error:
        Agreement(None, "bfloat16", replays=replays).check(0, metrics(2.0))
    assert ("algorithm.routing_replay, which is off" in str(error.value)) == named
    for option in ("rollout.sampling", "rope_parameters", "rollout.model_path", "bfloat16 itself"):
        assert option in str(error.value)
