"""Recordings as long as wanted: the repository's speech samples in a fixed order, with pauses, over and over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from benchmarks.corpus import REPOSITORY
from workers.audio import SAMPLE_RATE_HZ

Floats = npt.NDArray[np.float32]

SAMPLES = REPOSITORY / "tests" / "samples" / "audio"
#: What is repeated. Longer than any window, short enough to be encoded in a second or two.
PATTERN_SECONDS = 100
#: Pauses between two samples are drawn between these.
PAUSE_SECONDS = (0.3, 4.0)
#: Lossy formats are stereo at this rate, as music players and phones write them; flac is 16 kHz mono.
LOSSY_RATE_HZ = 44_100
#: Ending -> encoder and its options, the quick ones. Without a bit reservoir every MP3 frame stands alone: a repeat
#: leaves no gap.
LOSSY = {
    "mp3": ("libmp3lame", {"reservoir": "0", "compression_level": "9"}),
    "m4a": ("aac", {"aac_coder": "fast"}),
}
FORMATS = ("flac", *LOSSY)


def write_recording(path: Path, seconds: float) -> None:
    """Write ``seconds`` of speech and pauses to ``path``, whose ending decides the format. Holds one pattern in memory.

    Raises ValueError for an ending that is not in FORMATS.
    """
    ending = path.suffix.removeprefix(".")
    if ending not in FORMATS:
        raise ValueError(f"{path.name}: the format must be one of {', '.join(FORMATS)}")
    if ending in LOSSY:
        _write_lossy(path, seconds, ending)
        return
    pattern = speech_pattern()
    left = round(seconds * SAMPLE_RATE_HZ)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, 1) as sound:
        while left > 0:
            sound.write(pattern[:left])
            left -= pattern.size


def speech_pattern() -> Floats:
    """PATTERN_SECONDS of speech with pauses: float32[n], 16 kHz mono."""
    random = np.random.default_rng(1)
    spoken = [path for path in sorted(SAMPLES.iterdir()) if path.stem != "silence"]
    parts: list[Floats] = []
    wanted = PATTERN_SECONDS * SAMPLE_RATE_HZ
    while sum(part.size for part in parts) < wanted:
        samples, rate_hz = soundfile.read(spoken[random.integers(len(spoken))], dtype="float32")
        pause = np.zeros(round(random.uniform(*PAUSE_SECONDS) * SAMPLE_RATE_HZ), dtype=np.float32)
        parts += [soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ), pause]
    return np.concatenate(parts)[:wanted]


def _write_lossy(path: Path, seconds: float, ending: str) -> None:
    """The pattern is encoded once and its packets are repeated: to encode six hours would take half an hour."""
    codec, options = LOSSY[ending]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=LOSSY_RATE_HZ, layout="stereo", options=options)
        stream.codec_context.format = "fltp"
        packets = [(bytes(packet), packet.duration) for packet in _encoded(stream)]
        position, end = 0, round(seconds * LOSSY_RATE_HZ)
        while position < end:
            for content, duration in packets:
                if position >= end:
                    break
                packet = av.Packet(content)
                packet.stream, packet.is_keyframe = stream, True
                packet.pts = packet.dts = position
                packet.duration = duration
                container.mux(packet)
                position += duration


def _encoded(stream: Any) -> Iterator[Any]:
    one = soxr.resample(speech_pattern(), SAMPLE_RATE_HZ, LOSSY_RATE_HZ)
    both = np.stack([one, one / 2])  # the channels differ, or an encoder would store one
    stream.codec_context.open()  # it has its frame size only then
    step = stream.codec_context.frame_size
    for start in range(0, one.size, step):
        samples = np.ascontiguousarray(both[:, start : start + step])
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.rate, frame.pts = LOSSY_RATE_HZ, start
        yield from stream.encode(frame)
    yield from stream.encode(None)
