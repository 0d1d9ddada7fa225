"""Arithmetic with the same results on CPU and CUDA, bit for bit.

Both round correctly in additions, multiplications and divisions of two float32 tensors, comparisons, `round` (half to
even) and casts. Dividing a CUDA tensor by a Python number is different: torch multiplies by the reciprocal, which
rounds twice, so divisors here are tensors. Powers of two are made and taken apart through their bits, never with log2
and exp2, whose last bit differs between libraries.
"""

from __future__ import annotations

import torch

E4M3_MAX = 448.0
E2M1_MAX = 6.0
SMALLEST_NORMAL = 2.0**-126
_E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def divide(x: torch.Tensor, divisor: float) -> torch.Tensor:
    """x / divisor in float32, with one rounding on every device."""
    return x / torch.full((), divisor, dtype=torch.float32, device=x.device)


def finite(name: str, amax: torch.Tensor) -> None:
    """Raises ValueError unless all amaxes are finite. A block's amax is not if any of its values is not."""
    if not bool(amax.isfinite().all()):
        raise ValueError(f"{name} holds an infinity or a NaN: it cannot be quantised, and must not be served")


def ceil_exponent(x: torch.Tensor) -> torch.Tensor:
    """Biased exponent of the smallest power of two that is not below x >= 0: int32 in 1..254."""
    bits = x.float().view(torch.int32)
    return ((bits >> 23) + ((bits & 0x7FFFFF) != 0)).clamp(1, 254)


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2 ** (exponent - 127) for a biased exponent in 1..254; float32."""
    return (exponent.to(torch.int32) << 23).view(torch.float32)


def to_e4m3(x: torch.Tensor) -> torch.Tensor:
    """Rounds to the nearest float8_e4m3fn, ties to even; values beyond ±448 become ±448."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def e2m1_codes(x: torch.Tensor) -> torch.Tensor:
    """Four-bit codes (uint8) of the nearest E2M1 values, ties to the even code; values beyond ±6 become ±6."""
    size = x.abs()
    code = (size > 0.25).to(torch.uint8)
    # A midpoint goes to the neighbour with the even code: to 1.0, 2.0 and 4.0 also from below (hence >=).
    for above in (1.25, 2.5, 5.0):
        code += size > above
    for from_ in (0.75, 1.75, 3.5):
        code += size >= from_
    return code | (x < 0).to(torch.uint8) << 3


def e2m1_values(codes: torch.Tensor) -> torch.Tensor:
    """The float32 values of four-bit E2M1 codes."""
    table = torch.tensor(_E2M1_VALUES + tuple(-v for v in _E2M1_VALUES), device=codes.device)
    return table[codes.long()]


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Packs four-bit codes [rows, columns] into uint8 [rows, columns / 2], the even column in the low half."""
    return (codes[:, 0::2] | codes[:, 1::2] << 4).contiguous()


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_nibbles`."""
    return torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2)


def groups(name: str, block: torch.Tensor, size: int, format_name: str) -> torch.Tensor:
    """Reshapes [rows, columns] to [rows, columns / size, size]. Raises ValueError if `size` does not divide columns."""
    rows, columns = block.shape
    if columns % size:
        raise ValueError(
            f"{name}: {format_name} needs a multiple of {size} columns, this has {columns}; ignore the layer"
        )
    return block.reshape(rows, columns // size, size)
