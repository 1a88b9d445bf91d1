"""What a rank can be asked for."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed (whisper-fleet without an engine)")

import torch

from workers.cpu_ranks import CpuRanks


def test_the_loaded_model_remembers_from_then_on() -> None:
    encoded: list[int] = []

    def encode(*, input_features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        encoded.append(len(input_features))
        return input_features.unbind(0)

    ranks = CpuRanks()
    ranks.model_runner = SimpleNamespace(model=SimpleNamespace(embed_multimodal=encode))

    ranks.keep_encodings(windows=1)

    window = torch.ones(1, 4, 3)
    first, again = (ranks.model_runner.model.embed_multimodal(input_features=window) for _ in range(2))
    assert encoded == [1]
    assert torch.equal(first[0], again[0])


VOCABULARY = 400


def metadata_of(temperatures: list[float], seeded: set[int], **others: Any) -> Any:
    """What vLLM's runner tells its sampler of a batch whose rows have these temperatures."""
    sampling = pytest.importorskip("vllm.v1.sample.metadata", reason="vLLM is not installed")
    processors = pytest.importorskip("vllm.v1.sample.logits_processor")
    nothing = torch.zeros(0)
    settings = {
        "temperature": torch.tensor(temperatures),
        "all_greedy": not any(temperatures),
        "all_random": all(temperatures),
        "top_p": None,
        "top_k": None,
        "generators": {row: torch.Generator().manual_seed(row) for row in sorted(seeded)},
        "max_num_logprobs": None,
        "no_penalties": True,
        "prompt_token_ids": None,
        "frequency_penalties": nothing,
        "presence_penalties": nothing,
        "repetition_penalties": nothing,
        "output_token_ids": [],
        "allowed_token_ids_mask": None,
        "bad_words_token_ids": {},
        "logitsprocs": processors.LogitsProcessors([]),
    }
    return sampling.SamplingMetadata(**(settings | others))


class Drawing:
    """vLLM's sampler, which counts the rows that tokens are drawn for."""

    def __init__(self) -> None:
        sampler = pytest.importorskip("vllm.v1.sample.sampler", reason="vLLM is not installed").Sampler()
        self.rows: list[int] = []
        draw = sampler.topk_topp_sampler.forward

        def counted(logits: torch.Tensor, *others: Any) -> Any:
            self.rows.append(len(logits))
            return draw(logits, *others)

        sampler.topk_topp_sampler.forward = counted
        self.own = sampler


@pytest.mark.parametrize(
    ("temperatures", "seeded", "drawn"),
    [
        ([0.0, 0.2, 0.0, 0.0, 1.0], {1, 4}, 2),
        ([0.4, 0.0, 0.0, 0.0, 0.0], {0}, 1),
        ([0.4, 0.0, 0.0, 0.0, 0.6], {0}, 5),  # of one without a seed nobody could tell what vLLM would draw
        ([0.2, 0.4, 0.6, 0.8, 1.0], {0, 1, 2, 3, 4}, 5),
    ],
)
def test_tokens_are_drawn_for_those_rows_alone_that_want_it(
    temperatures: list[float], seeded: set[int], drawn: int
) -> None:
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(3)) * 3
    theirs, ours, ranks = Drawing(), Drawing(), CpuRanks()
    ranks.model_runner = SimpleNamespace(sampler=ours.own)
    ranks.sample_only_what_is_tried_again()

    for step in range(20):  # each draw of a row is the next of its own seed
        if step == 0:
            by_vllm, by_us = (metadata_of(temperatures, seeded) for _ in range(2))
        torch.manual_seed(step)
        expected, _ = theirs.own.sample(logits.clone(), by_vllm)
        torch.manual_seed(step)
        found, logprobs = ours.own.sample(logits.clone(), by_us)

        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype
        assert logprobs is None
    assert set(theirs.rows) == {5}
    assert set(ours.rows) == {drawn}


def test_greedy_batches_and_what_else_is_asked_for_are_left_to_vllm() -> None:
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(3))
    drawing, ranks = Drawing(), CpuRanks()
    ranks.model_runner = SimpleNamespace(sampler=drawing.own)
    ranks.sample_only_what_is_tried_again()

    found, _ = drawing.own.sample(logits.clone(), metadata_of([0.0, 0.0, 0.0], set()))
    assert torch.equal(found.long(), logits.argmax(-1))
    assert drawing.rows == []

    top_k = torch.tensor([VOCABULARY, 1, VOCABULARY], dtype=torch.int32)
    found, _ = drawing.own.sample(logits.clone(), metadata_of([0.0, 0.5, 0.0], {1}, top_k=top_k))
    assert torch.equal(found.long(), logits.argmax(-1))
    assert drawing.rows == [3]


def test_a_sampler_of_another_kind_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Other:
        def sample(self, logits: Any) -> None: ...

    ranks = CpuRanks()
    ranks.model_runner = SimpleNamespace(sampler=Other())
    with caplog.at_level(logging.WARNING):
        ranks.sample_only_what_is_tried_again()
    assert vars(ranks.model_runner.sampler) == {}
    assert "left as it is" in caplog.text

    ranks.model_runner = SimpleNamespace()
    ranks.sample_only_what_is_tried_again()
    assert vars(ranks.model_runner) == {}
