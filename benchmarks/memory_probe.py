"""``python -m benchmarks.memory_probe FILE``: one record's peaks of memory, as JSON. A fresh process for each record.

This process is what a worker is but for the messages: the stand-in engine, one decode process, a `Transcriber`.
A peak is the highest resident memory (VmHWM of ``/proc/PID/status``) less the resident memory when idle, after a record
of a few seconds. Up to the record the highest is the idle one or more, so a figure may be too high, never too low.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from workers import runtime
from workers.device import CPU_SEQS
from workers.guard import die_with_parent
from workers.messages import Options, Record, Transcript
from workers.settings import load_settings

#: As on two cores by default: a record keeps sixteen windows in the engine (twice its batch, read by two processes).
#: They take 4 s, longer than decoding them, so that they are there most of the time. Few long steps: on a busy machine
#: every step waits for its turn.
THREADS = 4
WORKER: dict[str, object] = {
    "engine": "standin",
    "max_num_seqs": CPU_SEQS,
    "decode_processes": 2,  # one of which is started: what a task keeps in the engine is as on two cores
    "standin_encode_ms": 20,
    "standin_step_ms": 200,
    "standin_steps": 4,
}
#: By its path: what makes recordings would load codecs that no worker has in its own process.
SHORT = Path(__file__).parent.parent / "tests" / "samples" / "audio" / "en_train.flac"


@dataclass(frozen=True, slots=True)
class Peaks:
    """What one record cost beyond the idle worker. MB are 10**6 bytes.

    ``cpu_seconds``: of both processes. ``idle_worker_mb`` and ``idle_decoder_mb``: resident before the record.
    """

    worker_mb: float
    decoder_mb: float
    idle_worker_mb: float
    idle_decoder_mb: float
    audio_seconds: float
    speech_seconds: float
    wall_seconds: float
    cpu_seconds: float

    @property
    def sum_mb(self) -> float:
        """Of both processes, as if their peaks came at once."""
        return self.worker_mb + self.decoder_mb


def probe(path: Path) -> Peaks:
    """Transcribe ``path`` with timestamps and a vote on its language. Raises RuntimeError if it fails."""
    built = runtime.build(load_settings(**WORKER), THREADS)
    try:
        _transcribe(built, SHORT)
        me = psutil.Process()
        (decoder,) = me.children()
        idle = [_resident_mb(one.pid, "VmRSS") for one in (me, decoder)]
        cpu, began = _cpu_seconds(me, decoder), time.monotonic()
        transcript = _transcribe(built, path)
        wall_seconds, cpu_seconds = time.monotonic() - began, _cpu_seconds(me, decoder) - cpu
        highest = [_resident_mb(one.pid, "VmHWM") for one in (me, decoder)]
    finally:
        built.close()
    worker_mb, decoder_mb = (high - low for high, low in zip(highest, idle, strict=True))
    return Peaks(
        worker_mb=round(worker_mb, 1),
        decoder_mb=round(decoder_mb, 1),
        idle_worker_mb=round(idle[0], 1),
        idle_decoder_mb=round(idle[1], 1),
        audio_seconds=round(transcript.duration, 1),
        speech_seconds=round(transcript.speech_seconds, 1),
        wall_seconds=round(wall_seconds, 1),
        cpu_seconds=round(cpu_seconds, 1),
    )


def _transcribe(built: runtime.Runtime, path: Path) -> Transcript:
    items = []
    options = Options(language="auto", timestamps=True)
    built.transcriber.transcribe(
        [Record(audio=str(path))], "transcribe", options, lambda _, answered: items.extend(answered)
    )
    (item,) = items
    if not isinstance(item, Transcript):
        raise RuntimeError(f"{path.name}: {item}")
    return item


def _resident_mb(pid: int, figure: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{figure}:"))
    return int(value) * 1024 / 1e6


def _cpu_seconds(*processes: psutil.Process) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


if __name__ == "__main__":
    die_with_parent(os.getppid())
    sys.stdout.write(json.dumps(asdict(probe(Path(sys.argv[1])))) + "\n")
