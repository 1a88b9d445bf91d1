"""Real human speech for tests: the telephone prompts that Debian packages for Asterisk, with the text that was read.

`asterisk-core-sounds-XX-wav` holds about 500 recordings of one professional speaker a language (mono, 16 bit, 8 kHz);
`asterisk-core-sounds-XX` holds the script, `core-sounds-XX.txt.gz`. They are fetched with apt and unpacked into a cache
folder, never installed and never committed: the recordings are CC BY-SA 3.0 (Russian: CC BY 3.0).

The cache is `$WHISPER_TEST_CACHE`, or `~/.cache/whisper-fleet/asterisk`: a folder a language, whole once it is there.
The Spanish script has no accents, and the scripts have typing errors: compare with a word error rate, not for equality.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

LANGUAGES = ("en", "es", "fr", "it", "ru")

#: `[ascending tones]`, `(10 seconds of silence)`, `IAX (note: does not say "2")`: not, or not only, what is spoken.
_NOTE = re.compile(r"[\[\]()<>]")
#: Sounds without speech whose script lacks the brackets in some language.
_NOT_SPEECH = re.compile(r"silence/|beep|ascending-|descending-|confbridge-(join|leave)$")
#: The Italian script lost some accented letters to question marks: `La conferenza ? piena.`
_LOST_LETTER = re.compile(r"\?\s*[a-z]")

#: Longest wait for one apt or dpkg command; the packages are 18 to 24 MB, Debian's lists about 10 MB.
_COMMAND_SECONDS = 300


class FetchError(Exception):
    """The recordings cannot be fetched; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One recording: its name in Asterisk (`vm-advopts`, `digits/1`), its 8 kHz WAV file and the text that was read."""

    name: str
    path: Path
    text: str


def prompts(language: str) -> list[Prompt]:
    """The recordings of a language that hold speech and nothing but their text, in name order; fetched on first use.

    Raises ValueError for a language not in LANGUAGES, FetchError if apt is missing or cannot fetch.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}, not {language!r}")
    root = _fetched(language)
    [sounds] = root.glob(f"usr/share/asterisk/sounds/{language}_*")
    script = root / f"usr/share/doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"
    texts = parse_script(gzip.decompress(script.read_bytes()).decode("utf-8-sig"))
    found = [Prompt(name, sounds / f"{name}.wav", text) for name, text in sorted(texts.items())]
    return [prompt for prompt in found if prompt.path.is_file()]


def translations(language: str) -> list[tuple[Prompt, str]]:
    """The recordings of a language that exist in English too, each with the English text. Raises as `prompts` does."""
    english = {prompt.name: prompt.text for prompt in prompts("en")}
    return [(prompt, english[prompt.name]) for prompt in prompts(language) if prompt.name in english]


def require_asterisk(language: str) -> list[Prompt]:
    """`prompts`, for a test that needs them: it skips on a laptop without apt, but in CI it fails."""
    if not os.environ.get("CI") and shutil.which("apt-get") is None:
        pytest.skip("the Asterisk recordings come from Debian's packages, and apt-get is not on the PATH")
    return prompts(language)


def parse_script(script: str) -> dict[str, str]:
    """Texts by prompt name from a script of `name: text` lines (`;` starts a comment).

    Spaces are collapsed; entries that are not speech, or not only what is spoken, are left out.
    """
    texts = {}
    for line in script.splitlines():
        name, colon, text = line.partition(":")
        text = " ".join(text.split())
        if not colon or not text or line.startswith(";"):
            continue
        if _NOTE.search(text) or _NOT_SPEECH.match(name) or _LOST_LETTER.search(text):
            continue
        texts[name.strip()] = text
    return texts


def _cache() -> Path:
    default = Path.home() / ".cache" / "whisper-fleet" / "asterisk"
    return Path(os.environ.get("WHISPER_TEST_CACHE") or default).absolute()


def _fetched(language: str) -> Path:
    """The folder with a language's unpacked packages, made if needed by one process while the others wait."""
    folder = _cache() / language
    if not folder.is_dir():
        with _locked(_cache()):
            if not folder.is_dir():  # nobody else made it while this process waited
                _fetch(language, folder)
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes, also by a process that is killed
        yield


def _fetch(language: str, folder: Path) -> None:
    """Downloads and unpacks into a temporary folder, then renames it: a folder that is there is whole."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise FetchError(
                f"{tool} is not on the PATH: unpack Debian's asterisk-core-sounds-{language} and "
                f"asterisk-core-sounds-{language}-wav into {folder} (as with dpkg-deb -x)"
            )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{language}-") as temporary:
        work = Path(temporary)
        _download([f"asterisk-core-sounds-{language}", f"asterisk-core-sounds-{language}-wav"], work)
        unpacked = work / "unpacked"
        for package in sorted(work.glob("*.deb")):
            _command(["dpkg-deb", "-x", str(package), str(unpacked)], work)
        unpacked.rename(folder)


def _download(packages: list[str], work: Path) -> None:
    """`apt-get download` into `work`, with the machine's package lists or, where these do not do, its own."""
    # Without a sandbox user apt need not let its own user into `work`. Neither way needs root or changes the machine.
    apt = ["apt-get", "-q", "-o", "APT::Sandbox::User=root"]
    try:
        _command([*apt, "download", *packages], work)
    except FetchError:
        state = work / "apt"
        for part in ("lists/partial", "cache/archives/partial"):
            (state / part).mkdir(parents=True)
        own = ["-o", f"Dir::State::lists={state / 'lists'}", "-o", f"Dir::Cache={state / 'cache'}"]
        _command([*apt, *own, "update"], work)
        _command([*apt, *own, "download", *packages], work)


def _command(command: list[str], work: Path) -> None:
    try:
        subprocess.run(
            command,
            cwd=work,
            check=True,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.CalledProcessError as error:
        raise FetchError(f"{' '.join(command)} failed: {(error.stderr or error.stdout).strip()}") from None
    except subprocess.TimeoutExpired:
        raise FetchError(f"{' '.join(command)} did not end within {_COMMAND_SECONDS} s") from None
