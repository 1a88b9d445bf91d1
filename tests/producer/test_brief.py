from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fleet import Fleet, wait_for
from producer.brief import Brief, SharedAnswer
from workers.redis_client import connect_briefly


@pytest.fixture
def brief(fleet: Fleet) -> Brief:
    return Brief(connect_briefly(fleet.url, 30))


class Line:
    """A lock that counts who came for it."""

    def __init__(self) -> None:
        self.came = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self.came += 1
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def failing(*errors: RedisError) -> tuple[Callable[[Redis], bool], list[int]]:
    """A question that raises these one after another, and then asks; and how often it was asked."""
    left, asked = list(errors), list[int]()

    def question(redis: Redis) -> bool:
        asked.append(len(asked))
        if left:
            raise left.pop(0)
        return bool(redis.ping())

    return question, asked


@pytest.mark.parametrize("error", [RedisConnectionError("reset by peer"), ReadOnlyError("read only replica")])
def test_a_connection_that_was_forgotten_meanwhile_is_made_anew(brief: Brief, error: RedisError) -> None:
    brief.redis.ping()
    (idle,) = brief.redis.connection_pool._available_connections  # type: ignore[attr-defined]
    question, asked = failing(error)
    assert brief.ask(question)
    assert len(asked) == 2
    assert idle._sock is not None, "connected again"
    assert brief.ask(question)


def test_of_silence_others_hear_without_asking(brief: Brief) -> None:
    question, asked = failing(RedisTimeoutError("silent"))
    for _ in range(3):
        with pytest.raises(RedisTimeoutError, match="silent"):
            brief.ask(question)
    assert len(asked) == 1
    brief._silent_at -= 60
    assert brief.ask(question)


def test_who_asked_before_has_the_same_answer(brief: Brief) -> None:
    asking, may_answer, asked = threading.Event(), threading.Event(), list[int]()

    def question(redis: Redis) -> int:
        asking.set()
        assert may_answer.wait(60)
        asked.append(len(asked))
        return len(asked)

    shared = SharedAnswer(brief, question)
    shared._asking = line = Line()  # type: ignore[assignment]
    with ThreadPoolExecutor(9) as threads:
        first = threads.submit(shared.get)
        assert asking.wait(60)
        others = [threads.submit(shared.get) for _ in range(8)]
        wait_for(lambda: line.came == 9)
        may_answer.set()
        assert first.result(60) == 1
        assert [other.result(60) for other in others] == [2] * 8
    assert shared.get() == 3, "who asks later hears what is so then"


def test_what_a_shared_question_raises_is_everybodys(brief: Brief) -> None:
    question, _ = failing(RedisTimeoutError("silent"))
    shared = SharedAnswer(brief, question)
    with pytest.raises(RedisTimeoutError, match="silent"):
        shared.get()
    brief._silent_at -= 60
    assert shared.get()


def test_closing_leaves_the_question_under_way_its_connection_and_no_connection_behind(brief: Brief) -> None:
    pool = brief.redis.connection_pool
    asking, may_answer = threading.Event(), threading.Event()

    def question(redis: Redis) -> bool:
        with redis.pipeline() as pipe:
            pipe.watch("here")  # holds the connection
            (used,) = pool._in_use_connections  # type: ignore[attr-defined]
            asking.set()
            assert may_answer.wait(60)
            assert used._sock is not None
            pipe.multi()
            pipe.ping()
            return bool(pipe.execute())

    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(brief.ask, question)
        assert asking.wait(60)
        brief.close()
        may_answer.set()
        assert answer.result(60)
    assert [one._sock for one in pool._available_connections] == [None]  # type: ignore[attr-defined]
    # And so does who asks afterwards
    assert brief.ask(lambda redis: redis.ping())
    assert [one._sock for one in pool._available_connections] == [None]  # type: ignore[attr-defined]
