"""A Redis that forgets: calls that it has lost are sent again, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet import Fleet, wait_for
from producer import Client, lost_calls

ANSWER_SECONDS = 120.0


class Counted:
    """A function, and how often it was called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.count = 0
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        self.count += 1
        return self._function(*arguments)


def test_calls_that_redis_has_lost_are_sent_again_and_no_others(
    fleet: Fleet, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHISPER_STALL_SECONDS", "0.2")

    def queued() -> list[str]:
        return [json.loads(one)["headers"]["id"] for one in fleet.redis.lrange("transcribe", 0, -1)]

    with Client(fleet.url) as client:
        handles = [client.transcribe(samples / "en_train.flac", start_s=number / 10) for number in range(3)]
        ids = sorted(handle.id for handle in handles)
        looks = Counted(lost_calls.calls_on_their_way)
        monkeypatch.setattr(lost_calls, "calls_on_their_way", looks)
        wait_for(lambda: looks.count >= 3)
        assert sorted(queued()) == ids, "what is there is not sent again"
        fleet.redis.flushall()
        wait_for(lambda: sorted(queued()) == ids)
        assert handles.pop().cancel()
        fleet.redis.flushall()
        wait_for(lambda: len(queued()) == 2)
        fleet.start_worker()
        assert len({handle.result(ANSWER_SECONDS).text for handle in handles}) == 2
