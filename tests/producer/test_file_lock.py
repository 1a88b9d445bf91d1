"""Locks that end with their process, and those whose file was removed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from producer.file_lock import FileLock


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "x.lock"), FileLock(tmp_path / "x.lock")
    assert first.acquire()
    assert first.acquire()
    assert not second.acquire()
    assert second.holder() == f"process {os.getpid()} on {os.uname().nodename}"
    first.release()
    first.release()
    assert second.acquire()
    second.release()


def test_whether_somebody_has_it_is_seen_without_taking_it(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "x.lock")
    assert not FileLock(lock.path).is_held()
    assert not lock.path.exists()
    with lock:
        assert lock.acquire()
        assert FileLock(lock.path).is_held()
    assert not FileLock(lock.path).is_held()


def test_one_whose_file_was_removed_is_not_in_place(tmp_path: Path) -> None:
    with FileLock(tmp_path / "job" / "x.lock") as lock, FileLock(lock.path) as other:
        lock.path.parent.mkdir()
        assert not lock.in_place(), "not held"
        assert lock.acquire()
        assert lock.in_place()
        shutil.rmtree(lock.path.parent)
        assert not lock.in_place()
        lock.path.parent.mkdir()
        assert other.acquire(), "it keeps nobody away"
        assert (lock.in_place(), other.in_place()) == (False, True)


def test_it_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    code = (
        "import sys, pathlib, producer.cache as cache\n"
        "lock = cache.FileLock(pathlib.Path(sys.argv[1]))\n"
        "sys.stdout.write(f'{lock.acquire()}\\n'); sys.stdout.flush(); sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout
        assert child.stdout.readline() == "True\n"
        lock = FileLock(path)
        assert not lock.acquire()
        assert lock.holder().startswith(f"process {child.pid} on ")
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert lock.acquire()
        assert lock.holder().startswith(f"process {os.getpid()} on ")
        lock.release()
    finally:
        child.kill()
        child.communicate()


def test_a_holder_that_wrote_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.lock").write_text("[]")
    assert FileLock(tmp_path / "x.lock").holder() == "another process"
