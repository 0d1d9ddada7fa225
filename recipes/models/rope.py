"""Rotary positions: Megatron's arguments for the kinds that it computes as transformers and SGLang do.

A kind or a setting that one of the three would read otherwise is refused. Sources: transformers 5.12.1
(modeling_rope_utils.py), SGLang 0.5.17 (layers/rotary_embedding), megatron-core 0.19.2 (models/common/embeddings).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verst.sync.layout.mapping import ArgumentValue, HfConfig

# These three of Llama 3.1's constants are fixed in Megatron's --use-rope-scaling.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

# Settings that transformers' kinds of positions have. A kind ignores the settings of others, in all three readers.
_KNOWN = {
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "truncate",
    "short_factor",
    "long_factor",
}


def grouped_args(config: HfConfig) -> dict[str, ArgumentValue]:
    """Megatron's arguments for grouped attention: plain positions, stretched ones ("linear") or Llama 3.1's.

    Raises ValueError for others.
    """
    rope, kind, args = _rotary(config)
    if kind == "llama3":
        different = {k: rope.get(k) for k, v in _LLAMA3.items() if rope.get(k) != v}
        if different:
            raise _refusal("llama3", different, f"Megatron supports only {_LLAMA3}")
        args |= {"use-rope-scaling": True, "rope-scaling-factor": _factor(rope)}
    elif kind == "linear":
        if _factor(rope) != int(_factor(rope)):
            raise _refusal("linear", {"factor": rope["factor"]}, "Megatron takes only an integer")
        args["rotary-seq-len-interpolation-factor"] = int(_factor(rope))
    elif kind != "default":
        raise ValueError(f"config.json: rope type {kind!r} is not supported; known: default, linear, llama3")
    return args


def latent_args(config: HfConfig) -> dict[str, ArgumentValue]:
    """Megatron's arguments for latent attention: plain positions or YaRN's (arXiv:2309.00071).

    Raises ValueError for others.
    """
    rope, kind, args = _rotary(config)
    if kind == "default":
        return {**args, "rope-type": "rope", "rotary-scaling-factor": 1.0}
    if kind != "yarn":
        raise ValueError(f"config.json: rope type {kind!r} is not supported here; known: default, yarn")
    if rope.get("attention_factor") is not None:
        raise _refusal("yarn", {"attention_factor": rope["attention_factor"]}, "SGLang does not read it")
    if not rope.get("truncate", True):
        raise _refusal("yarn", {"truncate": rope["truncate"]}, "Megatron and SGLang always truncate")
    return {
        **args,
        "rope-type": "yarn",
        "rotary-scaling-factor": _factor(rope),
        **_magnitudes(rope),
        "yarn-beta-fast": float(rope.get("beta_fast") or 32),
        "yarn-beta-slow": float(rope.get("beta_slow") or 1),
        "yarn-original-max-position-embeddings": int(
            rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
        ),
    }


def _magnitudes(rope: Mapping[str, Any]) -> dict[str, ArgumentValue]:
    """YaRN's two factors for the attention's magnitude.

    transformers uses `mscale` and `mscale_all_dim` only together, SGLang and Megatron each of them alone too. All agree
    on a lone `mscale` of 1, which is the default.
    """
    mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    if bool(mscale) != bool(all_dim) and not (mscale == 1 and not all_dim):
        raise _refusal(
            "yarn",
            {"mscale": mscale, "mscale_all_dim": all_dim},
            "transformers reads mscale and mscale_all_dim only together, engine and trainer also one alone: "
            "give both or none",
        )
    return {"mscale": float(mscale or 1.0), "mscale-all-dim": float(all_dim or 0.0)}


def _rotary(config: HfConfig) -> tuple[dict[str, Any], str, dict[str, ArgumentValue]]:
    """The settings of the rotary positions, their kind, and the arguments that all kinds share."""
    # transformers 5 writes `rope_parameters`, earlier versions write `rope_theta` and `rope_scaling` separately.
    rope: dict[str, Any] = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    unknown = {key: value for key, value in rope.items() if key not in _KNOWN and value is not None}
    if unknown.get("partial_rotary_factor") == 1:
        del unknown["partial_rotary_factor"]
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    if unknown:
        raise _refusal(kind, unknown, "these settings are not known here")
    if config.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ValueError(
            f"config.json: partial_rotary_factor = {config['partial_rotary_factor']} is not supported here, only 1.0"
        )
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    if not theta.is_integer():
        raise ValueError(
            f"config.json: rope_theta = {theta} is not whole; Megatron's --rotary-base takes an integer"
        )
    return rope, kind, {"rotary-base": int(theta), "rotary-percent": 1.0}


def _factor(rope: Mapping[str, Any]) -> float:
    factor = rope.get("factor")
    if not isinstance(factor, int | float) or factor < 1:
        raise ValueError(
            f"config.json: rope_parameters with factor {factor!r}: must be a number of at least 1"
        )
    return float(factor)


def _refusal(kind: str, settings: Mapping[str, Any], why: str) -> ValueError:
    return ValueError(f"config.json: {kind} rope with {dict(settings)}; {why}")
