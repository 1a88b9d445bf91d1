"""A known clip that every engine has to hear right before it serves: Whisper has broken in engine releases before.

The clip is `golden.flac` beside this file, made with espeak-ng like the samples.
"""

from __future__ import annotations

import difflib
import logging
import re
from pathlib import Path

from workers.errors import EngineLostError, ModelLoadError, TranscriptionError
from workers.interface import Engine, WindowRequest

log = logging.getLogger(__name__)

CLIP = Path(__file__).with_name("golden.flac")
TEXT = "Good morning. The sun is warm, and we will walk in the park today."
#: Share of equal words. whisper-base hears all of them; broken engines repeat, drop or invent most.
ENOUGH = 0.7


def check(engine: Engine) -> None:
    """Transcribe the clip. Raises ModelLoadError, with both texts when the engine hears something else."""
    import soundfile

    if "en" not in engine.facts.languages:
        log.warning("golden check left out: the model %s does not know English", engine.facts.model)
        return
    samples, _ = soundfile.read(CLIP, dtype="float32")
    try:
        heard = engine.submit(WindowRequest(samples, "transcribe", "en")).result()
    except (EngineLostError, TranscriptionError) as error:
        raise ModelLoadError(f"golden check: the model {engine.facts.model} gives no text: {error}") from error
    share = similarity(TEXT, heard.text)
    if share < ENOUGH:
        raise ModelLoadError(
            f"golden check: the model {engine.facts.model} hears {heard.text!r} instead of {TEXT!r}: do not trust it; "
            "to serve it all the same set WHISPER_GOLDEN_CHECK=false"
        )
    log.info("golden check passed (%.0f %% of the words)", 100 * share)


def similarity(expected: str, heard: str) -> float:
    """Share of words that two texts have in the same order, 0 to 1."""
    return difflib.SequenceMatcher(None, _words(expected), _words(heard), autojunk=False).ratio()


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
