"""The seam between the tasks and whatever turns a window of audio into text.

Two engines stand behind it: `workers.engine` (vLLM) and `workers.standin` (a fake for load tests, which says so).
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from workers.messages import Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: What Whisper was trained on: 30 s of 16 kHz mono.
SAMPLE_RATE_HZ = 16_000
WINDOW_SECONDS = 30
WINDOW_SAMPLES = SAMPLE_RATE_HZ * WINDOW_SECONDS
#: A window that is not urgent lets urgent ones go before it for so long, and no longer: however many come, it has its
#: turn long before it has waited ``request_timeout_seconds``.
HEAD_START_SECONDS = 60


@dataclass(frozen=True, slots=True)
class WindowRequest:
    """One window of audio and how to decode it.

    ``samples``: float32[n], 0 < n <= 480 000, 16 kHz mono in [-1, 1]. ``language``: a Whisper code, None to detect.
    ``pauses``: stretches, in seconds from the window's start, in which a timestamp is likelier than the model thinks.
    ``urgent``: joins the engine's batch before those that are not (`turn_s`): a call's, for which somebody waits, or a
    later hearing, for which a row does.
    """

    samples: NDArray[np.float32]
    task: Task
    language: str | None = None
    timestamps: bool = False
    temperature: float = 0.0
    seed: int | None = None
    prompt: str | None = None
    pauses: tuple[tuple[float, float], ...] = ()
    urgent: bool = False


def turn_s(urgent: bool, came_s: float) -> float:
    """When it is the turn of a window that came at ``came_s``, by the same clock: who has the lowest is next."""
    return came_s - HEAD_START_SECONDS if urgent else came_s


@dataclass(frozen=True, slots=True)
class WindowSegment:
    """A stretch of text with its times in seconds from the start of the window."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class WindowResult:
    """A window's text and its quality figures (names as in faster-whisper)."""

    text: str
    language: str
    language_probability: float
    no_speech_prob: float
    avg_logprob: float
    compression_ratio: float
    temperature: float
    segments: tuple[WindowSegment, ...] = ()
    flags: tuple[str, ...] = ()
    #: How often the window was decoded.
    attempts: int = 1
    #: Where the last segment has no end: text and segments up to the last one that has. Of a loop that was stopped
    #: before any had one, nothing; of other texts None then.
    whole: tuple[str, tuple[WindowSegment, ...]] | None = None
    #: Whether the model ended its text: not if its tokens ran out, or if it was stopped in a loop.
    finished: bool = True


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the loaded model is and can do."""

    model: str
    revision: str
    device: str
    version: str
    tasks: tuple[Task, ...]
    languages: tuple[str, ...]
    max_num_seqs: int
    #: What a caller may have asked for by name: devices that share the engine, most text tokens of a window.
    tensor_parallel_size: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine is. ``running``: windows in its batch; ``waiting``: beyond what the batch holds.

    ``busy_seconds``: how long it has had any window; ``full_seconds``: how long enough of them to fill its batch.
    """

    running: int = 0
    waiting: int = 0
    busy_seconds: float = 0.0
    full_seconds: float = 0.0


class Engine(Protocol):
    """Decodes windows. Every method may be called from any thread."""

    @property
    def facts(self) -> EngineFacts:
        """What the loaded model is and can do."""

    def submit(self, request: WindowRequest) -> Future[WindowResult]:
        """Start one window. The future raises EngineLostError if the engine dies, TranscriptionError if it refuses.

        What it can refuse at once (a prompt that is too long) raises TranscriptionError here. A window without an
        answer within ``request_timeout_seconds`` raises TransientError(``engine_timeout``). Whoever cancels the
        future before it is done gives the window's place in the engine to others.
        """

    def healthy(self) -> bool:
        """Whether the engine can still answer. False before the first window fails because it cannot."""

    def stalled_seconds(self) -> float:
        """How long the windows in flight have shown no sign of progress; 0.0 without any in flight."""

    def load(self) -> EngineLoad:
        """How busy it is now, and was until now."""

    def fail(self, reason: str) -> None:
        """Take the engine for dead: it is not healthy any more, and windows in flight fail with EngineLostError."""

    def close(self) -> None:
        """End the engine and its processes; windows still running fail with EngineLostError."""
