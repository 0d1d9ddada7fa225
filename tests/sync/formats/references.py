"""The formats once more, slowly, from their specifications: number by number in numpy's float32 and Python.

Shares no code with `verst.sync.formats` and works differently where it can: values are looked up among all that
a type has, exponents come from `math.frexp`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import pairwise

import numpy as np
import torch

f32 = np.float32

# Positive values by code. E4M3FN: four exponent bits of bias 7, three of mantissa, code 127 a NaN.
E4M3 = [m * 2.0**-9 for m in range(8)] + [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)][
    :-1
]
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
assert E4M3[-1] == 448
assert all(a < b for a, b in pairwise(E4M3))


def nearest(value: float, table: list[float]) -> int:
    """The code of the value in a table that is nearest to |value|, ties to the even code."""
    size = abs(float(value))
    above = bisect_left(table, size)
    if above == len(table):
        return len(table) - 1
    if above == 0:
        return 0
    down, up = size - table[above - 1], table[above] - size
    return above if up < down or (up == down and above % 2 == 0) else above - 1


def e4m3_byte(value: float) -> int:
    """The byte of the nearest E4M3 value; a negative zero keeps its sign."""
    return nearest(value, E4M3) | (0x80 if math.copysign(1, float(value)) < 0 else 0)


def up_to_power_of_two(value: float) -> int:
    """The least n with 2^n >= value, not below -126."""
    mantissa, exponent = math.frexp(float(value))
    return max(-126, exponent - 1 if mantissa == 0.5 else exponent)


def as_float32(x: torch.Tensor) -> np.ndarray:
    return x.float().numpy()


def fp8(x: torch.Tensor, block: tuple[int, int], ue8m0: bool) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of the weight and the scales."""
    a = as_float32(x)
    rows, columns = a.shape
    weight = np.zeros(a.shape, np.uint8)
    scales = np.zeros((-(-rows // block[0]), -(-columns // block[1])), f32)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            where = np.s_[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            amax = max(abs(v) for v in a[where].flat)
            scale = f32(amax) / f32(448)
            if ue8m0:
                scale = f32(2.0 ** up_to_power_of_two(scale))
            if amax == 0:
                scale = f32(1)
            scale = max(scale, f32(2.0**-126))
            scales[i, j] = scale
            weight[where] = np.reshape([e4m3_byte(v / scale) for v in a[where].flat], a[where].shape)
    return weight, scales


def mxfp8(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of the weight and of the scales."""
    a = as_float32(x)
    weight = np.zeros(a.shape, np.uint8)
    scales = np.zeros((a.shape[0], a.shape[1] // 32), np.uint8)
    for i, j in np.ndindex(scales.shape):
        group = a[i, 32 * j : 32 * j + 32]
        amax = max(abs(v) for v in group)
        power = up_to_power_of_two(f32(amax) / f32(448))
        scales[i, j] = 0 if amax == 0 else power + 127
        weight[i, 32 * j : 32 * j + 32] = [e4m3_byte(v / f32(2.0**power)) for v in group]
    return weight, scales


def nvfp4(x: torch.Tensor, amax: float) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """Packed bytes, bytes of the scales, outer scale."""
    a = as_float32(x)
    outer = max(f32(amax) / f32(2688), f32(2.0**-126)) if amax else f32(1)
    packed = np.zeros((a.shape[0], a.shape[1] // 2), np.uint8)
    scales = np.zeros((a.shape[0], a.shape[1] // 16), np.uint8)
    for i, j in np.ndindex(scales.shape):
        group = a[i, 16 * j : 16 * j + 16]
        largest = max(abs(v) for v in group)
        code = nearest(f32(largest) / f32(outer * f32(6)), E4M3) if largest else nearest(1, E4M3)
        code = max(code, 1)
        scales[i, j] = code
        scale = f32(f32(E4M3[code]) * outer)
        codes = [nearest(v / scale, E2M1) | (8 if v < 0 else 0) for v in group]
        packed[i, 8 * j : 8 * j + 8] = [codes[2 * k] + 16 * codes[2 * k + 1] for k in range(8)]
    return packed, scales, outer


def int4(x: torch.Tensor, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Packed int32 and the scales, which bfloat16 holds exactly, in float32."""
    a = as_float32(x)
    packed = np.zeros((a.shape[0], a.shape[1] // 8), np.int64)
    scales = np.zeros((a.shape[0], a.shape[1] // group), f32)
    for i, j in np.ndindex(scales.shape):
        largest = max(abs(v) for v in a[i, group * j : group * (j + 1)])
        scales[i, j] = to_bfloat16(f32(largest) / f32(7)) if largest else f32(1)
    for i, k in np.ndindex(a.shape):
        scale = scales[i, k // group]
        step = min(7, max(-7, round(float(a[i, k] / scale))))  # Python's round: half to even
        packed[i, k // 8] += (step + 8) << (4 * (k % 8))
    return packed.astype(np.uint32).view(np.int32), scales


def to_bfloat16(value: np.float32) -> np.float32:
    """The nearest bfloat16, ties to even, not below the least normal one."""
    bits = int(np.float32(value).view(np.uint32))
    low, bits = bits & 0xFFFF, bits >> 16
    bits += low > 0x8000 or (low == 0x8000 and bits % 2 == 1)
    return max(np.uint32(bits << 16).view(np.float32), f32(2.0**-126))
