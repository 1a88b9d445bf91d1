"""A right that the README's user has and this one lacks is named at once, wherever somebody would wait for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet import Fleet, ended, wait_for
from producer import registry
from readme_acl import readme_rules, restricted
from workers import exit_codes
from workers.app import create_app
from workers.errors import SettingsError
from workers.redis_client import check_server, connect
from workers.redis_rights import missing_rights
from workers.settings import load_settings

#: INFO is no right that anybody waits for (`producer.room`), nor are those of chains and chords.
FEW_NEED = {"+info", "~celery", "~celery:5", "~celery-taskset-meta-*"}
RIGHTS = [rule for rule in readme_rules() if rule[0] in "+~&" and rule not in FEW_NEED]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("rights"), {"WHISPER_ENGINE": "standin"}) as running:
        yield running


def test_the_readmes_user_lacks_nothing_and_asking_leaves_nothing(broker: Fleet) -> None:
    check_server(restricted(broker, readme_rules()))
    check_server(restricted(broker, readme_rules(without=sorted(FEW_NEED))))
    assert missing_rights(broker.redis) == []
    assert broker.redis.dbsize() == 0


@pytest.mark.parametrize("right", RIGHTS)
def test_a_right_that_is_missing_is_named(broker: Fleet, right: str) -> None:
    url = restricted(broker, readme_rules(without=[right]))

    assert missing_rights(connect(url)) == [right]
    with pytest.raises(SettingsError, match=rf"it lacks {re.escape(right)}\): see its ACL in the README"):
        check_server(url)


def test_channels_have_the_databases_number(broker: Fleet) -> None:
    assert missing_rights(connect(restricted(broker, readme_rules(), 1))) == ["&/1.celeryev/*", "&/1.celery.pidbox"]
    rules = [rule.replace("&/0.", "&/1.") for rule in readme_rules()]
    assert missing_rights(connect(restricted(broker, rules, 1))) == []


@pytest.mark.parametrize("command", ["enqueue", "run", "collect"])
def test_a_command_ends_with_a_line_and_makes_nothing(
    broker: Fleet, jsonl: Callable[..., Path], tmp_path: Path, command: str
) -> None:
    inputs = [] if command == "collect" else [str(jsonl([{"audio": "a.wav"}]))]
    url = restricted(broker, readme_rules(without=["~_kombu.*", "+time"]))

    done = broker.cli(command, *inputs, cwd=tmp_path, timeout=60, REDIS_URL=url)

    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "it lacks +time ~_kombu.*" in done.stderr
    assert not list(tmp_path.glob("cache/*"))


def test_a_worker_ends_with_a_line(broker: Fleet) -> None:
    url = restricted(broker, readme_rules(without=["~_kombu.*"]))

    worker = broker.start_worker(wait=False, REDIS_URL=url)

    assert worker.wait(120) == exit_codes.CANNOT_START
    said = broker.log_path().read_text()
    assert said.count("The worker cannot start: ") == 1
    assert "it lacks ~_kombu.*" in said


def test_a_right_that_is_taken_away_ends_who_would_wait_for_it(
    broker: Fleet, jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    # Given a collector and a producer, who wait for workers and may do all
    source = jsonl([{"audio": f"{row}.wav"} for row in range(10)])
    url = restricted(broker, readme_rules())
    options = {"REDIS_URL": url, "WHISPER_WINDOW_ROWS": "2", "WHISPER_CHUNK_ROWS": "1"}
    with (
        ended(broker.start_cli("enqueue", str(source), cwd=tmp_path, **options)) as producer,
        ended(broker.start_cli("collect", cwd=tmp_path, **options)) as collector,
    ):
        wait_for(lambda: broker.redis.llen("transcribe:5") == 2)
        (job,) = wait_for(lambda: registry.registered(broker.redis))
        wait_for(lambda: registry.read(broker.redis, job.id) is not None)  # said by the collector
        # When he may not any more
        restricted(broker, readme_rules(without=["~whisper:*"]))
        # Then both end and say why
        for process in (producer, collector):
            _, said = process.communicate(timeout=60)
            assert process.returncode == 1
            assert "this user may not do what the fleet needs" in said.splitlines()[-1]


def test_a_worker_whose_right_is_taken_away_says_which_and_goes_on_when_it_is_back(fleet: Fleet) -> None:
    worker = fleet.start_worker(REDIS_URL=restricted(fleet, readme_rules()))
    log = fleet.log_path()

    restricted(fleet, readme_rules(without=["~transcribe*"]))
    wait_for(lambda: "Redis: this user may not do what the fleet needs" in log.read_text())
    restricted(fleet, readme_rules())

    with create_app(load_settings(redis_url=fleet.url)) as client:
        sent = client.send_task("whisper.transcribe", [[{"audio": "/nowhere.wav"}]])
        with pytest.raises(Exception, match="file_not_found"):
            sent.get(timeout=120)
    assert worker.poll() is None
