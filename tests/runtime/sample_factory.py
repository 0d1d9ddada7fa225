"""Makes valid samples and groups for tests of what carries them."""

from __future__ import annotations

import numpy as np

from verst.runtime.messages.sample import Group, Sample


def make_sample(
    group: int, index: int, prompt: int = 3, response: int = 5, routing: tuple[int, int] | None = (2, 2)
) -> Sample:
    """A sample whose contents depend on its place, so that a mix-up shows."""
    random = np.random.default_rng([group % 2**32, index])  # demonstrations are numbered below zero
    return Sample(
        group=group,
        index=index,
        prompt_ids=random.integers(0, 1000, prompt, dtype=np.int32),
        response_ids=random.integers(0, 1000, response, dtype=np.int32),
        logprobs=-random.random(response, dtype=np.float32),
        loss_mask=np.ones(response, np.uint8),
        weight_versions=np.full(response, 3, np.int32),
        reward=float(index % 2),
        finish="stop",
        routing=None
        if routing is None
        else random.integers(0, 8, (prompt + response - 1, *routing), dtype=np.uint8),
        signals={"temperature": random.uniform(0.3, 1.3, response).astype(np.float32)},
        metadata={"text": f"answer {index}"},
    )


def make_group(id: int, samples: int = 4, **shape) -> Group:
    """A valid group of `samples` samples."""
    return Group(id=id, samples=[make_sample(id, i, **shape) for i in range(samples)])


def assert_equal_groups(left: Group, right: Group) -> None:
    """Every field of every sample, array for array."""
    assert left.id == right.id
    assert len(left.samples) == len(right.samples)
    for a, b in zip(left.samples, right.samples, strict=True):
        for field in Sample.__struct_fields__:
            x, y = getattr(a, field), getattr(b, field)
            if field == "signals":
                assert x.keys() == y.keys()
                for name in x:
                    assert x[name].dtype == y[name].dtype
                    np.testing.assert_array_equal(x[name], y[name])
            elif isinstance(x, np.ndarray):
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x, y)
            else:
                assert x == y
