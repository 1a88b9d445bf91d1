"""Roots: what lies below them is read, whatever leads out of them is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import soundfile

from rows import SAMPLES, convert
from workers.audio import AudioLimits, DecodePool
from workers.audio_decode import open_audio
from workers.errors import TranscriptionError
from workers.roots import check_opened, check_path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A root with a recording, and a folder beside it with a secret one. The secret's name begins like the root's."""
    inside, outside = tmp_path / "data", tmp_path / "data-secret"
    for folder in (inside, outside):
        folder.mkdir()
        soundfile.write(folder / "a.wav", [0.0] * 1600, 16_000)
    return inside, outside


def read(source: str | Path, limits: AudioLimits) -> float:
    return sum(block.size for block in open_audio(str(source), limits)) / 16_000


def refusal(source: str | Path, limits: AudioLimits) -> str:
    with pytest.raises(TranscriptionError) as caught:
        read(source, limits)
    assert caught.value.type == "not_allowed"
    assert caught.value.message.endswith("outside the folders that this worker may read (WHISPER_AUDIO_ROOTS)")
    return caught.value.message


def test_files_below_a_root_are_read(folders: tuple[Path, Path], tmp_path: Path) -> None:
    inside, _ = folders
    (inside / "deep").mkdir()
    (inside / "deep" / "link.wav").symlink_to(inside / "a.wav")
    (tmp_path / "alias").symlink_to(inside)
    limits = AudioLimits(audio_roots=["/nowhere", str(inside)])
    for source in (inside / "a.wav", (inside / "a.wav").as_uri(), inside / "deep/../a.wav", inside / "deep/link.wav"):
        assert read(source, limits) == 0.1
    # A root may be a link itself, and a path may lead in through one.
    assert read(inside / "a.wav", AudioLimits(audio_roots=[str(tmp_path / "alias")])) == 0.1
    assert read(tmp_path / "alias" / "a.wav", limits) == 0.1
    assert read(inside / "a.wav", AudioLimits(audio_roots=["/"])) == 0.1


def test_nothing_leads_out(folders: tuple[Path, Path]) -> None:
    inside, outside = folders
    (inside / "link.wav").symlink_to(outside / "a.wav")
    (inside / "folder").symlink_to(outside)
    limits = AudioLimits(audio_roots=[str(inside)])
    for source in (
        *(outside / "a.wav", (outside / "a.wav").as_uri(), f"file://localhost{outside}/a.wav"),
        *(inside / "../data-secret/a.wav", f"file://{inside}/%2e%2e/data-secret/a.wav"),
        *(inside / "link.wav", inside / "folder/a.wav", "/proc/self/environ", "/dev/stdin", "a.wav", inside),
    ):
        refusal(source, limits)


def test_refusal_does_not_tell_what_is_there(folders: tuple[Path, Path]) -> None:
    inside, outside = folders
    (outside / "closed").mkdir(mode=0)
    limits = AudioLimits(audio_roots=[str(inside)])
    there, absent = (refusal(outside / name, limits) for name in ("a.wav", "b.wav"))
    assert there.replace("a.wav", "b.wav") == absent
    refusal(outside / "closed" / "a.wav", limits)
    # Inside, a missing file is told as such.
    with pytest.raises(TranscriptionError, match="file_not_found"):
        read(inside / "b.wav", limits)


def test_no_roots_at_all_allow_no_file(folders: tuple[Path, Path]) -> None:
    refusal(folders[0] / "a.wav", AudioLimits(audio_roots=[]))


def test_link_that_is_turned_between_check_and_opening(folders: tuple[Path, Path]) -> None:
    # Given a link that led to a file of the root when it was checked
    inside, outside = folders
    link = inside / "link.wav"
    link.symlink_to(inside / "a.wav")
    check_path(str(link), [str(inside)], "link.wav")
    # When it leads elsewhere by the time it is opened
    link.unlink()
    link.symlink_to(outside / "a.wav")
    descriptor = os.open(link, os.O_RDONLY)
    # Then what was opened is refused
    with pytest.raises(TranscriptionError, match="not_allowed"):
        check_opened(descriptor, [str(inside)], "link.wav")
    os.close(descriptor)


@pytest.mark.parametrize("roots", [None, "own"])
@pytest.mark.parametrize("named", ["absolute", "beside"])
def test_play_list_opens_nothing_else(folders: tuple[Path, Path], roots: str | None, named: str) -> None:
    # Given play lists that name a recording which ffmpeg would follow them to
    inside, outside = folders
    for folder in folders:
        convert(SAMPLES / "audio" / "en_weather.wav", folder / "part.ts")
    target = outside / "part.ts" if named == "absolute" else "part.ts"
    (inside / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.0,\n{target}\n#EXT-X-ENDLIST\n"
    )
    (inside / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile {target}\n")
    # Then it does not
    limits = AudioLimits(audio_roots=roots and [str(inside)])
    for name in ("list.m3u8", "list.ffconcat"):
        with pytest.raises(TranscriptionError, match=r"not_audio.*ffmpeg"):
            read(inside / name, limits)
    assert read(inside / "part.ts", limits) > 2


def test_roots_hold_for_mapped_paths_in_the_decode_process(folders: tuple[Path, Path]) -> None:
    inside, outside = folders
    limits = AudioLimits(audio_roots=(str(inside),), path_map={"/here": str(inside), "/there": str(outside)})
    pool = DecodePool(1, limits)
    try:
        with pool.open("/here/a.wav") as stream:
            assert sum(block.samples.size for block in stream) == 1600
        with pytest.raises(TranscriptionError, match="not_allowed"), pool.open("/there/a.wav") as stream:
            list(stream)
    finally:
        pool.close()
