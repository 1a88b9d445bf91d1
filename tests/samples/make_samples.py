"""Makes the speech samples beside this file: `python tests/samples/make_samples.py` writes all that is here.

The speech is the project's own: the sentences are written here and spoken by espeak-ng (Debian package `espeak-ng`,
its built-in formant voices), which must be on the PATH. The files are committed, so nobody needs to run this to use
them; run it after changing a sentence. The columns `spoken_language` and `spoken_text` are references for tests and
people. They are not called `language` and `text` because a record's `language` is an option that the fleet obeys.
"""

from __future__ import annotations

import io
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr

if TYPE_CHECKING:
    import numpy.typing as npt

HERE = Path(__file__).parent

#: espeak-ng's own rate; every sample is made from speech at this rate.
ESPEAK_RATE_HZ = 22_050

#: espeak-ng's `-s`; slower than its default of 175, because small models mishear fast synthetic speech.
WORDS_PER_MINUTE = 140

STORY = (
    "Good morning, and welcome to the evening news.",
    "The city has opened a new bridge across the river.",
    "More than two thousand people came to see it on the first day.",
    "The old bridge was built almost one hundred years ago.",
    "It was too narrow for the buses and the trucks of today.",
    "The work took three years and cost less than people had feared.",
    "A school class was allowed to walk across the bridge first.",
    "The children carried flags and sang a song about the water.",
    "The mayor said that the bridge belongs to everyone.",
    "In the afternoon there was music and food beside the river.",
    "The old bridge will stay open for people who walk or ride a bicycle.",
    "Next year the city wants to build a park on the other side.",
    "Now the weather for tomorrow.",
    "It will be cold in the morning, and sunny in the afternoon.",
    "Thank you for listening, and good night.",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One row: its file (the ending decides the format), its rate, and who speaks what (no sentences: silence)."""

    file: str
    language: str
    voice: str
    sample_rate_hz: int
    sentences: tuple[str, ...]
    pause_s: float = 0.4

    @property
    def text(self) -> str:
        """The reference text; Chinese is written without spaces between sentences."""
        return ("" if self.language == "zh" else " ").join(self.sentences)


#: The voices and sentences that whisper-base understands best among those tried: it mishears espeak-ng's Mandarin,
#: French and German in many other combinations. `cmn-latn-pinyin` because `cmn` reads pinyin out in English.
SAMPLES = (
    Sample(
        "en_weather.wav",
        "en",
        "en-us",
        16_000,
        ("Good morning.", "The sun is warm, and we will walk in the park today."),
    ),
    Sample("en_train.flac", "en", "en-gb", 22_050, ("The train to London leaves at ten in the morning.",)),
    Sample(
        "en_kitchen.mp3", "en", "en-us+f3", 22_050, ("My mother is in the kitchen.", "She is making bread for dinner.")
    ),
    Sample(
        "en_library.ogg",
        "en",
        "en-gb-x-rp",
        16_000,
        ("The library is closed on Sunday.", "Please bring the books back on Monday."),
    ),
    Sample("zh_weather.wav", "zh", "cmn-latn-pinyin+f3", 16_000, ("今天天气很好。", "我们去公园散步。")),
    Sample(
        "fr_coffee.mp3", "fr", "fr-be", 22_050, ("Bonjour, je voudrais du café, s'il vous plaît.", "Merci beaucoup.")
    ),
    Sample(
        "de_berlin.flac",
        "de",
        "de+m3",
        16_000,
        ("Guten Morgen, wie geht es Ihnen?", "Ich habe keine Zeit, mein Zug fährt nach Berlin."),
    ),
    Sample(
        "es_family.ogg",
        "es",
        "es-419",
        22_050,
        ("Buenos días, mi familia vive en una casa grande.", "El perro está en el jardín."),
    ),
    Sample("en_news_long.ogg", "en", "en-us", 16_000, STORY, pause_s=0.8),
    Sample("silence.flac", "", "", 16_000, (), pause_s=3.0),
)


def speak(sentence: str, voice: str) -> npt.NDArray[np.float32]:
    """One sentence as mono float32, shape ``[samples]``, at ESPEAK_RATE_HZ. Raises as subprocess.run does."""
    command = ["espeak-ng", "-v", voice, "-s", str(WORDS_PER_MINUTE), "--stdout", sentence]
    wav = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    audio, rate_hz = soundfile.read(io.BytesIO(wav), dtype="float32")
    if rate_hz != ESPEAK_RATE_HZ:
        raise ValueError(f"espeak-ng spoke at {rate_hz} Hz, not at {ESPEAK_RATE_HZ} Hz")
    return np.asarray(audio, dtype=np.float32)


def render(sample: Sample) -> npt.NDArray[np.float32]:
    """The whole sample as mono float32, shape ``[samples]``, at its own rate, a pause after each sentence."""
    pause = np.zeros(round(sample.pause_s * ESPEAK_RATE_HZ), dtype=np.float32)
    pieces = [part for sentence in sample.sentences for part in (speak(sentence, sample.voice), pause)]
    audio = np.concatenate(pieces or [pause])
    return np.asarray(soxr.resample(audio, ESPEAK_RATE_HZ, sample.sample_rate_hz), dtype=np.float32)


def make() -> None:
    """Writes every audio file and the manifest."""
    (HERE / "audio").mkdir(exist_ok=True)
    rows = []
    for sample in SAMPLES:
        # libsndfile chooses the format by the ending: PCM_16 for wav and flac, Vorbis for ogg, Layer III for mp3.
        soundfile.write(HERE / "audio" / sample.file, render(sample), sample.sample_rate_hz)
        rows.append(
            {
                "audio": [f"audio/{sample.file}"],
                "id": Path(sample.file).stem,
                "spoken_language": sample.language or None,
                "spoken_text": sample.text,
            }
        )
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (HERE / "samples.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    make()
