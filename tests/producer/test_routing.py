"""Which queue a job goes to, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.errors import UsageError
from producer.routing import choose_queue, queue_of_job
from workers.models import model_slug
from workers.presence import Presence


def worker(**changes: Any) -> Presence:
    fields: dict[str, Any] = {
        "name": "w@h",
        "queues": ["transcribe", "translate"],
        "model": "openai/whisper-large-v3",
        "revision": "",
        "device": "cuda",
        "version": "0",
        "tasks": ["transcribe", "translate"],
        "languages": ["en", "de"],
        "max_num_seqs": 8,
        "threads": 4,
    }
    return Presence(**{**fields, **changes})


TURBO = worker(model="openai/whisper-large-v3-turbo", tasks=["transcribe"])
ENGLISH = worker(model="openai/whisper-base.en", tasks=["transcribe"], languages=["en"])


@given(st.sampled_from(["transcribe", "translate"]), st.sampled_from(["auto", "en", "xx"]), st.none() | st.text())
def test_without_live_workers_the_plain_queue_waits(task: str, language: str, model: str | None) -> None:
    assert choose_queue([], task, language, model) == task


def test_a_worker_that_can_decides() -> None:
    assert choose_queue([worker()], "translate", "de", None) == "translate"
    assert choose_queue([TURBO, worker()], "translate", "auto", None) == "translate"
    assert choose_queue([ENGLISH, worker()], "transcribe", "de", None) == "transcribe"
    assert choose_queue([worker()], "transcribe", "auto", "openai/whisper-large-v3") == "transcribe"


def test_another_model_has_a_queue_of_its_own() -> None:
    slug = model_slug(TURBO.model)
    turbo = TURBO.model_copy(update={"queues": [f"transcribe.{slug}"]})
    assert choose_queue([worker(), turbo], "transcribe", "auto", TURBO.model) == f"transcribe.{slug}"
    assert choose_queue([worker(), turbo], "transcribe", "auto", None) == "transcribe"


def test_a_model_whose_queue_others_serve_too_needs_its_own() -> None:
    """From the plain queue the other model's workers would take a part of the rows."""
    other = worker(model="openai/whisper-small")
    with pytest.raises(UsageError, match=r"openai/whisper-small serves the queue transcribe too: .* -Q transcribe\."):
        choose_queue([worker(), other], "transcribe", "auto", other.model.replace("small", "large-v3"))
    slug = model_slug(other.model)
    own = other.model_copy(update={"queues": ["transcribe", f"transcribe.{slug}"]})
    assert choose_queue([worker(), own], "transcribe", "auto", other.model) == f"transcribe.{slug}"
    assert choose_queue([own], "transcribe", "auto", other.model) == "transcribe"


def test_the_rows_of_a_job_go_to_one_model() -> None:
    assert queue_of_job([worker(), worker(name="w2@h")], "transcribe", "auto", None) == "transcribe"
    assert queue_of_job([worker(model="whisper-base"), worker(model="openai/whisper-base")], "translate", "auto", None)
    turbo = TURBO.model_copy(update={"queues": [f"transcribe.{model_slug(TURBO.model)}"]})
    assert queue_of_job([worker(), turbo], "transcribe", "auto", None) == "transcribe"
    assert queue_of_job([worker(), TURBO.model_copy(update={"queues": ["transcribe"]})], "translate", "auto", None)
    words = r"the queue transcribe is served with openai/whisper-large-v3, openai/whisper-large-v3-turbo"
    with pytest.raises(UsageError, match=words):
        queue_of_job([worker(), TURBO], "transcribe", "auto", None)
    # A single call is answered by one worker, whichever that is.
    assert choose_queue([worker(), TURBO], "transcribe", "auto", None) == "transcribe"


@pytest.mark.parametrize(
    ("workers", "task", "language", "model", "words"),
    [
        ([TURBO], "translate", "auto", None, ["--task translate", "transcribe (openai/whisper-large-v3-turbo)"]),
        ([ENGLISH], "transcribe", "de", None, ["--language de", "openai/whisper-base.en"]),
        ([worker()], "transcribe", "auto", "tiny", ["--model tiny", "openai/whisper-large-v3"]),
        ([worker(queues=["translate"])], "transcribe", "auto", None, ["queue transcribe", "translate"]),
    ],
)
def test_what_no_worker_can_do_is_refused_in_words_that_name_what_can(
    workers: list[Presence], task: str, language: str, model: str | None, words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        choose_queue(workers, task, language, model)
    for word in words:
        assert word in str(caught.value)
