"""A whole run of PPO with a critic learns the toy task; its checkpoint has the critic, its export has not."""

from __future__ import annotations

from statistics import mean

import pytest
from safetensors.torch import load_file

from tests.runs.tiny_moe import tiny_run
from verst.runtime.run.checkpoints import latest, read_manifest

WARM_UP, STEPS = 4, 32


@pytest.mark.long
@pytest.mark.timeout(1300)
def test_ppo_learns_and_its_critic_explains_the_returns(model, tmp_path):
    run = tiny_run(
        model,
        tmp_path / "run",
        "algorithm.stages.0.steps=40",
        f"algorithm.steps={STEPS}",
        "algorithm.advantage=verst.runtime.algorithms.advantages:gae",
        "algorithm.advantage_whiten=true",
        "algorithm.mini_batches=2",
        "algorithm.epochs=2",
        f"algorithm.critic={{lr: 5e-4, lam: 0.95, value_lam: 1.0, value_clip: 0.5, warmup_steps: {WARM_UP}}}",
        "checkpoint.interval=200",
    )
    run.finish(timeout=1200)
    steps = run.lines("step")
    assert [line["version"] for line in steps] == list(range(41, 41 + STEPS))
    for line in steps[:WARM_UP]:
        assert line["grad_norm"] == line["lr"] == 0
        assert {"train/critic_values", "train/forward", "train/critic_forward_backward"} <= line[
            "seconds"
        ].keys()
    for line in steps:
        # R3 is the policy's: engine and trainer agree, and the critic's own routing disturbs nothing.
        assert line["logprob_max_diff"] <= 1e-4
        assert line["routing_replayed"] > 0
        assert line["routing_wrong"] == 0
        assert line["critic_grad_norm"] > 0
    explained = [line.get("value_explained_variance", 0.0) for line in steps]
    assert mean(explained[-6:]) > mean(explained[:2]) + 0.1, explained
    rewards = [line["reward"] for line in steps]
    assert mean(rewards[-6:]) > mean(rewards[: WARM_UP + 2]) + 0.05, rewards
    manifest = read_manifest(latest(run.folder / "checkpoints"))
    assert manifest.critic is not None
    assert manifest.critic.optimizer_steps == manifest.critic.scheduler_steps == STEPS * 4
    assert manifest.scheduler_steps == 40 + (STEPS - WARM_UP) * 4
    exported = set(load_file(next(run.folder.glob("export/*.safetensors"))))
    assert exported == set(load_file(next(model.glob("*.safetensors"))))
