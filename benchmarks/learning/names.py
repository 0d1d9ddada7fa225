"""What the learning curves compare: the keys of each algorithm, and of the stages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
# What needs other values than those of docs/algorithms.md where a run has few and small steps.
SMALL: dict[str, dict[str, Any]] = {
    "PPO with a critic": {
        "critic": {"lr": 2e-3, "lam": 0.95, "value_lam": 1.0, "warmup_steps": 4},
        "mini_batches": 2,
        "epochs": 2,
    },
    # Shares and bounds by which some of about 200 tokens are chosen.
    "Clip-Cov and KL-Cov": {"cov_share": 0.05, "cov_low": 0.1, "cov_high": 5.0},
    "Clip-Cov and KL-Cov (2)": {"cov_share": 0.05, "mini_batches": 2},
}


def stage(kind: str, steps: int, **options: Any) -> dict[str, Any]:
    """The keys of a run that has a stage with rows, of this kind."""
    return {
        "stages": [{"kind": kind, "data": {"path": "drawn"}, "steps": steps, **options}, {"kind": "policy"}]
    }


# Stages: their keys, their learning rate, and the model with which they begin.
ON_ROWS: dict[str, tuple[dict[str, Any], float, str]] = {
    "SFT": (stage("sft", 100), 3e-3, "random"),
    "DPO": (stage("dpo", 60, sft_coef=0.2), 5e-4, "start"),
}


def named_algorithms() -> dict[str, dict[str, Any]]:
    """The `algorithm` sections of docs/algorithms.md, by the heading above; the second below a heading is "NAME (2)".

    But for the one that needs a reward of several parts, and for corrections alone.
    """
    text = (ROOT / "docs/algorithms.md").read_text()
    found = {}
    for part in text.split("\n## ")[1:]:
        name = part.partition("\n")[0].partition(":")[0]
        if name in ("GDPO", "Old and stale answers"):
            continue
        for number, snippet in enumerate(re.findall(r"```yaml\n(.*?)```", part, re.DOTALL), 1):
            each = name if number == 1 else f"{name} ({number})"
            found[each] = yaml.safe_load(snippet)["algorithm"] | SMALL.get(each, {})
    return found


def stale() -> dict[str, dict[str, Any]]:
    """Old answers without a ratio, which is wrong for them, and with ways to make up for it.

    The corrections weigh the policy before the step against the engine's, so that is the old policy for all tokens.
    """
    reinforce = {
        "loss": "verst.runtime.algorithms.losses:reinforce",
        "advantage": "verst.runtime.algorithms.advantages:group_centred",
    }

    def corrected(name: str, **bounds: float) -> dict[str, Any]:
        function = f"verst.runtime.algorithms.corrections:{name}"
        return {**reinforce, "correction": function, **bounds, "old_logprobs": "recompute"}

    return {
        "no correction": reinforce,
        "TIS": corrected("token_truncated", correction_high=2.0),
        "IcePop": corrected("token_masked", correction_low=0.5, correction_high=2.0),
        "MIS": corrected("sequence_masked", correction_low=0.5, correction_high=2.0),
        "geometric MIS": corrected("geometric_masked", correction_low=0.8, correction_high=1.25),
        "OPSM": corrected("negative_masked", correction_high=1.05),
        "clipped ratio": {**reinforce, "loss": "verst.runtime.algorithms.losses:grpo"},
    }
