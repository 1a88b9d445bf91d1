"""The pool with its real processes: what they give, and what happens when they die, hang or are left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from fleet import wait_for
from workers.audio import FRAME_SAMPLES, SAMPLE_RATE_HZ, AudioLimits, DecodePool, map_path
from workers.decode_child import DecodeChild
from workers.decode_wire import PROGRESS
from workers.errors import TranscriptionError, TransientError
from workers.settings import load_settings

SAMPLES = Path(__file__).parent.parent / "samples" / "audio"


def children(pid: int | None = None) -> list[int]:
    """The decode processes of this process (or of ``pid``) that live."""
    found = []
    for process in psutil.Process(pid).children():
        try:
            title, status = " ".join(process.cmdline()), process.status()
        except psutil.Error:
            continue
        if ("decode_process" in title or "whisper-fleet: decode" in title) and status != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(lives(pid) for pid in pids):
        assert time.monotonic() < deadline, "still there after 60 s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten minutes: far more than fits into a pipe, so that its decoder is still at work when a test interferes."""
    path = tmp_path_factory.mktemp("audio") / "long.wav"
    noise = np.random.default_rng(1).normal(0, 0.1, SAMPLE_RATE_HZ * 60).astype(np.float32)
    soundfile.write(path, np.tile(noise, 10), SAMPLE_RATE_HZ)
    return str(path)


Pools = Callable[[int, AudioLimits], DecodePool]


@pytest.fixture
def pools() -> Iterator[Pools]:
    """Makes pools, which end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda processes, limits: stack.enter_context(contextlib.closing(DecodePool(processes, limits)))


@pytest.fixture
def pool(pools: Pools) -> Iterator[DecodePool]:
    made = pools(1, AudioLimits())
    yield made
    made.close()
    assert children() == []


def duration_of(pool: DecodePool, source: str | Path) -> float:
    with pool.open(str(source)) as stream:
        for _ in stream:
            pass
    return stream.duration_s


def works(pool: DecodePool) -> bool:
    return duration_of(pool, SAMPLES / "en_weather.wav") > 2


def in_line(pool: DecodePool) -> int:
    """How many threads wait for a process, those that cannot wait aside."""
    with pool._places._usual:
        return len(pool._places._usual._waiters)  # type: ignore[attr-defined]


class Over(Exception):  # noqa: N818
    """What a check of a test raises."""


def test_blocks_carry_samples_and_speech(pool: DecodePool) -> None:
    with pool.open(str(SAMPLES / "en_news_long.ogg")) as stream:
        blocks = list(stream)
    samples = np.concatenate([block.samples for block in blocks])
    speech = np.concatenate([block.speech for block in blocks])
    assert samples.dtype == speech.dtype == np.float32
    assert stream.duration_s == samples.size / SAMPLE_RATE_HZ > 30
    assert speech.size == -(-samples.size // FRAME_SAMPLES)
    assert (speech > 0.5).mean() > 0.3
    assert stream.flags == ()
    # The probabilities keep pace with the samples: a consumer need not wait for the end.
    assert blocks[0].speech.size == blocks[0].samples.size // FRAME_SAMPLES


def test_span(pool: DecodePool) -> None:
    with pool.open(str(SAMPLES / "en_news_long.ogg"), 5.0, 7.5) as stream:
        assert sum(block.samples.size for block in stream) == 2.5 * SAMPLE_RATE_HZ
    assert stream.duration_s == 2.5


def test_silence_has_no_speech(pool: DecodePool) -> None:
    with pool.open(str(SAMPLES / "silence.flac")) as stream:
        assert max(float(block.speech.max(initial=0)) for block in stream) < 0.5


def test_bad_files_cost_no_process(pool: DecodePool, tmp_path: Path) -> None:
    before = children()
    (tmp_path / "a.wav").write_text("no audio")
    for source, type_ in ((tmp_path / "a.wav", "not_audio"), (tmp_path / "b.wav", "file_not_found")):
        with pytest.raises(TranscriptionError) as caught:
            duration_of(pool, source)
        assert (caught.value.type, isinstance(caught.value, TransientError)) == (type_, False)
    assert works(pool)
    assert children() == before


def test_transient_errors_arrive_as_such(pools: Pools) -> None:
    pool = pools(1, AudioLimits(allow_private_addresses=True))
    with pytest.raises(TransientError) as caught:
        duration_of(pool, "http://127.0.0.1:9/a.wav")
    assert caught.value.type == "fetch_failed"


def test_records_share_the_processes(pools: Pools) -> None:
    pool = pools(2, AudioLimits())
    files = sorted(SAMPLES.iterdir()) * 2
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda path: duration_of(pool, path), files))
    assert len(children()) <= 2
    assert found == [pytest.approx(soundfile.info(str(path)).duration, abs=0.1) for path in files]


@pytest.mark.parametrize(("kind", "name"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGKILL, "SIGKILL")])
def test_crash_is_the_records_error_and_the_next_one_works(
    pool: DecodePool, long_file: str, kind: signal.Signals, name: str
) -> None:
    with pytest.raises(TranscriptionError) as caught, pool.open(long_file) as stream:  # noqa: PT012
        for _ in stream:
            for pid in children():
                os.kill(pid, kind)
    assert caught.value.type == "decode_crashed"
    assert name in caught.value.message
    # Another's SIGKILL is the machine short of memory, most often: worth another try.
    assert isinstance(caught.value, TransientError) == (name == "SIGKILL")
    assert works(pool)


def test_signals_that_end_a_worker_leave_its_decoders(pool: DecodePool, long_file: str) -> None:
    """They may reach all its processes (a terminal that closes): it drains, and needs them."""
    (pid,) = children()
    sent = [signal.SIGHUP, signal.SIGQUIT, signal.SIGINT, signal.SIGTERM]
    with pool.open(long_file) as stream:
        for _ in stream:
            for kind in sent:
                os.kill(pid, kind)
    assert stream.duration_s > 0
    assert children() == [pid]
    assert os.getpgid(pid) != os.getpgid(0), "nor do they while it starts"


def test_process_that_died_while_idle_is_replaced(pool: DecodePool) -> None:
    (pid,) = children()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert works(pool)


def test_hang_ends_at_the_deadline(pools: Pools, long_file: str) -> None:
    pool = pools(1, AudioLimits(decode_timeout_seconds=4))
    (pid,) = children()
    with pytest.raises(TranscriptionError) as caught, pool.open(long_file) as stream:  # noqa: PT012
        for _ in stream:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGSTOP)
    assert caught.value.type == "decode_timeout"
    assert "WHISPER_DECODE_TIMEOUT_SECONDS" in caught.value.message
    wait_until_gone([pid])
    assert works(pool)


def test_stream_left_early_ends_its_process(pool: DecodePool, long_file: str) -> None:
    (pid,) = children()
    with pool.open(long_file) as stream:
        next(iter(stream))
    wait_until_gone([pid])
    assert works(pool)


def test_slow_reader_is_waited_for(pools: Pools, long_file: str) -> None:
    # Given a deadline shorter than the reader's pause
    pool = pools(1, AudioLimits(decode_timeout_seconds=5))
    with pool.open(long_file) as stream:
        blocks = iter(stream)
        next(blocks)
        time.sleep(5.5)
        # Then the decoder has stopped at the full pipe, and goes on with it
        assert 590 < 10 + sum(block.samples.size for block in blocks) / SAMPLE_RATE_HZ <= 600.1


def test_whoever_waits_for_a_silent_decoder_is_asked_whether_to_go_on(pool: DecodePool, long_file: str) -> None:
    # Given a decoder that hangs, whose deadline is a minute away
    (pid,) = children()
    asked: list[float] = []

    def check() -> None:
        asked.append(time.monotonic())
        if len(asked) > 3:
            raise Over

    os.kill(pid, signal.SIGSTOP)
    # Then it is asked soon, and again
    with pytest.raises(Over), pool.open(long_file, check=check) as stream:
        list(stream)
    assert asked[-1] - asked[0] < 30
    # and who comes next is not told of it
    wait_until_gone([pid])
    assert works(pool)


def test_whoever_waits_for_a_decoder_that_only_shows_progress_is_asked_too(
    pool: DecodePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter(range(3))

    def check() -> None:
        if next(asked, None) is None:
            raise Over

    monkeypatch.setattr(DecodeChild, "receive", lambda *_: PROGRESS)
    with pytest.raises(Over), pool.open(str(SAMPLES / "en_weather.wav"), check=check) as stream:
        list(stream)


def test_whoever_waits_for_a_process_is_asked_whether_to_go_on(pool: DecodePool, long_file: str) -> None:
    def check() -> None:
        raise Over

    with (
        pool.open(long_file),
        pytest.raises(Over),
        pool.open(str(SAMPLES / "en_weather.wav"), check=check) as stream,
    ):
        list(stream)
    assert works(pool)


def test_polite_signals_do_not_end_a_decoder(pool: DecodePool) -> None:
    before = children()
    for pid in before:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert works(pool)
    assert children() == before


def test_close_fails_open_streams_as_transient(pools: Pools, long_file: str) -> None:
    pool = pools(1, AudioLimits())
    with pytest.raises(TransientError) as caught, pool.open(long_file) as stream:  # noqa: PT012
        for _ in stream:
            pool.close()
    assert caught.value.type == "worker_stopping"
    with pytest.raises(TransientError), pool.open(long_file):
        pass
    assert children() == []


def test_killed_worker_leaves_no_decoder_behind() -> None:
    code = (
        "import time; from workers.audio import *\n"
        "pool = DecodePool(1, AudioLimits()); print('started', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as worker:
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"started\n"
            pids = children(worker.pid)
            assert len(pids) == 1
        finally:
            worker.kill()
    wait_until_gone(pids)


def test_decoders_are_confined(pool: DecodePool) -> None:
    (pid,) = children()
    assert psutil.Process(pid).rlimit(psutil.RLIMIT_AS) == (4 * 2**30, 4 * 2**30)
    assert psutil.Process(pid).rlimit(psutil.RLIMIT_CORE) == (0, 0)


def test_decoders_hold_no_pipe_of_another(pools: Pools) -> None:
    pool = pools(2, AudioLimits())
    with pool.open(str(SAMPLES / "en_weather.wav")) as one, pool.open(str(SAMPLES / "en_train.flac")) as two:
        assert sum(1 for _ in one)
        assert sum(1 for _ in two)
        targets = [[str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()] for pid in children()]
        sockets = [{target for target in held if target.startswith("socket")} for held in targets]
    assert [len(held) for held in sockets] == [1, 1]
    assert sockets[0] != sockets[1]


def test_whoever_cannot_wait_has_a_process_more(pools: Pools, long_file: str) -> None:
    # Given a pool whose only process is at work on a long recording, and somebody who waits for it
    pool = pools(1, AudioLimits())
    with ThreadPoolExecutor(1) as thread:
        try:
            with pool.open(long_file):
                usual = thread.submit(works, pool)
                wait_for(lambda: in_line(pool) == 1)

                # When something urgent comes, then it is read at once, by a process of its own
                with pool.open(str(SAMPLES / "en_train.flac"), urgent=True) as stream:
                    assert sum(block.samples.size for block in stream)
                    assert len(children()) == 2

                # Which stays for the next one, and does not read for the usual meanwhile
                with pool.open(str(SAMPLES / "en_train.flac"), urgent=True) as stream:
                    assert sum(block.samples.size for block in stream)
                assert len(children()) == 2
                assert not usual.done()
            assert usual.result(30)
        finally:
            pool.close()


def test_closing_starts_no_process_for_those_that_wait(
    pools: Pools, long_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given threads that wait for the only process, whose recording nobody reads on
    pool, started = pools(1, AudioLimits()), []
    monkeypatch.setattr(pool, "_start", lambda: started.append(None))
    with ThreadPoolExecutor(2) as threads, pool.open(long_file) as stream:
        waiting = [threads.submit(works, pool) for _ in range(2)]
        wait_for(lambda: in_line(pool) == 2)

        # When the pool is closed
        pool.close()

        # Then all are told, and nothing was started for them
        for one in waiting:
            with pytest.raises(TransientError, match="worker_stopping"):
                one.result(30)
        with pytest.raises(TransientError, match="worker_stopping"):
            list(stream)
    assert started == []


def test_smallest_memory_setting_is_enough(pools: Pools) -> None:
    pool = pools(1, AudioLimits.from_settings(load_settings(decode_memory_bytes=2**30)))
    assert works(pool)


def test_pool_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(RuntimeError, match="decode processes do not start"):
        DecodePool(1, AudioLimits())


def test_of_a_first_process_that_ends_at_once_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(RuntimeError, match=r"decode processes do not start \(.*\w.*\)"):
        DecodePool(1, AudioLimits())


def test_limits_come_from_the_settings() -> None:
    settings = load_settings(max_audio_seconds=5, max_audio_bytes=6, decode_timeout_seconds=7, path_map={"/a": "/b"})
    limits = AudioLimits.from_settings(settings)
    assert (limits.max_audio_seconds, limits.max_audio_bytes, limits.decode_timeout_seconds) == (5, 6, 7)
    assert limits.path_map == {"/a": "/b"}


@pytest.mark.parametrize(
    ("source", "mapped"),
    [
        ("/data/x.wav", "/mnt/x.wav"),
        ("/data", "/mnt"),
        ("/database/x.wav", "/database/x.wav"),
        ("/data/deep/x.wav", "/deep/x.wav"),
        ("s3://bucket/x.wav", "/bucket/x.wav"),
        ("x.wav", "x.wav"),
        ("file:///data/a%20b.wav", "/mnt/a b.wav"),
        ("file://localhost/data/deep/x.wav", "/deep/x.wav"),
        ("FILE:///data/x.wav", "/mnt/x.wav"),
        ("file:///elsewhere/a%20b.wav", "file:///elsewhere/a%20b.wav"),
        ("file://host/data/x.wav", "file://host/data/x.wav"),
    ],
)
def test_map_path(source: str, mapped: str) -> None:
    assert map_path(source, {"/data": "/mnt", "/data/deep": "/deep", "s3://bucket/": "/bucket/"}) == mapped


def test_paths_are_mapped_on_the_way(pools: Pools) -> None:
    pool = pools(1, AudioLimits(path_map={"/elsewhere": str(SAMPLES)}))
    assert duration_of(pool, "/elsewhere/en_weather.wav") > 2
