"""Speech or not, 31 times a second: Silero's model, fed as the audio comes.

The model takes any number of frames in one call, 30 times faster than the one-frame-per-call builds (`workers.silero`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from workers.audio import FRAME_SAMPLES
from workers.silero import CONTEXT_SAMPLES, Floats, model_bytes

#: Size of each of the model's two state vectors.
STATE_SIZE = 128
#: Most frames per call: a bound on memory, ten minutes of audio.
BATCH_FRAMES = 18_750


@cache
def _session() -> Any:
    import onnxruntime  # heavy, and only decode processes need it

    onnxruntime.disable_telemetry_events()  # nothing of a recording's transcription is for others
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1  # one decode process per core: more threads would only fight
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # the arena never gives memory back
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model_bytes(), options, providers=["CPUExecutionProvider"])


class VoiceActivity:
    """Speech probabilities of one recording, block by block. The state carries over: one object per recording."""

    def __init__(self) -> None:
        self._session = _session()
        self._h = np.zeros((1, 1, STATE_SIZE), dtype=np.float32)
        self._c = np.zeros((1, 1, STATE_SIZE), dtype=np.float32)
        # The context of the next frame, then the samples that do not fill a frame yet.
        self._pending: Floats = np.zeros(CONTEXT_SAMPLES, dtype=np.float32)

    def probabilities(self, block: Floats) -> Floats:
        """float32[n] samples (16 kHz, mono) to float32[k], one speech probability for each frame that is now full.

        A frame is 512 samples (32 ms); fewer than 512 samples wait for the next call.
        """
        samples = np.concatenate((self._pending, np.asarray(block, dtype=np.float32)))
        frames = (samples.size - CONTEXT_SAMPLES) // FRAME_SAMPLES
        if frames == 0:
            self._pending = samples
            return np.zeros(0, dtype=np.float32)
        # Each row is a frame with the end of the frame before it: rows overlap, so this is a view and not a copy.
        rows = np.lib.stride_tricks.sliding_window_view(samples, CONTEXT_SAMPLES + FRAME_SAMPLES)[::FRAME_SAMPLES]
        found = [self._run(rows[first : first + BATCH_FRAMES]) for first in range(0, frames, BATCH_FRAMES)]
        self._pending = samples[frames * FRAME_SAMPLES :].copy()
        return np.concatenate(found)

    def finish(self) -> Floats:
        """The probability of the last, partial frame, padded with zeros: float32[1], or float32[0] without one."""
        missing = -(self._pending.size - CONTEXT_SAMPLES) % FRAME_SAMPLES
        return self.probabilities(np.zeros(missing, dtype=np.float32))

    def _run(self, rows: Floats) -> Floats:
        feed = {"input": np.ascontiguousarray(rows), "h": self._h, "c": self._c}
        speech, self._h, self._c = self._session.run(None, feed)
        return np.asarray(speech, dtype=np.float32).reshape(-1)
