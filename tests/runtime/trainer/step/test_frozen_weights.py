"""Weights that are kept fixed are taken again without more memory, and change places with the model's."""

from __future__ import annotations

import torch

from verst.runtime.trainer.step.frozen_weights import FrozenWeights


def test_a_refreshed_copy_is_of_the_present_weights_and_takes_no_more_memory() -> None:
    model = torch.nn.Linear(3, 2)
    frozen = FrozenWeights("reference", [model])
    assert not frozen.taken
    frozen.take()
    first, places = [c.clone() for c in frozen.copies], [c.data_ptr() for c in frozen.copies]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    with frozen.in_place():
        assert all(p.equal(c) for p, c in zip(model.parameters(), first, strict=True))
    frozen.take()
    assert all(c.equal(p) for c, p in zip(frozen.copies, model.parameters(), strict=True))
    assert [c.data_ptr() for c in frozen.copies] == places
    assert not any(c.requires_grad for c in frozen.copies)
