"""Recordings that are made for a benchmark are what they are said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.recordings import FORMATS, PATTERN_SECONDS, write_recording
from workers.audio import SAMPLE_RATE_HZ, AudioLimits
from workers.audio_decode import open_audio


@pytest.mark.parametrize("ending", FORMATS)
def test_recording_is_as_long_as_asked_for_and_full_of_sound(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"made.{ending}"

    write_recording(path, 1.5 * PATTERN_SECONDS)

    blocks = list(open_audio(str(path), AudioLimits()))
    assert sum(block.size for block in blocks) / SAMPLE_RATE_HZ == pytest.approx(1.5 * PATTERN_SECONDS, abs=0.2)
    assert min(float(np.abs(block).max()) for block in blocks if block.size > SAMPLE_RATE_HZ) > 0.1


def test_format_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"made\.wma: the format must be one of flac, mp3, m4a"):
        write_recording(tmp_path / "made.wma", 1.0)
