"""The Celery app: queues, priorities, and the reliability settings that the design fixes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from fleet import Fleet, wait_for
from producer import Client
from producer.embedded import start_guarded, worker_command
from workers import device
from workers.app import PRIORITY_BULK, PRIORITY_INTERACTIVE, create_app, priority_of, queue_name, task_threads
from workers.messages import TASK_NAMES, TASKS, Task
from workers.settings import load_settings


@pytest.fixture
def app(fleet: Fleet) -> Iterator[Celery]:
    """An app as a producer has it, on a broker that no worker serves."""
    made = create_app(load_settings(redis_url=fleet.url))
    yield made
    made.close()


def sent(fleet: Fleet, key: str) -> list[dict[str, object]]:
    return [json.loads(message) for message in fleet.redis.lrange(key, 0, -1)]


@pytest.mark.parametrize("task", TASKS)
def test_interactive_messages_go_to_the_queue_of_their_task(app: Celery, fleet: Fleet, task: Task) -> None:
    app.send_task(TASK_NAMES[task], [[{"audio": "a.wav"}]], priority=PRIORITY_INTERACTIVE)
    app.send_task(TASK_NAMES[task], [[{"audio": "a.wav"}]])

    messages = sent(fleet, task)
    assert len(messages) == 2
    assert {message["headers"]["task"] for message in messages} == {TASK_NAMES[task]}  # type: ignore[index]
    assert {message["content-type"] for message in messages} == {"application/json"}


def test_bulk_messages_wait_in_a_list_of_their_own(app: Celery, fleet: Fleet) -> None:
    app.send_task(TASK_NAMES["transcribe"], [[{"audio": "a.wav"}]], priority=PRIORITY_BULK)

    (message,) = sent(fleet, "transcribe:5")
    assert message["properties"]["priority"] == 5  # type: ignore[index]
    assert sent(fleet, "transcribe") == []


def test_messages_for_another_model_go_to_its_queue(app: Celery, fleet: Fleet) -> None:
    queue = queue_name("transcribe", "whisper-tiny")
    app.send_task(TASK_NAMES["transcribe"], [[{"audio": "a.wav"}]], queue=queue)

    assert queue == "transcribe.whisper-tiny"
    assert len(sent(fleet, queue)) == 1
    assert sent(fleet, "transcribe") == []


def test_queues_carry_their_tasks_names() -> None:
    app = create_app(load_settings())

    assert {(queue.name, queue.exchange.name, queue.routing_key) for queue in app.conf.task_queues} == {
        ("transcribe", "transcribe", "transcribe"),
        ("translate", "translate", "translate"),
    }
    assert queue_name("translate") == "translate"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        # A worker that dies gives its messages back, and nobody hoards them.
        ("task_acks_late", True),
        ("worker_prefetch_multiplier", 1),
        ("worker_disable_prefetch", True),
        # JSON only: pickle would run what a stranger sends.
        ("accept_content", ["json"]),
        ("task_serializer", "json"),
        ("result_serializer", "json"),
        # A prefork child cannot start vLLM.
        ("worker_pool", "workers.pool:TaskPool"),
        ("worker_send_task_events", True),
        ("broker_connection_max_retries", None),
        ("broker_channel_error_retry", True),
        ("result_backend_always_retry", False),  # in workers only
        ("broker_connection_retry_on_startup", True),
        ("worker_cancel_long_running_tasks_on_connection_loss", False),
    ],
)
def test_reliability_settings(setting: str, value: object) -> None:
    assert getattr(create_app(load_settings()).conf, setting) == value


def test_own_settings_reach_celery() -> None:
    config = load_settings(
        visibility_timeout_seconds=7, restore_seconds=3, concurrency=5, redis_url="redis://:pw@h:1/2"
    )
    conf = create_app(config).conf

    assert conf.worker_concurrency == 5
    assert conf.visibility_timeout == 7
    assert conf.result_backend_transport_options["visibility_timeout"] == 7
    transport = conf.broker_transport_options
    assert (transport["visibility_timeout"], transport["unacked_restore_interval"]) == (7, 3)
    assert transport["unacked_restore_throttle"] == 1
    assert transport["unacked_mutex_expire"] == 3
    assert transport["priority_steps"] == [PRIORITY_INTERACTIVE, PRIORITY_BULK]
    assert conf.broker_url == conf.result_backend == "redis://:pw@h:1/2"
    assert "global_keyprefix" not in transport, "foreign clients do not know it"


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ({"engine": "standin"}, 5),
        ({"max_num_seqs": 1}, 3),
        ({"max_num_seqs": 16}, 9),
        ({"max_num_seqs": 512}, 65),
        ({"concurrency": 3}, 3),
    ],
)
def test_tasks_at_once(given: dict[str, int], threads: int) -> None:
    assert task_threads(load_settings(**given)) == threads


def test_tasks_at_once_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "device_kind", lambda: "cpu")

    assert task_threads(load_settings()) == 9


def test_worker_really_has_threads_and_both_tasks(standin_fleet: Fleet) -> None:
    app = create_app(load_settings(redis_url=standin_fleet.url))
    try:
        inspect = app.control.inspect(timeout=60, limit=1)
        (pool,) = [worker["pool"] for worker in inspect.stats().values()]
        (tasks,) = inspect.registered().values()
        (queues,) = inspect.active_queues().values()
    finally:
        app.close()

    assert pool["implementation"] == "workers.pool:TaskPool"
    assert pool["max-concurrency"] == 5
    assert sorted(tasks) == sorted(TASK_NAMES.values())
    assert sorted(queue["name"] for queue in queues) == sorted(TASKS)


def test_the_queue_of_what_follows_a_call_is_nobody_s_here(app: Celery, fleet: Fleet, samples: Path) -> None:
    # Given a worker that was told no queues
    command = [part for part in worker_command("all@%h") if part not in ("-Q", ",".join(TASKS))]
    fleet.workers.append(start_guarded(command, fleet.environment(), fleet.log_path()))
    fleet.wait_for_workers(1)
    recording = {"audio": str(samples / "en_train.flac")}

    # When it has sent something there, and connects anew
    for count in (1, 2):
        app.send_task(TASK_NAMES["translate"], [[recording]], link=app.signature("another.after"))
        wait_for(lambda count=count: fleet.redis.llen("celery") == count)
        fleet.redis.client_kill_filter(_type="normal")

    # Then it takes from the queues of its tasks, and from no other
    found = wait_for(lambda: app.control.inspect(timeout=5, limit=1).active_queues())
    (queues,) = found.values()
    assert sorted(queue["name"] for queue in queues) == sorted(TASKS)
    assert fleet.redis.llen("celery") == 2


@pytest.mark.parametrize(
    ("info", "priority"), [({}, 0), ({"priority": None}, 0), ({"priority": "high"}, 0), ({"priority": "5"}, 5)]
)
def test_a_priority_that_is_no_number_is_served_first_as_by_kombu(info: dict[str, object], priority: int) -> None:
    assert priority_of(info) == priority


@pytest.mark.parametrize("variable", ["CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"])
def test_another_celery_of_the_environment_is_not_the_fleets(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """An application's own: its calls of the fleet would go to its own workers' Redis."""
    monkeypatch.setenv(variable, "redis://other:1/0")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://other:1/0")
    app = create_app(load_settings(redis_url="redis://fleet:2/3"), set_as_current=False)
    for connect in (app.connection_for_read, app.connection_for_write, app.connection, app.broker_connection):
        assert connect().info()["hostname"] == "fleet"
    assert app.backend.as_uri() == "redis://fleet:2/3"
    assert app.amqp.producer_pool.connections.connection.info()["hostname"] == "fleet"


def test_settings_of_another_celery_are_not_the_fleets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "applications_own.py").write_text("task_always_eager = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "applications_own")
    assert not create_app(load_settings(), set_as_current=False).conf.task_always_eager


def test_a_project_of_django_in_the_environment_is_not_the_fleets(
    monkeypatch: pytest.MonkeyPatch, fleet: Fleet
) -> None:
    """Celery would mend its apps for it, and fails on this one."""
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "site_of_somebody.settings")
    with Client(fleet.url) as client:
        client.transcribe("/a.wav")
        assert sent(fleet, "transcribe")
    fleet.redis.delete("transcribe")
    assert not create_app(load_settings(), set_as_current=False).fixups
