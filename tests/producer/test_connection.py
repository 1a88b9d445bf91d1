"""What a client knows of its fleet, and what finding that out costs its callers."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from celery import Celery

from fleet import Fleet, wait_for
from producer import CallTimeoutError, Client, ClientClosedError, FleetError
from producer import connection as module
from producer.brief import SILENCE_SECONDS
from producer.connection import PRESENCE_SECONDS, Connection
from producer.handle import Handle
from workers import keys
from workers.presence import live_workers
from workers.settings import load_settings


def test_one_caller_looks_who_is_live_and_the_others_go_on(
    standin_fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened_by = Connection(load_settings(REDIS_URL=standin_fleet.url), None)
    looking, may_look, looks = threading.Event(), threading.Event(), list[int]()

    def look(redis: Any) -> Any:
        looks.append(len(looks))
        looking.set()
        assert may_look.wait(60)
        return live_workers(redis)

    monkeypatch.setattr(module, "live_workers", look)
    try:
        opened = opened_by.open()
        with ThreadPoolExecutor(8) as threads:
            # Given nobody who knows yet: all wait for the one that asks
            first = [threads.submit(opened_by._workers, opened) for _ in range(4)]
            assert looking.wait(60)
            may_look.set()
            assert all(len(one.result(60)) == 1 for one in first)
            assert len(looks) == 1
            # When what is known is old, then one asks, and the others have that meanwhile
            opened_by._present_at -= PRESENCE_SECONDS
            looking.clear()
            may_look.clear()
            late = threads.submit(opened_by._workers, opened)
            assert looking.wait(60)
            assert len(opened_by._workers(opened)) == 1
            # And who has to have it fresh waits
            fresh = threads.submit(lambda: opened_by._workers(opened, fresh=True))
            assert not fresh.done()
            may_look.set()
            assert len(late.result(60)) == len(fresh.result(60)) == 1
            wait_for(lambda: len(looks) == 3)
    finally:
        may_look.set()
        opened_by.close()


def test_while_redis_stands_still_waiting_and_cancelling_end_all_the_same(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    valkey = psutil.Process(fleet.valkey.pid)
    with Client(fleet.url) as client:
        handles = [client.transcribe("/a.wav") for _ in range(40)]
        with pytest.raises(CallTimeoutError, match="no worker is live"):
            handles[0].result(0)
        valkey.suspend()
        try:
            began = time.monotonic()
            with pytest.raises(
                CallTimeoutError, match=r"within 1 s: redis://127\S+ does not answer \(Timeout"
            ) as caught:
                handles[0].result(1)
            assert time.monotonic() - began < 60
            assert "@" not in str(caught.value), "no password"
            # Given many that wait or are cancelled at once, then no one waits for all the others
            with ThreadPoolExecutor(4) as threads, caplog.at_level(logging.WARNING, "producer.connection"):
                began = time.monotonic()
                said = list(threads.map(lambda handle: str(handle.timed_out(0)), handles))
                assert all("does not answer" in one for one in said)
                assert all(threads.map(lambda handle: handle.cancel(), handles))
                assert time.monotonic() - began < 60
            assert caplog.text.count("cancelled here, but not in the fleet: Timeout") == len(handles)
        finally:
            valkey.resume()
        # When it is back, so is all else
        wait_for(lambda: "no worker is live" in str(handles[0].timed_out(0)))
        last = client.transcribe("/b.wav")
        time.sleep(SILENCE_SECONDS)
        assert last.cancel()
        assert fleet.redis.hget(keys.task(last.id), "cancelled") == b"1"


def test_closing_beside_threads_that_cancel_and_wait_lets_out_nothing_but_fleet_errors(standin_fleet: Fleet) -> None:
    def use(client: Client, end: Callable[[Handle[Any]], object]) -> BaseException:
        try:
            while True:
                end(client.transcribe("/no_such.wav"))
        except Exception as error:  # noqa: BLE001 - the caller looks what it is
            return error

    def wait_in_vain(handle: Handle[Any]) -> None:
        with pytest.raises(CallTimeoutError):
            raise handle.timed_out(0)

    for _ in range(10):
        client = Client(standin_fleet.url).open()
        with ThreadPoolExecutor(6) as threads:
            ended = [threads.submit(use, client, end) for end in [Handle.cancel, wait_in_vain] * 3]
            time.sleep(0.15)
            client.close()
            for one in ended:
                error = one.result(60)
                assert isinstance(error, FleetError), repr(error)


def test_a_signal_handler_may_close_the_client_whose_call_is_being_cancelled(
    standin_fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(standin_fleet.url)
    handle = client.transcribe("/no_such.wav")
    opened = client._connection.open()
    connections = opened.telling.redis.connection_pool
    read = connections.connection_class.read_response

    def interrupted(self: Any, *arguments: Any, **options: Any) -> Any:
        if self in connections._in_use_connections and self._sock is not None and not client._connection._closed:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, *arguments, **options)

    before = signal.signal(signal.SIGTERM, lambda *_: client.close())
    monkeypatch.setattr(connections.connection_class, "read_response", interrupted)
    try:
        with caplog.at_level(logging.WARNING, "producer.connection"):
            cancelled = handle.cancel()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert cancelled
    assert client._connection._closed
    assert not caplog.text
    assert standin_fleet.redis.hget(keys.task(handle.id), "cancelled") == b"1"


def test_of_a_closed_client_that_is_what_keeps_answers_away(standin_fleet: Fleet) -> None:
    client = Client(standin_fleet.url).open()
    client.close()
    assert client._connection.why_waiting() == ": the client was closed"


def test_a_connection_closed_beneath_a_look_at_the_workers_is_a_closed_client(
    standin_fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(standin_fleet.url).open()

    def look(redis: Any) -> Any:
        client.close()
        raise ValueError("I/O operation on closed file.")

    monkeypatch.setattr(module, "live_workers", look)
    with pytest.raises(ClientClosedError):
        client.transcribe("/no_such.wav")


def test_a_client_closes_also_while_redis_stands_still(fleet: Fleet) -> None:
    """A container has half a minute to end, and those who wait for answers would be left waiting until then."""
    valkey = psutil.Process(fleet.valkey.pid)
    client = Client(fleet.url)
    handle = client.transcribe("/a.wav")
    wait_for(lambda: fleet.redis.llen("transcribe") == 1)
    valkey.suspend()
    try:
        time.sleep(0.3)  # the thread that looks for answers asks, and gets none
        with ThreadPoolExecutor(2) as threads:
            waiting, closing = threads.submit(handle.result), threads.submit(client.close)
            assert isinstance(waiting.exception(20), ClientClosedError)
            assert closing.exception(20) is None
    finally:
        valkey.resume()


def test_a_client_and_the_applications_celery_have_connections_of_their_own(standin_fleet: Fleet) -> None:
    """kombu's pools are one for all apps of a process: who begins to send set their limit anew."""
    own = Celery("somebody", broker=standin_fleet.url, set_as_current=False)
    own.conf.broker_pool_limit = 30
    with own.pool.acquire() as held:
        held.ensure_connection()
        with Client(standin_fleet.url) as client:
            client.transcribe("/no_such.wav").cancel()
            pools = client._connection.open().app.pool, client._connection.open().app.producer_pool
            assert own.pool.limit == 30
        assert held.connected, "they are not the client's to close"
        assert all(pool is not own.pool for pool in pools)
    assert not any(connection._connection for connection in list(pools[0]._resource.queue) if not callable(connection))
    own.close()


def test_clients_that_close_leave_the_time_limit_of_others_sockets_alone(standin_fleet: Fleet) -> None:
    """kombu changes it for all of the process while it closes a pool; two at once would leave it changed."""
    found: set[float | None] = set()
    watching = threading.Event()

    def watch() -> None:
        while not watching.wait(0):
            found.add(socket.getdefaulttimeout())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(3):
            clients = [Client(standin_fleet.url).open() for _ in range(4)]
            for client in clients:
                client.transcribe("/no_such.wav").cancel()
            with ThreadPoolExecutor(4) as threads:
                list(threads.map(Client.close, clients))
    finally:
        watching.set()
        watcher.join()
    assert found == {None}
