"""What crosses the wire arrives equal, and what is malformed is refused with the place named."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tests.runtime.sample_factory import assert_equal_groups, make_group, make_sample
from verst.runtime.actors.codec import decode, encode
from verst.runtime.messages.sample import decode_group, encode_group


@given(
    npst.arrays(
        npst.integer_dtypes() | npst.floating_dtypes() | npst.boolean_dtypes(),
        npst.array_shapes(min_dims=0, min_side=0),
    )
)
def test_any_array_round_trips(array):
    back = decode(np.ndarray, encode(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_array_memory_is_not_copied():
    array = np.arange(1000, dtype=np.float32)
    buffers = encode({"a": array})
    assert np.shares_memory(np.frombuffer(buffers[1], np.float32), array)
    assert np.shares_memory(decode(dict[str, np.ndarray], buffers)["a"], array)


def test_objects_and_object_arrays_are_refused():
    with pytest.raises(TypeError, match="use bool, int or float"):
        encode(np.array([object()]))
    with pytest.raises(TypeError, match="cannot encode a"):
        encode(object())


@given(st.binary(max_size=200))
def test_random_bytes_never_do_more_than_raise_a_validation_error(data):
    with pytest.raises((msgspec.DecodeError, ValueError)):
        decode_group([data])


def test_types_that_cannot_be_hashed_are_types_too():
    even = Annotated[int, msgspec.Meta(multiple_of=2), {"why": "halves"}]
    with pytest.raises(TypeError):
        hash(even)
    assert decode(even, encode(4)) == 4
    with pytest.raises(msgspec.ValidationError, match="multiple of 2"):
        decode(even, encode(3))


def test_a_header_that_lies_about_the_size_is_refused():
    head, body = encode(np.arange(4, dtype=np.int64))
    with pytest.raises(msgspec.ValidationError, match="needs 32 bytes, got 31"):
        decode(np.ndarray, [head, memoryview(body)[:31]])


def test_group_round_trips_and_meta_describes_it():
    group = make_group(7, samples=3)
    back = decode_group(encode_group(group))
    assert_equal_groups(back, group)
    meta = back.meta(shard=2)
    assert (meta.id, meta.shard, meta.lengths, meta.rewards) == (7, 2, [8, 8, 8], [0.0, 1.0, 0.0])
    assert meta.oldest_version == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": float("nan")}, "reward is nan"),
        ({"logprobs": np.zeros(4, np.float32)}, "logprobs has 4 entries for 5 response tokens"),
        ({"loss_mask": np.ones(5, np.int64)}, "loss_mask is int64"),
        ({"routing": np.zeros((6, 2, 2), np.uint8)}, "routing covers 6 tokens, not 7"),
        ({"logprobs": np.full(5, -np.inf, np.float32)}, "logprobs has -inf at token 0, not a finite number"),
        ({"logprobs": np.array([0, -1, 0.01, 0, 0], np.float32)}, "logprobs has 0.0\\d+ at token 2, above 0"),
        ({"loss_mask": np.array([0, 1, 1, 2, 0], np.uint8)}, "loss_mask has 2 at token 3, neither 0 nor 1"),
        ({"prompt_ids": np.array([4, -1, 5], np.int32)}, "prompt_ids has -1 at token 1, no token id"),
        ({"response_ids": np.full(5, -7, np.int32)}, "response_ids has -7 at token 0, no token id"),
        ({"weight_versions": np.full(5, -1, np.int32)}, "weight_versions has -1 at token 0"),
        ({"signals": {}}, "signals has no 'temperature'"),
        ({"signals": {"temperature": np.ones(4, np.float32)}}, r"is float32 \[4\], not float32 \[5\]"),
        ({"signals": {"temperature": np.full(5, np.nan, np.float32)}}, "value that is not finite"),
        (
            {"signals": {"temperature": np.ones(5, np.float32), "old_logprobs": np.ones(5, np.float32)}},
            "signals has 'old_logprobs', which Verst itself makes: use another name",
        ),
        (
            {"signals": {"temperature": np.array([1, 1, 0, 1, 1], np.float32)}},
            "signals\\['temperature'\\] is 0.0 for response token 2, .* greedy tokens have no policy gradient",
        ),
    ],
)
def test_a_broken_sample_is_named(change, message):
    with pytest.raises(ValueError, match=f"sample 1 of group 4: .*{message}"):
        msgspec.structs.replace(make_sample(4, 1), **change).validate()


def test_tokens_that_are_not_trained_on_need_no_temperature():
    sample = make_sample(4, 1)
    greedy = {"temperature": np.array([1, 1, 0, 1, 1], np.float32)}
    mask = np.array([1, 1, 0, 1, 1], np.uint8)
    msgspec.structs.replace(sample, signals=greedy, loss_mask=mask).validate()
    msgspec.structs.replace(sample, signals=greedy).validate(trained=False)
    msgspec.structs.replace(sample, signals={}, loss_mask=mask * 0).validate()


def test_a_log_probability_that_was_rounded_to_just_above_zero_is_right():
    msgspec.structs.replace(make_sample(4, 1), logprobs=np.full(5, 5e-5, np.float32)).validate()
