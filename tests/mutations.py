"""Good audio files, broken in every way that a seed gives: cut, bits turned, headers of one before another's body."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

from rows import SAMPLES, convert

#: What is broken: short, so that thousands take less than a minute.
SECONDS = 1.0
FORMATS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".webm", ".wma", ".aiff", ".au")
#: Most bytes that a header of such files takes.
HEADER_BYTES = 400
#: Numbers at which lengths and rates go wrong.
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

Content = bytes
Mutation = Callable[[random.Random, Content, Content], Content]


def good_files(folder: Path) -> list[Path]:
    """A second of speech in every format, and one float file of six channels."""
    samples, rate = soundfile.read(SAMPLES / "audio" / "en_weather.wav")
    source = folder / "source.wav"
    soundfile.write(source, samples[: int(SECONDS * rate)], rate)
    files = [convert(source, folder / f"good{suffix}") for suffix in FORMATS]
    six = folder / "six.wav"
    soundfile.write(six, np.stack([samples[: int(SECONDS * rate)]] * 6, axis=1), rate, subtype="FLOAT")
    return [*files, six]


def mutations(files: Sequence[Path], count: int, seed: int) -> Iterator[tuple[str, Content]]:
    """``count`` broken files, each its name (what was done to which) and its content; the same for the same seed."""
    contents = [path.read_bytes() for path in files]
    chance = random.Random(seed)
    for number in range(count):
        at = number % len(files)
        how = KINDS[number // len(files) % len(KINDS)]
        content = how(chance, contents[at], chance.choice(contents))
        yield f"{number:04d}-{how.__name__}{files[at].suffix}", content


def cut(chance: random.Random, content: Content, _: Content) -> Content:
    """The end is missing; half of the time most of the file is."""
    return content[: chance.randrange(1, HEADER_BYTES if chance.random() < 0.5 else len(content))]


def turned_bits(chance: random.Random, content: Content, _: Content) -> Content:
    """A few bits anywhere."""
    return _turned(chance, content, len(content))


def turned_header_bits(chance: random.Random, content: Content, _: Content) -> Content:
    """A few bits where the header is."""
    return _turned(chance, content, HEADER_BYTES)


def extreme_number(chance: random.Random, content: Content, _: Content) -> Content:
    """One field of the header says something impossible."""
    changed, width = bytearray(content), chance.choice((1, 2, 4, 8))
    start = chance.randrange(4, HEADER_BYTES)
    value = chance.choice(EXTREMES) & (2 ** (8 * width) - 1)
    changed[start : start + width] = value.to_bytes(width, chance.choice(("little", "big")))
    return bytes(changed)


def others_header(chance: random.Random, content: Content, other: Content) -> Content:
    """The start of another file in place of the own one."""
    length = chance.randrange(4, HEADER_BYTES)
    return other[:length] + content[length:]


def hole(chance: random.Random, content: Content, _: Content) -> Content:
    """A stretch of one byte's value."""
    start = chance.randrange(len(content))
    length = chance.randrange(1, 5000)
    return content[:start] + bytes([chance.choice((0, 255))]) * length + content[start + length :]


def lost_stretch(chance: random.Random, content: Content, _: Content) -> Content:
    """A stretch is missing, and everything after it is too early."""
    start = chance.randrange(len(content))
    return content[:start] + content[start + chance.randrange(1, 2000) :]


def doubled(chance: random.Random, content: Content, other: Content) -> Content:
    """Another whole file in the middle of this one."""
    start = chance.randrange(len(content))
    return content[:start] + other + content[start:]


def _turned(chance: random.Random, content: Content, end: int) -> Content:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 2, 8, 50))):
        changed[chance.randrange(min(end, len(changed)))] ^= 1 << chance.randrange(8)
    return bytes(changed)


KINDS: tuple[Mutation, ...] = (
    *(cut, turned_bits, turned_header_bits, extreme_number),
    *(others_header, hole, lost_stretch, doubled),
)
