"""Full windows of speech: the repository's samples, end to end, in files of exactly 30 s."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr

from benchmarks.recordings import SAMPLES
from workers.interface import SAMPLE_RATE_HZ, WINDOW_SAMPLES

#: More than one, so that nothing between file and engine can remember an answer.
CLIPS = 16
#: Silence between two samples: shorter than what would end a window.
PAUSE_SECONDS = 0.2


def write_clips(folder: Path, clips: int = CLIPS) -> tuple[str, ...]:
    """So many different recordings of 30 s of speech (FLAC, 16 kHz, mono): their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    pause = np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE_HZ), dtype=np.float32)
    spoken = []
    for path in sorted(SAMPLES.iterdir()):
        if path.stem != "silence":
            samples, rate_hz = soundfile.read(path, dtype="float32")
            spoken.append(np.concatenate((soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ), pause)))
    paths = []
    for number in range(clips):
        order = random.permutation(len(spoken))
        samples = np.concatenate([spoken[one] for one in order])
        path = folder / f"clip{number}.flac"
        soundfile.write(path, np.resize(samples, WINDOW_SAMPLES), SAMPLE_RATE_HZ)
        paths.append(str(path))
    return tuple(paths)
