"""What `worker` and `flower` become, and what is refused before."""

from __future__ import annotations

import pytest

from producer.embedded import worker_command
from producer.errors import UsageError
from producer.services import check_arguments, run_flower, run_worker
from workers.settings import load_settings


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.1.2.3", "flower.example.org", ""])
@pytest.mark.usefixtures("no_password")
def test_flower_for_others_needs_a_password(address: str) -> None:
    with pytest.raises(UsageError, match="FLOWER_BASIC_AUTH"):
        run_flower(address, 5555, (), load_settings())


@pytest.fixture
def no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOWER_BASIC_AUTH", raising=False)
    monkeypatch.delenv("FLOWER_AUTH", raising=False)


def test_further_arguments_of_a_worker_come_last() -> None:
    command = worker_command("w@%h", "-Q", "transcribe", "-c", "2")
    assert command[-4:] == ["-Q", "transcribe", "-c", "2"]
    assert "transcribe,translate" in command[: command.index("-n")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--autoscale=8,2"], "--autoscale: a worker has a fixed number"),
        (["-c", "2", "--autoscale", "8"], "--autoscale: "),
        (["-P", "solo"], "-P: the tasks of a worker run in threads"),
        (["-Pgevent"], "-P: "),
        (["--pool=prefork"], "--pool: "),
        (["-D"], "-D: nobody would start it again"),
        (["--detach", "--pidfile=x"], "--detach: "),
        (["-Q", "transcribe", "-Q", "translate"], "-Q: given twice"),
        (["-Qtranscribe", "--queues=translate"], "-Q: given twice"),
    ],
)
def test_arguments_of_celery_that_would_do_harm_are_refused(arguments: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_worker(arguments, {}, None, load_settings())
    assert caught.value.message.startswith(says)


@pytest.mark.parametrize(
    "arguments", [["-Q", "transcribe.large,transcribe"], ["-c", "3", "-l", "DEBUG", "--pidfile=p"], ["--purge"]]
)
def test_others_are_taken(arguments: list[str]) -> None:
    check_arguments(arguments)
