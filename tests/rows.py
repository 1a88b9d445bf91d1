"""Step files and audio for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

SAMPLES = Path(__file__).parent / "samples"
#: Container and codec that PyAV writes for each suffix that libsndfile cannot.
CODECS = {".m4a": "aac", ".mp4": "aac", ".webm": "libopus", ".wma": "wmav2", ".opus": "libopus", ".ts": "aac"}


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a step file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def convert(source: Path, target: Path) -> Path:
    """``source`` in the format that ``target``'s suffix names."""
    if target.suffix not in CODECS:
        samples, rate = soundfile.read(source)
        soundfile.write(target, samples, rate)
        return target
    samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    mono = np.ascontiguousarray(samples.mean(axis=1)[None])
    with av.open(str(target), "w", format="asf" if target.suffix == ".wma" else None) as container:
        stream = container.add_stream(CODECS[target.suffix], rate=48_000)
        stream.layout = "mono"
        stream.bit_rate = 64_000
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=48_000)
        frame = av.AudioFrame.from_ndarray(mono, format="fltp", layout="mono")
        frame.sample_rate = rate
        fifo = av.AudioFifo()
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            fifo.write(part)
        size = stream.codec_context.frame_size or 1024
        while (chunk := fifo.read(size, partial=True)) is not None:
            for packet in stream.encode(chunk):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return target
