"""Where a long recording is cut into spans: at the best pause near each mark. Runs in a decode process.

Marks lie a span apart. Only their neighbourhoods are decoded, each with voice activity that starts afresh, so that the
cuts depend on nothing but the file: whoever reads a recording cuts it at the same places, and reads each span of it
with the same result, alone or as one of many.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import soundfile

from workers.audio import FRAME_SAMPLES, SAMPLE_RATE_HZ
from workers.audio_decode import UNKNOWN_FRAMES, decoded
from workers.audio_source import LocalFile
from workers.decode_job import DecodeJob, FaultError
from workers.errors import TranscriptionError
from workers.ffmpeg import told_seconds
from workers.joined import is_joined
from workers.quiet import may_raise, raised
from workers.source_errors import SCHEME
from workers.urls import WEB_SCHEMES
from workers.voice_activity import VoiceActivity

#: A cut is no farther from its mark; with short spans a quarter of a span.
NEAR_SECONDS = 15.0
#: Voice activity hears so much before the first place for a cut.
WARM_UP_SECONDS = 5.0
#: Of pauses that last longer the nearest one is best.
LONG_PAUSE_SECONDS = 2.0
#: A frame with a lower speech probability is a pause (Silero: 0.15 below its threshold for speech).
QUIET = 0.35
#: Most spans of a recording, and of one in storage, which every worker has to fetch for itself.
MOST_SPANS = 24
MOST_REMOTE_SPANS = 4
#: No speech codec makes so few bytes: a file that is too small for two spans is not looked into.
LEAST_BYTES_PER_SECOND = 400


def find_cuts(file: LocalFile, job: DecodeJob) -> tuple[float, list[float]]:
    """The length of the stretch ``job.start_s`` to ``job.end_s`` of ``file``, and where it is cut; all in seconds.

    There are no cuts in a short one, and none where the file does not tell how long it is. Raises TranscriptionError
    ``too_long``, and what the decoders raise, but for a place that cannot be decoded: there the mark is the cut.
    """
    span_seconds = job.limits.span_seconds
    if os.fstat(file.descriptor).st_size < LEAST_BYTES_PER_SECOND * span_seconds:
        return 0.0, []
    told_s = _told_seconds(file)
    end_s = min(told_s, job.end_s)
    job.check_length(told_s)
    scheme = SCHEME.match(job.source)
    here = scheme is None or scheme.group(1).lower() in ("file", *WEB_SCHEMES)
    most = MOST_SPANS if here else MOST_REMOTE_SPANS
    cuts: list[float] = []
    for mark in marks(job.start_s, end_s, span_seconds, most):
        cut = _cut_near(file, job, mark)
        if cut is None:  # the file is shorter than it says
            break
        cuts.append(cut)
    return end_s - job.start_s, cuts


def marks(start_s: float, end_s: float, span_seconds: float, most: int) -> list[float]:
    """The marks of a recording from ``start_s`` to ``end_s``: a span apart, the last at least half a span from the end.

    Where that would be more than ``most`` spans, they are longer.
    """
    length = max(span_seconds, (end_s - start_s) / most)
    count = int((end_s - start_s) / length + 0.5)
    return [round(start_s + length * number, 2) for number in range(1, count)]


def best_pause(probabilities: Sequence[float], mark: float) -> float:
    """Where to cut, in frames: the middle of the longest pause; of those that are long, the one nearest to ``mark``.

    Without any pause, the middle of the frame in which speech is least likely. There must be a frame.
    """
    longest = LONG_PAUSE_SECONDS * SAMPLE_RATE_HZ / FRAME_SAMPLES
    pauses: list[tuple[float, float, float]] = []  # length, minus the distance, middle
    start = 0
    while start < len(probabilities):
        end = start
        while end < len(probabilities) and probabilities[end] < QUIET:
            end += 1
        if end > start:
            middle = (start + end) / 2
            pauses.append((min(end - start, longest), -abs(middle - mark), middle))
        start = end + 1
    if pauses:
        return max(pauses)[2]
    return min(range(len(probabilities)), key=lambda frame: (probabilities[frame], abs(frame - mark))) + 0.5


def _cut_near(file: LocalFile, job: DecodeJob, mark: float) -> float | None:
    near = min(NEAR_SECONDS, job.limits.span_seconds / 4)
    start = max(job.start_s, mark - near - WARM_UP_SECONDS)
    part = job.part(start, mark + near)
    try:
        samples = np.concatenate([*decoded(file, part), np.zeros(0, dtype=np.float32)])
    except TranscriptionError as error:
        if error.type != "not_audio":
            raise
        return mark
    skipped = round((mark - near - start) * SAMPLE_RATE_HZ / FRAME_SAMPLES)
    heard = raised(samples) if may_raise(part) else samples
    probabilities = VoiceActivity().probabilities(heard)[skipped:].tolist()
    if not probabilities:
        return None
    frames = skipped + best_pause(probabilities, near * SAMPLE_RATE_HZ / FRAME_SAMPLES)
    # A hundredth of a second is a whole number of samples at the common rates.
    return round(start + frames * FRAME_SAMPLES / SAMPLE_RATE_HZ, 2)


def _told_seconds(file: LocalFile) -> float:
    """How long the file says it is, as those say whose word counts in decoding; 0.0 where nobody does."""
    if is_joined(file.descriptor):
        return 0.0
    try:
        with soundfile.SoundFile(file.path) as sound:
            if sound.format != "MP3":
                return float(sound.frames / sound.samplerate) if 0 < sound.frames < UNKNOWN_FRAMES else 0.0
    except soundfile.LibsndfileError:
        pass
    try:
        return told_seconds(file)
    except (FaultError, TranscriptionError):
        return 0.0
