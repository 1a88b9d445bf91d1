"""What a command says that is interrupted: how to go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from job_files import new_job

from producer.interruption import Terminated, resumable


@pytest.mark.parametrize("ending", [KeyboardInterrupt, Terminated])
@pytest.mark.parametrize(("force", "again"), [(False, "the same command"), (True, "the same command without --force")])
def test_a_command_that_starts_over_each_time_resumes_without_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: type[BaseException], again: str, *, force: bool
) -> None:
    job = new_job(tmp_path)
    with pytest.raises(ending), resumable(job, force=force):
        raise ending
    said = capsys.readouterr().err
    assert said == f"interrupted: the answers so far are kept in {job.step.job_path}; {again} resumes\n"
