"""Calls from an event loop: the same answers, and the loop never waits."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from job_files import read_rows, write_rows

from fleet import Fleet, wait_for
from producer import (
    AsyncClient,
    CallCancelledError,
    CallTimeoutError,
    ClientClosedError,
    FleetError,
    FleetUnavailableError,
    Transcript,
    TranscriptionError,
    UsageError,
)
from workers.marks import mark_cancelled

ANSWER_SECONDS = 120.0


def run(url: str, work: Callable[[AsyncClient], Awaitable[Any]]) -> None:
    async def main() -> None:
        async with AsyncClient(url) as client:
            await work(client)

    asyncio.run(main())


@pytest.fixture
def train(samples: Path) -> Path:
    return samples / "en_train.flac"


def test_calls_are_answered_side_by_side_without_a_thread_each(standin_fleet: Fleet, train: Path) -> None:
    async def work(client: AsyncClient) -> None:
        before = threading.active_count()
        handles = await asyncio.gather(*(client.transcribe(train, start_s=n / 100, language="de") for n in range(40)))
        waiting = [asyncio.create_task(handle.result(ANSWER_SECONDS)) for handle in handles]
        await asyncio.sleep(0)
        assert threading.active_count() - before <= 4
        transcripts = await asyncio.gather(*waiting)
        assert len({transcript.text for transcript in transcripts}) == 40
        assert {transcript.language for transcript in transcripts} == {"de"}
        assert all(handle.done() for handle in handles)
        translated = await client.translate([train], start_s=0.0)
        assert await translated.result(ANSWER_SECONDS) == [transcripts[0].model_copy(update={"language": "en"})], (
            "the stand-in hears English unless it is told"
        )

    run(standin_fleet.url, work)


def test_errors_are_those_of_the_other_client(standin_fleet: Fleet, train: Path) -> None:
    async def work(client: AsyncClient) -> None:
        missing = await client.transcribe(train.with_name("no_such.wav"))
        with pytest.raises(TranscriptionError) as caught:
            await missing.result(ANSWER_SECONDS)
        assert caught.value.type == "file_not_found"
        with pytest.raises(UsageError, match="unknown language"):
            await client.transcribe(train, language="Klingon")
        with pytest.raises(UsageError, match="window=0"):
            await anext(client.submit_many([train], window=0))

    run(standin_fleet.url, work)


def test_waiting_ends_without_ending_the_call(fleet: Fleet) -> None:
    async def work(client: AsyncClient) -> None:
        handle = await client.transcribe("/a.wav")
        with pytest.raises(CallTimeoutError, match=r"no answer within 0\.01 s: no worker is live"):
            await handle.result(0.01)
        waiting = asyncio.create_task(handle.result())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not handle.done()
        assert await handle.cancel()
        assert not await handle.cancel()
        with pytest.raises(CallCancelledError):
            await handle.result()
        left = await client.transcribe("/b.wav")
        await client.close()
        with pytest.raises(ClientClosedError):
            await left.result()
        with pytest.raises(ClientClosedError):
            await client.transcribe("/c.wav")
        await client.close()

    run(fleet.url, work)


def test_a_call_that_nobody_waits_to_be_sent_is_cancelled(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelling: list[str] = []

    def watched(*arguments: Any) -> None:
        cancelling.append(threading.current_thread().name)
        mark_cancelled(*arguments)

    monkeypatch.setattr("producer.connection.mark_cancelled", watched)

    async def work(client: AsyncClient) -> None:
        sending = [asyncio.create_task(client.transcribe("/a.wav")) for _ in range(30)]
        while not fleet.redis.llen("transcribe"):
            await asyncio.sleep(0)
        for one in sending:
            one.cancel()
        ended = await asyncio.gather(*sending, return_exceptions=True)
        kept = [one.id for one in ended if not isinstance(one, BaseException)]
        answers = client._connection.open().answers
        while sorted(answers.outstanding()) != sorted(kept):
            await asyncio.sleep(0.01)
        # Sent meanwhile, and the loop's turn comes after that
        queued = fleet.redis.llen("transcribe")
        last = asyncio.create_task(client.transcribe("/a.wav"))
        await asyncio.sleep(0)
        while fleet.redis.llen("transcribe") == queued:
            time.sleep(0.01)
        time.sleep(0.1)
        last.cancel()
        await asyncio.gather(last, return_exceptions=True)
        while answers.outstanding() != kept:
            await asyncio.sleep(0.01)

    run(fleet.url, work)
    assert cancelling
    assert threading.main_thread().name not in cancelling, "the loop would wait for Redis"


def test_a_forked_process_has_to_open_its_own(fleet: Fleet) -> None:
    code = """
import asyncio, os, signal, sys
from producer import AsyncClient, FleetError

async def parents():
    return await client.transcribe("/a.wav")

async def childs():
    try:
        await client.transcribe("/b.wav")
    except FleetError as error:
        print(error.message, await handle.cancel(), flush=True)
    try:
        await handle.result()
    except FleetError as error:
        print(error.message, flush=True)

client = AsyncClient()
handle = asyncio.run(parents())
child = os.fork()
if child == 0:
    signal.alarm(60)
    asyncio.run(childs())
    sys.exit()
os.waitpid(child, 0)
print(handle.done(), flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=fleet.environment(), text=True, capture_output=True, timeout=100, check=False
    )
    assert done.stdout.splitlines() == [
        "the client was opened before this process was forked: open one in each process False",
        "the client was opened before this process was forked: open one in each process",
        "False",
    ], done.stderr
    assert fleet.redis.llen("transcribe") == 1


def test_a_redis_that_is_away_is_said_so(fleet: Fleet) -> None:
    async def work(client: AsyncClient) -> None:
        handle = await client.transcribe("/a.wav")
        fleet.kill_valkey()
        with pytest.raises(FleetUnavailableError, match=r"redis://\S+ does not answer"):
            await client.transcribe("/b.wav")
        with pytest.raises(CallTimeoutError):
            await handle.result(0)

    run(fleet.url, work)


def test_while_redis_stands_still_nobody_waits_behind_what_is_sent(fleet: Fleet) -> None:
    valkey = psutil.Process(fleet.valkey.pid)

    async def work(client: AsyncClient) -> None:
        handle = await client.transcribe("/a.wav")
        valkey.suspend()
        try:
            sending = [asyncio.create_task(client.transcribe("/b.wav")) for _ in range(8)]
            began = time.monotonic()
            with pytest.raises(CallTimeoutError, match=r"redis://\S+ does not answer"):
                await handle.result(1)
            assert await handle.cancel()
            assert time.monotonic() - began < 60
        finally:
            valkey.resume()
        await asyncio.gather(*sending, return_exceptions=True)

    run(fleet.url, work)


def test_many_are_given_as_they_come(standin_fleet: Fleet, train: Path) -> None:
    read = 0

    async def rows() -> AsyncIterator[dict[str, Any]]:
        nonlocal read
        for number in range(40):
            read += 1
            await asyncio.sleep(0)
            yield {"audio": "/no/such.wav" if number % 10 == 3 else train, "id": number, "start_s": number / 100}

    async def work(client: AsyncClient) -> None:
        outcomes: dict[int, Any] = {}
        async for row, outcome in client.submit_many(rows(), window=6):
            outcomes[row["id"]] = outcome
            assert read - len(outcomes) <= 6
        assert sorted(outcomes) == list(range(40))
        assert [id for id, one in sorted(outcomes.items()) if not isinstance(one, Transcript)] == [3, 13, 23, 33]
        pairs = [pair async for pair in client.submit_many([train, None])]  # type: ignore[list-item]
        assert {type(outcome) for _, outcome in pairs} == {Transcript, UsageError}

    run(standin_fleet.url, work)


def test_many_that_are_closed_are_cancelled(slow_fleet: Fleet, train: Path) -> None:
    async def work(client: AsyncClient) -> None:
        given = client.submit_many(({"audio": train, "start_s": number / 100} for number in range(10**9)), window=64)
        _, outcome = await anext(given)
        assert isinstance(outcome, Transcript)
        await given.aclose()
        assert client._connection.open().answers.outstanding() == []

    dropped = slow_fleet.log_path().read_text().count("was cancelled")
    run(slow_fleet.url, work)
    wait_for(lambda: slow_fleet.log_path().read_text().count("was cancelled") >= dropped + 2)


def test_a_job_is_run_beside_the_loop(standin_fleet: Fleet, train: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "data.jsonl", [{"audio": str(train)}])

    async def work(client: AsyncClient) -> None:
        path = await client.run_job(source, cache_path=tmp_path / "cache", task="translate")
        assert [row["transcription"][:9] for row in read_rows(path)] == ["stand-in "]

    run(standin_fleet.url, work)


def test_an_opening_that_is_cancelled_leaves_no_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has the client yet: its fleet would come up, and the loop's end wait for that."""
    started, may_start = threading.Event(), threading.Event()

    class Keeper:
        def __init__(self, *_: Any) -> None: ...

        def wait(self) -> None:
            started.set()
            assert may_start.wait(60)
            raise FleetError("it was stopped")

        def stop(self) -> None:
            may_start.set()

    monkeypatch.setattr("producer.keeper.FleetKeeper", Keeper)

    async def work() -> None:
        async def entered() -> None:
            async with AsyncClient.embedded():
                pytest.fail("it was opened")

        opening = asyncio.create_task(entered())
        await asyncio.to_thread(started.wait, 60)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    asyncio.run(work())
    assert may_start.is_set()
