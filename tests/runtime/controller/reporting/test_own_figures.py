"""Numbers that a user's hook puts into a sample's metadata become figures of the step, as means over samples."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.controller.reporting.test_numbers import a_step
from tests.runtime.controller.reporting.test_numbers import group as plain
from verst.runtime.messages.sample import Group, Sample, decode_group, encode_group


def sample(group: int, index: int, **metadata) -> Sample:
    return Sample(
        group=group, index=index, prompt_ids=np.ones(2, np.int32), response_ids=np.ones(3, np.int32),
        logprobs=np.zeros(3, np.float32), loss_mask=np.ones(3, np.uint8), weight_versions=np.zeros(3, np.int32),
        reward=1.0, finish="stop", signals={"temperature": np.ones(3, np.float32)}, metadata=metadata,
    )  # fmt: skip


def test_they_are_means_over_the_samples_that_have_them():
    one = Group(
        id=0, samples=[sample(0, 0, figures={"tools": 1, "format": 0.5}), sample(0, 1, figures={"tools": 2})]
    )
    other = Group(id=1, samples=[sample(1, 0, figures={"tools": 6}), sample(1, 1)])
    metas = [decode_group(encode_group(group)).meta(0) for group in (one, other)]  # as the journal has them
    line = a_step([*metas, plain(2, [0.0, 1.0])])
    assert line["own"] == {"format": 0.5, "tools": 3.0}
    assert "own" not in a_step([plain(2, [0.0, 1.0])])


@pytest.mark.parametrize("figures", [{"tools": "many"}, {"tools": float("nan")}, [1.0], {"tools": None}])
def test_what_is_no_number_is_refused_with_its_name(figures):
    with pytest.raises(ValueError, match=r"sample 0 of group 4: metadata\['figures'\].* is "):
        sample(4, 0, figures=figures).validate()
