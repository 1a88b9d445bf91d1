"""The committed samples are what their generator says, and the Asterisk recordings are what tests may rely on."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import asterisk
from workers.messages import parse_records

SAMPLES = Path(__file__).parent / "samples"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SAMPLES / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def path_of(row: dict[str, Any]) -> Path:
    [name] = row["audio"]
    return SAMPLES / str(name)


def test_rows_hold_references_that_no_worker_obeys(rows: list[dict[str, Any]]) -> None:
    assert {tuple(sorted(row)) for row in rows} == {("audio", "id", "spoken_language", "spoken_text")}
    assert len({row["id"] for row in rows}) == len(rows)
    assert len(parse_records([{"audio": row["audio"]} for row in rows])) == len(rows)


def test_rows_are_the_generators(rows: list[dict[str, Any]]) -> None:
    made = runpy.run_path(str(SAMPLES / "make_samples.py"))["SAMPLES"]

    expected = [([f"audio/{sample.file}"], sample.language or None, sample.text) for sample in made]
    assert [(row["audio"], row["spoken_language"], row["spoken_text"]) for row in rows] == expected


def test_folder_holds_the_rows_files_and_stays_small(rows: list[dict[str, Any]]) -> None:
    files = set((SAMPLES / "audio").iterdir())

    assert files == {path_of(row) for row in rows}
    assert sum(file.stat().st_size for file in files) < 2_000_000


def test_formats_rates_and_languages_vary(rows: list[dict[str, Any]]) -> None:
    infos = [soundfile.info(path_of(row)) for row in rows]

    assert {info.format for info in infos} == {"WAV", "FLAC", "OGG", "MP3"}
    assert all(info.format.lower() == path_of(row).suffix[1:] for info, row in zip(infos, rows, strict=True))
    assert {info.samplerate for info in infos} == {16_000, 22_050}
    assert {row["spoken_language"] for row in rows} == {"en", "zh", "fr", "de", "es", None}


def test_one_sample_is_long_and_one_is_silent(rows: list[dict[str, Any]]) -> None:
    seconds = {row["id"]: soundfile.info(path_of(row)).duration for row in rows}
    loudness = {row["id"]: float(np.abs(soundfile.read(path_of(row))[0]).max()) for row in rows}

    assert [name for name, length in seconds.items() if length > 60] == ["en_news_long"]
    assert [name for name, peak in loudness.items() if peak < 0.1] == ["silence"]
    assert loudness["silence"] == 0
    assert seconds["silence"] == pytest.approx(3.0)


def test_script_parser_keeps_speech_only() -> None:
    script = "\n".join(
        [
            "; Core Asterisk Sounds in English",
            "",
            "vm-next: Press six  to play the next message.",
            "digits/1: one",
            "spy-mgcp: Note: press",
            "empty:",
            "beep: un suono beep",
            "silence/1: (1 second of silence)",
            "spy-iax2: IAX (note: does not say 2)",
            "conf-full: La conferenza ? piena.",
            "vm-login: Comedian Mail. Mailbox?",
        ]
    )

    assert asterisk.parse_script(script) == {
        "vm-next": "Press six to play the next message.",
        "digits/1": "one",
        "spy-mgcp": "Note: press",
        "vm-login": "Comedian Mail. Mailbox?",
    }


@pytest.mark.parametrize("language", asterisk.LANGUAGES)
def test_prompts_are_hundreds_of_telephone_recordings_with_text(language: str) -> None:
    prompts = asterisk.require_asterisk(language)

    assert len(prompts) > 400
    assert len({prompt.name for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert prompt.text
        info = soundfile.info(prompt.path)
        assert (info.samplerate, info.channels) == (8_000, 1)
        assert info.frames > 0


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("es", "Por favor ingrese su contrasena seguida por la tecla de numero"),
        ("fr", "Composez votre mot de passe suivi du dièse."),
    ],
)
def test_translations_pair_a_recording_with_the_english_script(language: str, text: str) -> None:
    asterisk.require_asterisk(language)

    pairs = {prompt.name: (prompt, english) for prompt, english in asterisk.translations(language)}

    prompt, english = pairs["agent-pass"]
    assert prompt.text == text
    assert f"{os.sep}{language}_" in str(prompt.path)
    assert english == "Please enter your password followed by the pound key."
    assert len(pairs) > 400


def test_processes_that_fetch_at_once_share_one_download(tmp_path: Path) -> None:
    asterisk.require_asterisk("ru")
    environment = {**os.environ, "WHISPER_TEST_CACHE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", "import asterisk; print(len(asterisk.prompts('ru')))"]

    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = [process.communicate()[0] for process in started]

    assert [process.returncode for process in started] == [0, 0]
    assert counts == [f"{len(asterisk.prompts('ru'))}\n"] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "ru"}


def test_without_apt_a_laptop_skips_and_ci_fails_in_clear_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("WHISPER_TEST_CACHE", str(tmp_path))

    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get is not on the PATH"):
        asterisk.require_asterisk("es")

    monkeypatch.setenv("CI", "true")
    with pytest.raises(asterisk.FetchError, match=r"apt-get is not on the PATH.*asterisk-core-sounds-es-wav"):
        asterisk.require_asterisk("es")


def test_unknown_language_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="not 'xx'"):
        asterisk.prompts("xx")
