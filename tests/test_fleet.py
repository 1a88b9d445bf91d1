"""The helpers that keep tests apart."""

from __future__ import annotations

import os

import pytest

from fleet import Fleet, environment_kept


def test_what_a_test_sets_in_the_environment_reaches_no_later_worker(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a test that sets one thing, changes another and takes a third away, as vLLM does where it is configured
    monkeypatch.setenv("CHANGED", "before")
    monkeypatch.setenv("TAKEN", "before")
    before = fleet.environment()
    with environment_kept():
        os.environ["LD_PRELOAD"] = "/opt/libgomp.so.1"
        os.environ["CHANGED"] = "after"
        del os.environ["TAKEN"]
        assert fleet.environment() != before

    # When it has ended, the next one's workers hear nothing of it.
    assert fleet.environment() == before


@pytest.fixture(scope="module")
def turns() -> list[None]:
    """A fixture that outlives its test, and is as careless as one that builds vLLM's configuration."""
    os.environ["SET_BY_A_FIXTURE"] = "1"
    return []


@pytest.mark.parametrize("turn", ["first", "second"])
def test_what_a_longer_lived_fixture_sets_is_gone_with_its_first_test(turn: str, turns: list[None]) -> None:
    turns.append(None)

    assert ("SET_BY_A_FIXTURE" in os.environ) == (len(turns) == 1), turn
