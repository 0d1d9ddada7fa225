"""A segment's checksum promises: the formula, wherever the segment lies, and another value for any change."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verst.sync.layout.plan import ALIGN
from verst.sync.wire.checksum import segment_checksums

WRAP = 1 << 64


def by_hand(segment: bytes) -> int:
    total = 0
    for row in range(len(segment) // ALIGN):
        words = memoryview(segment[row * ALIGN : (row + 1) * ALIGN]).cast("i")
        row_sum = sum(w * ((j * 0x9E3779B1 & 0xFFFFFFFF) | 1) for j, w in enumerate(words))
        total += row_sum * (row + 1)
    total %= WRAP
    return total - WRAP if total >= WRAP // 2 else total


def filled(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows * ALIGN,), dtype=torch.uint8, generator=generator)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 3), st.integers(0, 1 << 30))
def test_it_is_the_formula_and_independent_of_the_place(lengths: list[int], gap: int, seed: int) -> None:
    slot = filled(gap + sum(lengths), seed)
    ends = torch.tensor(lengths).cumsum(0) + gap
    rows = torch.stack([ends - torch.tensor(lengths), ends], 1)
    expected = [by_hand(slot[a * ALIGN : b * ALIGN].numpy().tobytes()) for a, b in rows.tolist()]
    assert segment_checksums(slot, rows).tolist() == expected


def test_any_changed_word_and_any_exchanged_rows_or_words_are_seen() -> None:
    slot, rows = filled(3, 5), torch.tensor([[0, 3]])
    right = segment_checksums(slot, rows)
    for place in range(0, 3 * ALIGN, 997):
        changed = slot.clone()
        changed[place] ^= 1 << (place % 8)
        assert segment_checksums(changed, rows) != right
    rolled_words = slot.view(torch.int32).roll(1).view(torch.uint8)
    rolled_rows = slot.view(3, ALIGN).roll(1, 0).flatten()
    assert segment_checksums(rolled_words, rows) != right
    assert segment_checksums(rolled_rows, rows) != right
