"""Thousands of broken files: a transcript or an error each, and the same processes afterwards, no larger."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fleet import Fleet
from mutations import KINDS, good_files, mutations
from rows import read_rows
from workers.audio import AudioLimits, DecodePool
from workers.errors import TranscriptionError

COUNT = 2000
SEED = 20261123
#: The first files load codecs, and the heap finds its size.
WARM_UP = 500
#: What allocators may keep; something that grew with every file would be past it.
GROWTH_BYTES = 64 * 2**20
#: What a file may turn out to be. Not `decode_failed`: that is an exception nobody thought of.
EXPECTED = {"transcript", "not_audio", "no_audio_track", "too_long", "too_large_to_decode"}
#: A codec may crash or hang on one of a thousand: that costs its row, by design, and a process is replaced.
RARE = {"decode_crashed", "decode_timeout"}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return good_files(tmp_path_factory.mktemp("good"))


def test_good_files_are_good(good: list[Path]) -> None:
    pool = DecodePool(1, AudioLimits())
    for path in good:
        with pool.open(str(path)) as stream:
            assert max(float(block.speech.max(initial=0)) for block in stream) > 0.5, path.name
        assert stream.flags == ()
    pool.close()


def test_mutations_are_the_same_for_the_same_seed(good: list[Path]) -> None:
    once, again, other = (list(mutations(good, 200, seed)) for seed in (1, 1, 2))
    assert once == again != other
    contents = {path.read_bytes() for path in good}
    assert sum(content in contents for _, content in once) < 5
    assert {name.split("-")[1].partition(".")[0] for name, _ in once} == {kind.__name__ for kind in KINDS}


def test_every_broken_file_is_decoded_or_refused(good: list[Path], tmp_path: Path) -> None:
    # Given two decode processes that have seen their first files
    others = set(psutil.Process().children())
    pool = DecodePool(2, AudioLimits(max_audio_seconds=600))
    try:
        files = mutations(good, COUNT, SEED)
        found = outcomes(pool, tmp_path, [next(files) for _ in range(WARM_UP)])
        decoders = set(psutil.Process().children()) - others
        before = {child.pid: Size.of(child) for child in decoders}
        gc.collect()  # what earlier tests of this process left open
        descriptors = psutil.Process().num_fds()
        # When they get all the others
        found += outcomes(pool, tmp_path, list(files))
        # Then each has its outcome, and the processes are as they were
        assert found.total() == COUNT
        assert set(found) <= EXPECTED | RARE, found
        crashes = sum(found[type_] for type_ in RARE)
        assert crashes <= COUNT / 1000, found
        decoders = set(psutil.Process().children()) - others
        after = {child.pid: Size.of(child) for child in decoders}
        assert len(after) == len(before) == 2
        assert psutil.Process().num_fds() <= descriptors
        assert len(after.keys() - before.keys()) <= crashes
        for pid in after.keys() & before.keys():
            assert after[pid].bytes - before[pid].bytes < GROWTH_BYTES
            assert after[pid].descriptors == before[pid].descriptors
    finally:
        pool.close()


def outcomes(pool: DecodePool, folder: Path, files: Sequence[tuple[str, bytes]]) -> Counter[str]:
    """How often each outcome comes: ``transcript`` or the type of the error."""

    def outcome(file: tuple[str, bytes]) -> str:
        path = folder / file[0]
        path.write_bytes(file[1])
        try:
            with pool.open(str(path)) as stream:
                for block in stream:
                    assert not block.samples.size or abs(block.samples).max() <= 1
        except TranscriptionError as error:
            return error.type
        finally:
            path.unlink()
        return "transcript"

    with ThreadPoolExecutor(2) as threads:
        return Counter(threads.map(outcome, files))


def test_worker_answers_every_row_and_stays_as_it_is(standin_fleet: Fleet, good: list[Path], tmp_path: Path) -> None:
    # Given a worker that has answered a job with broken files
    files = mutations(good, 220, SEED + 1)
    run(standin_fleet, tmp_path / "first", [next(files) for _ in range(110)])
    before = {process.pid: Size.of(process) for process in below(standin_fleet.workers[0].pid)}
    # When it gets another
    run(standin_fleet, tmp_path / "second", list(files))
    # Then it is the same process, with no more decoders than it may have, and no larger
    after = {process.pid: Size.of(process) for process in below(standin_fleet.workers[0].pid)}
    assert [pid for pid, size in after.items() if not size.decodes] == [
        pid for pid, size in before.items() if not size.decodes
    ]
    assert sum(size.decodes for size in after.values()) <= 8
    for pid in before.keys() & after.keys():
        assert after[pid].bytes - before[pid].bytes < GROWTH_BYTES
        assert after[pid].descriptors - before[pid].descriptors < 10  # connections to Redis come and go


def run(fleet: Fleet, folder: Path, files: Sequence[tuple[str, bytes]]) -> None:
    """A job with ``files``; each row has a text or an error."""
    folder.mkdir()
    for name, content in files:
        (folder / name).write_bytes(content)
    rows = folder / "data.jsonl"
    rows.write_text("".join(json.dumps({"audio": name}) + "\n" for name, _ in files))
    done = fleet.cli("run", str(rows), "--cache-path", str(folder / "cache"))
    assert done.returncode == 0, done.stderr
    answers = read_rows(done.stdout.splitlines()[-1])
    assert [row["audio"] for row in answers] == [name for name, _ in files]
    for row in answers:
        error = row.get("transcription_error")
        assert (row["transcription"] is None) == (error is not None), row
        assert error is None or error["type"] in EXPECTED | RARE, row


def below(pid: int) -> Iterator[psutil.Process]:
    root = psutil.Process(pid)
    yield from (root, *root.children(recursive=True))


@dataclass(frozen=True)
class Size:
    """What a process holds, and whether it is a decode process."""

    bytes: int
    descriptors: int
    decodes: bool

    @classmethod
    def of(cls, process: psutil.Process) -> Size:
        with process.oneshot():
            decodes = any("decode" in argument for argument in process.cmdline())
            return cls(process.memory_info().rss, process.num_fds(), decodes)
