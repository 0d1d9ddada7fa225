"""PPO with a critic equals a plain float64 loop on transformers' models, in every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_layouts import CP, EP, PP, SP, TP
from tests.runtime.trainer.tiny_models import ADVANTAGES, Layout, in_default, make_samples, temperature_of

# A large epsilon: Adam otherwise makes full steps of gradients that are rounding.
ADAM = {"lr": 1e-2, "adam-eps": 1e-4, "weight-decay": 0.0, "clip-grad": 1.0}
ONE = Layout(1, ADAM)
CRITIC = {"lr": 2e-2, "gamma": 0.95, "lam": 0.9, "value_lam": 0.7, "optimizer": {"clip-grad": 0.5}}
PPO: dict[str, Any] = {
    "advantage": "verst.runtime.algorithms.advantages:gae",
    "critic": CRITIC,
    "advantage_whiten": True,
    "mini_batches": 2,
    "epochs": 2,
}
LAYOUTS = {
    "tp2": Layout(2, ADAM | {TP: 2}),
    "tp2-sp": Layout(2, ADAM | {TP: 2} | SP),
    "pp2": Layout(2, ADAM | {PP: 2}),
    "cp2": Layout(2, ADAM | {CP: 2}),
    "dp2": Layout(2, ADAM),
    "dp2-distopt": Layout(2, ADAM | {"use-distributed-optimizer": True}),
}
STEPS = 3


@pytest.fixture(scope="module")
def single(models: dict[str, Path], ranks: Ranks) -> dict[str, Any]:
    return ranks.run(models["llama"], ONE, steps=STEPS, algorithm=PPO, shown=[(0, 4)])[0]


def test_policy_and_critic_equal_a_float64_loop(single: dict[str, Any], models: dict[str, Path]) -> None:
    """The value head starts at zero, so the first update reaches the head alone and the later ones all weights."""
    reports, logprobs, values = _plain_loop(models["llama"])
    for mine, theirs in zip(single["reports"], reports, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3, abs=1e-6)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        for name in theirs.keys() - {"loss", "grad_norm"}:
            assert mine["metrics"][name] == pytest.approx(theirs[name], rel=2e-3, abs=1e-5), name
        assert mine["metrics"]["critic_lr"] == pytest.approx(2e-2)
        assert {"critic_values", "critic_forward_backward", "critic_optimizer"} <= mine["seconds"].keys()
    assert reports[0]["value_explained_variance"] == pytest.approx(0)
    assert reports[-1]["value_clip_fraction"] > 0
    for mine, theirs in zip(single["after"], logprobs, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-3)
    for mine, theirs in zip(single["values"], values, strict=True):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(mine, theirs, atol=1e-3)


def test_a_shown_sample_has_the_mean_of_its_tokens_advantages(single: dict[str, Any]) -> None:
    shown = [report["shown"][0]["advantage"] for report in single["reports"]]
    assert all(abs(each - ADVANTAGES[4]) > 1e-3 for each in shown)


def _plain_loop(folder: Path) -> tuple[list[dict[str, float]], list[np.ndarray], list[np.ndarray]]:
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    critic = AutoModel.from_pretrained(folder, dtype=torch.float64)
    head = torch.zeros(critic.config.hidden_size, dtype=torch.float64, requires_grad=True)
    of_critic = [*critic.parameters(), head]
    adam = torch.optim.AdamW(policy.parameters(), lr=1e-2, eps=1e-4, weight_decay=0.0)
    adam_of_critic = torch.optim.AdamW(of_critic, lr=2e-2, eps=1e-4, weight_decay=0.0)
    samples = make_samples(folder)
    masks = [torch.from_numpy(s.loss_mask.astype(bool)) for s in samples]

    def tokens(i: int) -> Any:
        return torch.from_numpy(np.concatenate([samples[i].prompt_ids, samples[i].response_ids])).long()

    def logprobs(i: int) -> Any:
        start = len(samples[i].prompt_ids)
        temperature = torch.from_numpy(temperature_of(samples[i])).double()[:, None]
        whole = (policy(tokens(i)[None]).logits[0, start - 1 : -1] / temperature).log_softmax(-1)
        return whole.gather(1, tokens(i)[start:, None])[:, 0]

    def values(i: int) -> Any:
        start = len(samples[i].prompt_ids)
        return critic(tokens(i)[None]).last_hidden_state[0, start - 1 : -1] @ head

    def recursion(v: list[float], reward: float, lam: float) -> list[float]:
        found: list[float] = []
        advantage = following = 0.0
        for value in reversed(v):
            r = reward if not found else 0.0
            advantage = r + 0.95 * following - value + 0.95 * lam * advantage
            following = value
            found.insert(0, advantage)
        return found

    reports = []
    for _ in range(STEPS):
        with torch.no_grad():
            old = [logprobs(i)[masks[i]] for i in range(6)]
            before = [values(i)[masks[i]] for i in range(6)]
        plain = [
            torch.tensor(recursion(v.tolist(), ADVANTAGES[i], 0.9)).double() for i, v in enumerate(before)
        ]
        targets = [
            torch.tensor(recursion(v.tolist(), ADVANTAGES[i], 0.7)).double() + v for i, v in enumerate(before)
        ]
        every, wanted = torch.cat(plain), torch.cat(targets)
        std = every.std(correction=0)
        advantages = [(a - every.mean()) / (std + 1e-6) for a in plain]
        updates = []
        for part in ([0, 1, 2], [3, 4, 5]) * 2:
            count = sum(int(masks[i].sum()) for i in part)
            loss, value_loss, clipped = torch.zeros(()).double(), torch.zeros(()).double(), 0.0
            for i in part:
                ratio = torch.exp(logprobs(i)[masks[i]] - old[i])
                a = advantages[i]
                loss = loss - torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a).sum() / count
                v = values(i)[masks[i]]
                free = (v - targets[i]) ** 2
                held = (before[i] + (v - before[i]).clamp(-0.2, 0.2) - targets[i]) ** 2
                value_loss = value_loss + torch.maximum(free, held).sum() / (2 * count)
                clipped += float((held > free).sum()) / count
            adam.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            adam.step()
            adam_of_critic.zero_grad()
            value_loss.backward()
            norm_of_critic = torch.nn.utils.clip_grad_norm_(of_critic, 0.5)
            adam_of_critic.step()
            updates.append((loss.item(), norm.item(), value_loss.item(), norm_of_critic.item(), clipped))
        names = ("loss", "grad_norm", "value_loss", "critic_grad_norm", "value_clip_fraction")
        error = wanted - torch.cat(before)
        reports.append(
            dict(zip(names, np.mean(updates, axis=0), strict=True))
            | {
                "value_mean": float(torch.cat(before).mean()),
                "return_mean": float(wanted.mean()),
                "advantage_mean": float(every.mean()),
                "advantage_std": float(std),
                "value_explained_variance": float(1 - error.var() / wanted.var()),
            }
        )
    with torch.no_grad():
        return reports, [logprobs(i).numpy() for i in range(6)], [values(i).numpy() for i in range(6)]


@pytest.mark.parametrize("layout", in_default(LAYOUTS))
def test_the_critic_is_the_same_in_every_layout(
    layout: str, single: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    last = None
    for answer in ranks.run(models["llama"], LAYOUTS[layout], steps=STEPS, algorithm=PPO):
        for mine, theirs in zip(answer["reports"], single["reports"], strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3, abs=1e-6)
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
            assert mine["metrics"] == pytest.approx(theirs["metrics"], rel=1e-2, abs=1e-4)
        last = answer
    assert last is not None
    for name in ("after", "values"):
        for mine, theirs in zip(last[name], single[name], strict=True):
            np.testing.assert_allclose(mine, theirs, atol=2e-3)


@pytest.mark.long
def test_the_critic_is_the_same_in_an_interleaved_pipeline(models: dict[str, Path], ranks: Ranks) -> None:
    """Whose micro-batches come in groups, unlike those of the updates above."""
    given: dict[str, Any] = {"algorithm": {**PPO, "mini_batches": 1, "epochs": 1}, "steps": STEPS}
    one = ranks.run(models["llama"], ONE, **given)[0]
    interleaved = Layout(2, ADAM | {PP: 2, "num-virtual-stages-per-pipeline-rank": 2})
    *_, last = ranks.run(models["llama"], interleaved, **given)
    for mine, theirs in zip(last["reports"], one["reports"], strict=True):
        assert mine["metrics"] == pytest.approx(theirs["metrics"], rel=1e-2, abs=1e-4)
    for mine, theirs in zip(last["values"], one["values"], strict=True):
        assert np.abs(theirs).max() > 0.01
        np.testing.assert_allclose(mine, theirs, atol=2e-3)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["one", "ep2", "tp2-sp", "pp2"])
def test_a_critic_of_experts_routes_freely_beside_a_policy_that_replays(
    layout: str, models: dict[str, Path], ranks: Ranks
) -> None:
    layouts = {
        "one": ONE,
        "ep2": Layout(2, ADAM | {EP: 2}),
        "tp2-sp": LAYOUTS["tp2-sp"],
        "pp2": LAYOUTS["pp2"],
    }
    given = PPO | {"routing_replay": "rollout"}
    one = ranks.run(models["qwen3_moe"], ONE, steps=2, routing=True, algorithm=given)[0]
    answers = ranks.run(models["qwen3_moe"], layouts[layout], steps=2, routing=True, algorithm=given)
    for answer in answers:
        for mine, theirs in zip(answer["reports"], one["reports"], strict=True):
            assert mine["metrics"]["routing_wrong"] == 0
            for name in ("value_loss", "critic_grad_norm", "value_explained_variance"):
                assert mine["metrics"][name] == pytest.approx(theirs["metrics"][name], rel=1e-2, abs=1e-4), (
                    name
                )
    for mine, theirs in zip(answers[-1]["values"], one["values"], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=5e-3)


@pytest.mark.long
def test_a_warm_up_trains_the_critic_alone(models: dict[str, Path], ranks: Ranks) -> None:
    (answer,) = ranks.run(
        models["llama"], ONE, steps=2, algorithm=PPO | {"critic": CRITIC | {"warmup_steps": 2}}
    )
    assert answer["after"] == answer["before"]
    for report in answer["reports"]:
        assert report["grad_norm"] == report["lr"] == 0
        assert report["metrics"]["entropy"] > 0
        assert report["metrics"]["critic_grad_norm"] > 0
    assert answer["reports"][1]["metrics"]["value_loss"] < answer["reports"][0]["metrics"]["value_loss"]
    assert np.abs(np.concatenate(answer["values"])).max() > 0.01


@pytest.mark.long
@pytest.mark.parametrize("layout", [ONE, LAYOUTS["dp2-distopt"]])
def test_ranks_that_step_aside_take_the_critic_along(
    layout: Layout, models: dict[str, Path], ranks: Ranks
) -> None:
    given: dict[str, Any] = {"algorithm": PPO, "dtype": "bfloat16", "steps": 3}
    alone = ranks.run(models["llama"], layout, **given)
    aside = ranks.run(models["llama"], layout, aside=True, **given)
    without = ranks.run(models["llama"], layout, aside=True, dtype="bfloat16", steps=1)
    for before, after, bare in zip(alone, aside, without, strict=True):
        assert [r["metrics"] for r in after["reports"]] == [r["metrics"] for r in before["reports"]]
        assert after["values"] == before["values"]
        weights, nothing, _, whole = after["held"]
        assert nothing["held"] == 0
        assert weights["held"] == bare["held"][0]["held"]  # the policy's alone: the engines get no other
        assert whole["held"] > 1.9 * bare["held"][3]["held"]


@pytest.mark.long
def test_a_kl_in_the_reward_takes_from_each_tokens_reward(models: dict[str, Path], ranks: Ranks) -> None:
    """The reference is the policy, so the first step's penalty is 0. Then the policy leaves it."""
    reward = {"kl_coef": 0.5, "kl_in": "reward", "kl": "verst.runtime.algorithms.divergences:k1"}
    reports = ranks.run(models["llama"], ONE, steps=2, algorithm=PPO | reward)[0]["reports"]
    plain = ranks.run(models["llama"], ONE, steps=2, algorithm=PPO)[0]["reports"]
    assert reports[0]["metrics"]["kl_penalty"] == pytest.approx(0, abs=1e-5)
    assert abs(reports[1]["metrics"]["kl_penalty"]) > 1e-3
    assert reports[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-5)
    assert reports[1]["metrics"]["return_mean"] != pytest.approx(plain[1]["metrics"]["return_mean"], rel=1e-3)
