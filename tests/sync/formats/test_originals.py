"""Each format against the code that others write and read it with: compressed-tensors, torchao, transformers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor, pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

from tests.sync.formats.test_formats import weights
from verst.sync.formats import Fp8, Int4, Mxfp8, Nvfp4


def ordinary(rows: int, columns: int, seed: int = 3) -> torch.Tensor:
    return (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02).bfloat16()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("make", [ordinary, weights])
def test_int4_is_packed_by_and_for_compressed_tensors(make, group):
    x = make(40, 256)
    ours = Int4(group).tensors("weight", x)
    args = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=group)
    steps = quantize(
        x=x.float(), scale=ours["weight_scale"].float(), zero_point=None, args=args, dtype=torch.int8
    )
    # Its range has a -8, which only a scale that bfloat16 rounded down far would reach; ours does not.
    assert steps.min() >= -7
    assert same(ours["weight_packed"], pack_to_int32(steps, 4))
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    stored = {**ours, "weight_scale": ours["weight_scale"].float()}
    read = PackedQuantizationCompressor.decompress(stored, scheme)["weight"]
    assert torch.equal(read.bfloat16(), Int4(group).restore(ours))


@pytest.mark.parametrize("make", [ordinary, weights])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_mxfp8_is_torchaos(make, dtype):
    from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_mx

    x = make(64, 128).to(dtype)
    scale, codes = to_mx(x, torch.float8_e4m3fn, 32, ScaleCalculationMode.RCEIL)
    ours = Mxfp8().tensors("weight", x)
    assert same(ours["weight_scale_inv"], scale.view(torch.uint8))
    assert same(ours["weight"], codes)


def with_amax(x: torch.Tensor, amax: float) -> torch.Tensor:
    x = x.clamp(-amax, amax)
    x[1, 1] = amax
    return x


@pytest.mark.parametrize("make", [ordinary, weights])
def test_nvfp4_is_compressed_tensors(make):
    """Where the outer scale is a power of two, so that no order of operations rounds differently."""
    x = with_amax(make(64, 128), 2688 * 2.0**-8)
    ours = Nvfp4().tensors("weight", x)
    args = QuantizationArgs(
        num_bits=4,
        type="float",
        symmetric=True,
        strategy="tensor_group",
        group_size=16,
        scale_dtype=torch.float8_e4m3fn,
        zp_dtype=torch.float8_e4m3fn,
    )
    a = x.float()
    outer = generate_gparam(a.min(), a.max())  # its inverse
    assert ours["weight_scale_2"] == 1 / outer == 2.0**-8
    grouped = a.unflatten(1, (-1, 16))
    scale, _ = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args, global_scale=outer)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    theirs = NVFP4PackedCompressor.compress(
        {"weight": a, "weight_scale": scale, "weight_global_scale": outer}, scheme
    )
    # Zeros have their scale at eps there and at 1 here; groups far below the largest have one that is 0 there.
    usual = (grouped.abs().amax(-1) * outer / 6 > 2.0**-8) & (grouped.abs().amax(-1) > 0)
    assert usual.float().mean() > 0.5
    assert torch.equal(ours["weight_scale"].float()[usual], theirs["weight_scale"].float()[usual])
    codes = [t.view(64, -1, 8)[usual] for t in (ours["weight"], theirs["weight_packed"])]
    # A value below half the least step is a zero with its sign there, a plain zero with its sign here as well.
    assert torch.equal(*codes)


@pytest.mark.parametrize("make", [ordinary, weights])
def test_nvfp4_is_torchaos(make):
    from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale

    x = with_amax(make(64, 128), 2688 * 2.0**-8)
    scale, packed = nvfp4_quantize(x, per_tensor_scale=per_tensor_amax_to_scale(x.abs().max()))
    ours = Nvfp4().tensors("weight", x)
    # It multiplies with a rounded reciprocal: values at the middle between two codes may go the other way.
    nibbles = [
        torch.stack([p.view(64, 64) & 15, p.view(64, 64) >> 4], -1).view(64, -1, 16)
        for p in (packed, ours["weight"])
    ]
    largest = x.float().unflatten(1, (-1, 16)).abs().amax(-1)
    usual = largest / (6 * 2.0**-8) > 2.0**-6  # torchao's least scale
    assert usual.float().mean() > 0.5
    assert torch.equal(scale.view(64, -1).float()[usual], ours["weight_scale"].float()[usual])
    differ = nibbles[0][usual] != nibbles[1][usual]
    assert differ.float().mean() < 0.01
    assert ((nibbles[0][usual] & 7).int() - (nibbles[1][usual] & 7).int()).abs().max() <= 1


@pytest.mark.parametrize("make", [ordinary, weights])
def test_fp8_is_transformers(make):
    """transformers multiplies with 448 / amax, two roundings to our one: neighbours, where bfloat16 meets a middle."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    x = make(256, 384)
    settings = SimpleNamespace(weight_block_size=[128, 128], scale_fmt="float", dequantize=True)
    quantizer = SimpleNamespace(quantization_config=settings)
    theirs = Fp8Quantize(quantizer).convert({"layer.weight": x})
    ours = Fp8().tensors("layer.weight", x)
    name = "layer.weight_scale_inv"
    assert ours.keys() == theirs.keys()
    assert ours[name].shape == theirs[name].shape
    assert torch.allclose(ours[name], theirs[name], rtol=2**-22, atol=0)
    codes = [t["layer.weight"].view(torch.uint8).int() for t in (ours, theirs)]
    assert (codes[0] - codes[1]).abs().max() <= 1
    assert (codes[0] != codes[1]).float().mean() < 0.01
    # It reads what we write as we do.
    read = Fp8Dequantize(quantizer)._dequantize_one(ours["layer.weight"], ours[name], torch.bfloat16)
    restored = Fp8().restore({"weight": ours["layer.weight"], "weight_scale_inv": ours[name]})
    assert torch.equal(read.bfloat16(), restored)
