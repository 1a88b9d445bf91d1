"""Windows that are heard again are not encoded again, and nobody gets another window's encoding."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

pytest.importorskip("torch", reason="torch is not installed (whisper-fleet without an engine)")

import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.encoder_cache import EncoderCache


class Encoder:
    """Notes what it encodes; an encoding is four times the window's first value."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []

    def __call__(self, *, input_features: torch.Tensor) -> Sequence[torch.Tensor]:
        self.batches.append(input_features[:, 0, 0].tolist())
        return input_features[:, 0, :1].float().repeat(1, 4).unbind(0)


def window(value: float, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.full((2, 3), value, dtype=dtype)


def heard(cache: EncoderCache, *values: float) -> list[float]:
    """The first value of each encoding, which is the window's own."""
    encodings = cache(input_features=torch.stack([window(value) for value in values]))
    assert all(encoding.shape == (4,) for encoding in encodings)
    return [float(encoding[0]) for encoding in encodings]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_window_that_comes_again_is_encoded_once(dtype: torch.dtype) -> None:
    encoder = Encoder()
    cache = EncoderCache(encoder, room=8)

    first = cache(input_features=window(1.0, dtype)[None])
    again = cache(input_features=[window(1.0, dtype)])

    assert encoder.batches == [[1.0]]
    assert torch.equal(first[0], again[0])


def test_of_a_batch_only_what_is_new_is_encoded_and_each_gets_its_own() -> None:
    encoder = Encoder()
    cache = EncoderCache(encoder, room=8)
    heard(cache, 1.0, 2.0)

    assert heard(cache, 3.0, 2.0, 3.0, 4.0, 1.0) == [3.0, 2.0, 3.0, 4.0, 1.0]
    assert encoder.batches == [[1.0, 2.0], [3.0, 4.0]]


def test_what_was_asked_for_longest_ago_is_forgotten_first() -> None:
    # Given room for two windows
    encoder = Encoder()
    cache = EncoderCache(encoder, room=2)
    heard(cache, 1.0)
    heard(cache, 2.0)
    heard(cache, 1.0)

    # When a third one comes
    heard(cache, 3.0)

    # Then the first, which was asked for since, is still there, and the second is not
    heard(cache, 1.0)
    assert encoder.batches == [[1.0], [2.0], [3.0]]
    heard(cache, 2.0)
    assert encoder.batches[3:] == [[2.0]]


def test_without_room_every_window_is_encoded_each_time() -> None:
    encoder = Encoder()
    cache = EncoderCache(encoder, room=0)

    assert [heard(cache, 1.0), heard(cache, 1.0)] == [[1.0], [1.0]]
    assert encoder.batches == [[1.0], [1.0]]


def test_what_was_given_stays_as_it_was_and_what_is_kept_lies_in_one_block() -> None:
    # Given an encoding that was kept, and given a second time
    encoder = Encoder()
    cache = EncoderCache(encoder, room=2)
    made = cache(input_features=window(1.0)[None])[0]
    given_again = cache(input_features=window(1.0)[None])[0]

    # When its place goes to others
    heard(cache, 2.0)
    block = cache._block.data_ptr()
    heard(cache, 3.0, 4.0)

    # Then neither has changed, and no new memory was taken
    assert made[0] == given_again[0] == 1.0
    assert cache._block.data_ptr() == block
    assert cache._block.shape == (2, 4)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), max_size=30), st.integers(0, 6))
def test_any_requests_get_their_own_encodings_within_the_room(batches: list[list[int]], room: int) -> None:
    encoder = Encoder()
    cache = EncoderCache(encoder, room)

    for batch in batches:
        assert heard(cache, *map(float, batch)) == batch

    assert len(cache._kept) <= room
    assert len(cache._kept) == min(room, len({value for batch in batches for value in batch}))
