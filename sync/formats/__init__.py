"""The weight formats of engines, each a pure function of one tensor or of a block of it.

    format, selection = of_config(config["quantization_config"])   # from config.json in the engine's model folder
    if selection.takes(name, shape):
        format.derived(name, shape)                    # names, shapes and dtypes of the results
        format.cut(name, shape, dim, start, length)    # the parts of the results that come from a slice of the source
        format.tensors(name, block, shape=shape)       # {derived name: tensor}

The same code converts weights on their way to an engine and whole folders (`verst convert`). `format.py` is the
interface, `bf16.py`, `fp8.py`, `mxfp8.py`, `nvfp4.py` and `int4.py` are the formats, `rounding.py` is their arithmetic,
and `selection.py` decides which layers are quantised.
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
    """The format that `quantization_config` of a config.json states, and the layers that are quantised in it.

    `config` is None if config.json has no such key. Raises ValueError if it states none of `FORMATS`, and says why.
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
            raise ValueError(
                f"ModelOpt's quant_algo {config.get('quant_algo')!r} is not known; only NVFP4 is"
            )
        return Nvfp4(), selection_of(config)
    if method == "compressed-tensors":
        return _int4(config), selection_of(config)
    raise ValueError(
        f"quant_method {method!r} is not known; known are fp8, mxfp8, modelopt and compressed-tensors"
    )


def engine_fault(format: Format, config: Mapping[str, Any]) -> str | None:
    """What SGLang 0.5.17 gets wrong about a model in this format, or None. `config` is the model's config.json."""
    architectures = config.get("architectures") or []
    if isinstance(format, Fp8 | Mxfp8) and "LlamaForCausalLM" in architectures:
        return (
            f"SGLang 0.5.17 loads {format.name} of LlamaForCausalLM without its scales, because it looks for "
            "weight_scale instead, and generates nonsense. nvfp4 and int4 have other names for theirs"
        )
    return None


def _fp8(config: Mapping[str, Any]) -> Fp8:
    block = config.get("weight_block_size")
    if not isinstance(block, list) or len(block) != 2:
        raise ValueError(
            f"FP8 with weight_block_size {block!r} is not known; it must be a pair such as [128, 128]"
        )
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
            "only pack-quantized with one group is"
        )
    weights, targets = kinds[0]
    wanted = {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": True}
    wrong = {key: weights.get(key) for key, value in wanted.items() if weights.get(key) != value}
    if wrong or targets != ["Linear"] or weights.get("actorder"):
        raise ValueError(
            f"compressed-tensors weights {wrong or weights} for {targets} are not known; "
            f"only {wanted} without actorder for ['Linear'] are"
        )
    return Int4(int(weights.get("group_size") or 0))
