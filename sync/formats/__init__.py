"""The formats an engine can want its weights in, each a pure function of one tensor or of a block of one.

    format, selection = of_config(config["quantization_config"])   # of the engine's model folder
    if selection.takes(name, shape):
        format.derived(name, shape)                    # names, shapes and dtypes to expect
        format.cut(name, shape, dim, start, length)    # where a slice of the source goes
        format.tensors(name, block, shape=shape)       # {derived name: tensor}

What converts on the way to an engine and what converts a folder (`verst convert`) is this same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verst.sync.formats.bf16 import Bf16
from verst.sync.formats.format import Derived, Format, Output
from verst.sync.formats.fp8 import Fp8
from verst.sync.formats.int4 import Int4
from verst.sync.formats.mxfp8 import Mxfp8
from verst.sync.formats.nvfp4 import Nvfp4
from verst.sync.formats.selection import Selection
from verst.sync.formats.selection import of_config as selection_of

__all__ = [
    "FORMATS",
    "Bf16",
    "Derived",
    "Format",
    "Fp8",
    "Int4",
    "Mxfp8",
    "Nvfp4",
    "Output",
    "Selection",
    "engine_fault",
    "of_config",
]

FORMATS = ("bf16", "fp8", "mxfp8", "nvfp4", "int4")


def of_config(config: Mapping[str, Any] | None) -> tuple[Format, Selection]:
    """The format that a config.json's `quantization_config` (None: it has none) states, and for which layers.

    Raises ValueError for one that is none of `FORMATS`, saying what in it is not.
    """
    if not config:
        return Bf16(), Selection()
    method = config.get("quant_method")
    if method == "fp8":
        return _fp8(config), selection_of(config)
    if method == "mxfp8":
        return Mxfp8(), selection_of(config)
    if method in ("modelopt", "modelopt_fp4"):
        if config.get("quant_algo") != "NVFP4":
            raise ValueError(f"quant_algo {config.get('quant_algo')!r} of ModelOpt is not known; NVFP4 is")
        return Nvfp4(), selection_of(config)
    if method == "compressed-tensors":
        return _int4(config), selection_of(config)
    raise ValueError(f"quant_method {method!r} is not known: fp8, mxfp8, modelopt and compressed-tensors are")


def engine_fault(format: Format, config: Mapping[str, Any]) -> str | None:
    """What SGLang 0.5.17 gets wrong about a model (its config.json) in this format; None: nothing that is known."""
    architectures = config.get("architectures") or []
    if isinstance(format, Fp8 | Mxfp8) and "LlamaForCausalLM" in architectures:
        return (
            f"SGLang 0.5.17 loads {format.name} of LlamaForCausalLM without its scales: it looks for them as "
            "weight_scale, and serves nonsense. nvfp4 and int4 call theirs by other names"
        )
    return None


def _fp8(config: Mapping[str, Any]) -> Fp8:
    block = config.get("weight_block_size")
    if not isinstance(block, list) or len(block) != 2:
        raise ValueError(f"FP8 with weight_block_size {block!r} is not known; [128, 128] is, or another pair")
    return Fp8((int(block[0]), int(block[1])), ue8m0=config.get("scale_fmt") == "ue8m0")


def _int4(config: Mapping[str, Any]) -> Int4:
    packing = config.get("format")
    kinds = [
        (group.get("weights") or {}, group.get("targets"))
        for group in (config.get("config_groups") or {}).values()
    ]
    if packing != "pack-quantized" or len(kinds) != 1:
        raise ValueError(
            f"compressed-tensors format {packing!r} with {len(kinds)} config_groups is not known; "
            "one group of pack-quantized is"
        )
    weights, targets = kinds[0]
    wanted = {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": True}
    wrong = {key: weights.get(key) for key, value in wanted.items() if weights.get(key) != value}
    if wrong or targets != ["Linear"] or weights.get("actorder"):
        raise ValueError(
            f"compressed-tensors weights {wrong or weights} for {targets} are not known; "
            f"{wanted} without actorder for ['Linear'] are"
        )
    return Int4(int(weights.get("group_size") or 0))
