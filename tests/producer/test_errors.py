from __future__ import annotations

import errno
from pathlib import Path

import pytest
from job_files import answer, finished, new_job, write_rows

from producer.dataflow.words import arguments_named
from producer.disk import disk_errors
from producer.errors import FleetError, UsageError, reworded, without_commands


def test_an_error_in_other_words_is_the_same_error() -> None:
    with pytest.raises(UsageError) as caught, reworded(str.upper):
        raise UsageError("no audio", type="no_audio")
    assert (caught.value.message, caught.value.type, caught.value.exit_code) == ("NO AUDIO", "no_audio", 2)


def test_an_error_whose_words_stay_is_left_alone() -> None:
    error = FleetError("lost")
    with pytest.raises(FleetError) as caught, reworded(str.strip):
        raise error
    assert caught.value is error


def test_nobody_who_calls_a_function_is_told_to_run_a_command(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"free some space and run it again$"), reworded(without_commands):  # noqa: SIM117
        with disk_errors(tmp_path / "file"):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_pipeline_is_not_told_of_options_that_it_does_not_have(tmp_path: Path) -> None:
    job = finished(new_job(tmp_path), [answer(row) for row in range(5)])
    write_rows(tmp_path / "data.jsonl", [{"audio": "other.wav"}] * 5)
    with pytest.raises(UsageError, match=r"put it back, or start over with force=True$"), arguments_named():
        job.check_input()
    with pytest.raises(UsageError, match=r"or start over with --force \(and keep answers with --reuse\)$"):
        job.check_input()
