"""Deltas lead from one tensor's bits to another's, whatever they are; another base and any damage are refused."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verst.sync.files.shard_file import DTYPES
from verst.sync.files.tensor_checksum import checksum, tensor_bytes
from verst.sync.versions.delta import DamagedDelta, Delta, apply, encode


def random_bits(numel: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Any bits: NaNs with any payload among them."""
    generator = torch.Generator().manual_seed(seed)
    high = 2 if dtype == torch.bool else 256
    size = numel * dtype.itemsize
    return torch.randint(0, high, (size,), dtype=torch.uint8, generator=generator).view(dtype)


@settings(max_examples=150)
@given(
    dtype=st.sampled_from(sorted(DTYPES, key=str)),
    numel=st.integers(0, 700),
    fraction=st.sampled_from([0.0, 0.002, 0.05, 0.4, 1.0]),
    seed=st.integers(0, 1 << 20),
)
def test_a_delta_leads_to_the_new_bits(dtype, numel, fraction, seed):
    old = random_bits(numel, dtype, seed)
    other = random_bits(numel, dtype, seed + 1)
    where = torch.rand(numel, generator=torch.Generator().manual_seed(seed)) < fraction
    spread = where.repeat_interleave(dtype.itemsize)
    new = torch.where(spread, other.view(torch.uint8), old.view(torch.uint8)).view(dtype)
    shape = (numel // 7, 7) if numel % 7 == 0 else (numel,)
    old, new = old.view(shape), new.view(shape)
    kept = bytes(tensor_bytes(old))
    delta = Delta.from_bytes(encode(old, new).to_bytes())
    made = apply(old, delta)
    assert (made.dtype, made.shape) == (new.dtype, new.shape)
    assert tensor_bytes(made) == tensor_bytes(new)
    assert tensor_bytes(old) == kept
    assert delta.nbytes <= new.nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_bits_that_compare_equal_or_unequal_to_themselves(dtype):
    """-0.0 == 0.0 and NaN != NaN are no use to a delta."""
    old = torch.zeros(1000).to(dtype)
    new = old.clone()
    new[5] = -0.0
    new[77] = float("nan")
    delta = encode(old, new)
    assert delta.count == 2
    assert tensor_bytes(apply(old, delta)) == tensor_bytes(new)
    assert encode(new, new).kind == "same"


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 65535, 65536, 70000])
def test_gaps_of_every_width(gap):
    old = torch.zeros(gap + 3, dtype=torch.bfloat16)
    new = old.clone()
    new[0] = 1
    new[gap + 1] = 2
    delta = encode(old, new)
    assert torch.equal(apply(old, delta), new)


def test_the_smaller_form_is_chosen():
    old = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    few = old.view(torch.int16).clone()
    few[::50] += 1
    delta = encode(old, few.view(torch.bfloat16))
    assert delta.kind == "changes"
    assert delta.nbytes < old.nbytes / 50
    delta = encode(old, -old)
    assert delta.kind == "whole"
    assert delta.nbytes == old.nbytes


def test_another_base_is_refused():
    old = torch.randn(64, 64).bfloat16()
    new = old.clone()
    new[3, 3] += 1
    delta = encode(old, new)
    with pytest.raises(
        ValueError, match=f"starts from {checksum(old)}, the tensor at hand is {checksum(new)}"
    ):
        apply(new, delta)
    with pytest.raises(ValueError, match=r"of BF16 \(64, 64\), not of F32 \(64, 64\)"):
        apply(old.float(), delta)
    with pytest.raises(ValueError, match="not of BF16"):
        apply(old.view(4096), delta)
    with pytest.raises(ValueError, match="send it whole"):
        encode(old, new.float())


@settings(max_examples=100)
@given(at=st.integers(0, 10_000), value=st.integers(0, 255), fraction=st.sampled_from([0.01, 1.0]))
def test_no_damage_passes(at, value, fraction):
    """A byte of the payload changed, or some cut off: an error, or by luck the same result; never another one."""
    old = random_bits(3000, torch.bfloat16, 1)
    where = torch.rand(3000, generator=torch.Generator().manual_seed(2)) < fraction
    new = torch.where(where, random_bits(3000, torch.bfloat16, 3), old)
    delta = encode(old, new)
    payload = bytearray(delta.payload)
    payload[at % len(payload)] = value
    cut = bytes(delta.payload)[: at % len(payload)]
    for broken in (bytes(payload), cut, delta.payload + b"\0"):
        with contextlib.suppress(DamagedDelta):
            made = apply(old, msgspec.structs.replace(delta, payload=broken))
            assert tensor_bytes(made) == tensor_bytes(new)


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"count": -1}, {"count": 1 << 40}, {"width": 3}, {"width": 8}, {"packed": False}]
)
def test_wrong_numbers_are_refused(wrong):
    old = torch.zeros(4000, dtype=torch.bfloat16)
    new = old.clone()
    new[::9] = 1
    delta = encode(old, new)
    with pytest.raises(ValueError, match="this delta is damaged"):
        apply(old, msgspec.structs.replace(delta, **wrong))


def test_what_is_no_delta_is_refused():
    for data in (b"", b"\x00", b"hello", msgspec.msgpack.encode({"kind": "half"})):
        with pytest.raises(ValueError, match="not a delta"):
            Delta.from_bytes(data)
