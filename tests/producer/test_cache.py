"""Step files: names, headers, locks held by real processes, and writes that leave all or nothing."""

import errno
import os
import resource
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from producer.cache import Step, atomic_write, check_writable
from producer.errors import FleetError, UsageError


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process may grow past ``size`` bytes: the system's own refusal, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestStep:
    def test_names(self, tmp_path: Path) -> None:
        step = Step(tmp_path, "data", 1)
        assert step.path == tmp_path / "data_step1.jsonl"
        assert step.header_path == tmp_path / "data_step1.job" / "job.json"
        assert step.journal_path == tmp_path / "data_step1.job" / "journal.jsonl"

    def test_the_job_folder_is_the_user_s_alone(self, tmp_path: Path) -> None:
        step = Step(tmp_path, "data", 1)
        step.create_job_folder()
        step.create_job_folder()
        assert step.job_path.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("prefix", ["", "a/b", "a\nb", "a\0b", "a\x85b", "a\u2028b", "a\udce9b", "中" * 80])
    def test_a_prefix_is_a_file_name(self, tmp_path: Path, prefix: str) -> None:
        with pytest.raises(UsageError, match="--prefix"):
            Step(tmp_path, prefix, 1)

    @pytest.mark.parametrize("prefix", ["通話\u3000録音", "Screenshot 9.41\u202fPM", "می\u200cروم", "\u200ePTT-2026"])
    def test_names_that_files_have_are_prefixes(self, tmp_path: Path, prefix: str) -> None:
        assert Step.of(Step(tmp_path, prefix, 1).path) == Step(tmp_path, prefix, 1)

    def test_a_step_has_one_name_from_whatever_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "below").mkdir()
        monkeypatch.chdir(tmp_path / "below")
        assert Step.of(Path("../data_step1.jsonl")) == Step(tmp_path, "data", 1)

    def test_step_0_is_never_written(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="step 0 is the input"):
            Step(tmp_path, "data", 0)

    def test_a_step_reads_the_one_before_it(self, tmp_path: Path) -> None:
        inputs = [tmp_path / "data.jsonl"]
        assert Step(tmp_path, "data", 1).input_of(inputs) == inputs
        with pytest.raises(UsageError, match=r"data_step1\.jsonl: not there or not finished: run step 0 first"):
            Step(tmp_path, "data", 2).input_of(inputs)
        Step(tmp_path, "data", 1).path.touch()
        assert Step(tmp_path, "data", 2).input_of(inputs) == [tmp_path / "data_step1.jsonl"]

    def test_the_source_is_never_written_over(self, tmp_path: Path) -> None:
        source = tmp_path / "data_step1.jsonl"
        source.touch()
        (tmp_path / "link").symlink_to(tmp_path)
        with pytest.raises(UsageError, match="same file"):
            Step(tmp_path / "link", "data", 1).input_of([source])

    def test_starting_over_keeps_locks_and_result(self, tmp_path: Path) -> None:
        step = Step(tmp_path, "data", 1)
        step.create_job_folder()
        step.forget()
        for path in (step.header_path, step.journal_path, step.audio_path, step.retried_path, step.path):
            path.touch()
        with step.lock("collector") as lock:
            assert lock.acquire()
            step.forget()
        assert [path.name for path in step.job_path.iterdir()] == ["collector.lock"]
        assert step.path.exists()


class TestAtomicWrite:
    def test_nothing_is_there_until_all_is(self, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        path.write_bytes(b"old")
        with atomic_write(path) as handle:
            handle.write(b"new")
            handle.flush()
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_failure_leaves_what_was_there(self, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        path.write_bytes(b"old")
        with pytest.raises(TypeError), atomic_write(path) as handle:
            handle.writelines([b"new", None])  # type: ignore[list-item]
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
    def test_a_file_system_that_cannot_sync_folders_is_written_to(
        self, tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fsync = os.fsync

        def of_files(fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise OSError(code, os.strerror(code))
            fsync(fd)

        monkeypatch.setattr(os, "fsync", of_files)
        with atomic_write(tmp_path / "out.jsonl") as handle:
            handle.write(b"new")
        assert (tmp_path / "out.jsonl").read_bytes() == b"new"

    def test_a_full_disk_is_one_line(self, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        with (
            pytest.raises(FleetError, match=r"out\.jsonl: cannot be written .*: free some space"),
            full_disk(2**16),
            atomic_write(path) as handle,
        ):
            handle.write(b"x" * 2**17)
        assert list(tmp_path.iterdir()) == []

    def test_leftovers_of_killed_processes_go_and_live_ones_stay(self, tmp_path: Path) -> None:
        path = tmp_path / "out.jsonl"
        old, new, other = (tmp_path / name for name in (".out.jsonl.1.aa.tmp", ".out.jsonl.2.bb.tmp", ".o.1.aa.tmp"))
        for left in (old, new, other):
            left.touch()
        for left in (old, other):
            os.utime(left, (0, time.time() - 7200))
        with atomic_write(path):
            pass
        assert sorted(tmp_path.iterdir()) == sorted([path, new, other])


class TestCheckWritable:
    def test_the_folder_is_made_and_left_empty(self, tmp_path: Path) -> None:
        check_writable(tmp_path / "a" / "b")
        assert list((tmp_path / "a" / "b").iterdir()) == []

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch()
        for path in (tmp_path / "a", tmp_path / "a" / "b"):
            with pytest.raises(UsageError, match=r"cannot be written .*--cache-path"):
                check_writable(path)

    def test_a_file_system_that_takes_no_files(self) -> None:
        with pytest.raises(UsageError, match="/proc/"):
            check_writable(Path("/proc/self"))
