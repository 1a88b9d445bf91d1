"""Our log-mel features are those of Hugging Face's extractor, whatever a window's length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from workers.interface import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from workers.log_mel import FRAMES, HOP_SAMPLES, LogMel
from workers.vllm_requests import MOST_DIFFERENCE

#: float32 sums in another order.
ROUNDING = 5e-6


def extractor(bands: int) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=bands)


EXTRACTORS = {bands: extractor(bands) for bands in (80, 128)}
OURS = {bands: LogMel(one.mel_filters) for bands, one in EXTRACTORS.items()}


def theirs(samples: Any, bands: int) -> torch.Tensor:
    padded = EXTRACTORS[bands](samples, sampling_rate=SAMPLE_RATE_HZ, truncation=True, return_tensors="pt")
    found: torch.Tensor = padded["input_features"][0]
    return found


@settings(max_examples=40)
@given(
    count=st.integers(1, 5_000)
    | st.integers(WINDOW_SAMPLES - 3 * HOP_SAMPLES, WINDOW_SAMPLES)
    | st.integers(1, WINDOW_SAMPLES),
    loudness=st.sampled_from([0.0, 1e-6, 0.01, 1.0]),
    bands=st.sampled_from([80, 128]),
    seed=st.integers(0, 99),
)
@example(count=1, loudness=1.0, bands=80, seed=0)
@example(count=199, loudness=1.0, bands=80, seed=0)  # shorter than what is mirrored
@example(count=200, loudness=1.0, bands=80, seed=0)
@example(count=201, loudness=1.0, bands=80, seed=0)
@example(count=WINDOW_SAMPLES - 41, loudness=1.0, bands=128, seed=0)  # the last frame hears the mirror
@example(count=WINDOW_SAMPLES - 1, loudness=1.0, bands=128, seed=0)
@example(count=WINDOW_SAMPLES, loudness=1.0, bands=128, seed=0)
def test_features_are_those_of_the_extractor(count: int, loudness: float, bands: int, seed: int) -> None:
    samples = (np.random.default_rng(seed).normal(0, 1, count) * loudness).astype(np.float32)

    found = OURS[bands](samples)

    assert (found.shape, found.dtype) == ((bands, FRAMES), torch.float32)
    assert found.is_contiguous()
    torch.testing.assert_close(found, theirs(samples, bands), rtol=0, atol=ROUNDING)


def test_a_loud_second_before_silence_and_a_quiet_one() -> None:
    """What is far below the loudest is cut off, over the padding too."""
    line = np.sin(np.arange(3 * SAMPLE_RATE_HZ) / 5).astype(np.float32)
    line[SAMPLE_RATE_HZ : 2 * SAMPLE_RATE_HZ] = 0
    line[2 * SAMPLE_RATE_HZ :] *= 1e-7

    for samples in (line, line * 1e-5):
        torch.testing.assert_close(OURS[80](samples), theirs(samples, 80), rtol=0, atol=ROUNDING)


def test_samples_are_left_as_they_are() -> None:
    samples = np.ones(1000, dtype=np.float32)

    OURS[80](samples)

    assert (samples == 1).all()


def test_filters_of_another_transform_are_refused() -> None:
    with pytest.raises(ValueError, match="201 energies by mel bands"):
        LogMel(np.ones((257, 80), dtype=np.float32))
    assert ROUNDING < MOST_DIFFERENCE
