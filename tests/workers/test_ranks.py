"""Windows that are encoded together each get their own encoding, and those that are decoded together their figures."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.ranks import Ranks


class Runner:
    """What vLLM's first model runner has of this: rows, and an encoder that takes what is scheduled in its order."""

    def __init__(self, rows: dict[str, int]) -> None:
        self.input_batch = SimpleNamespace(req_id_to_index=rows)

    def _execute_mm_encoder(self, scheduled: Any) -> list[str]:
        return list(scheduled.scheduled_encoder_inputs)


@given(st.permutations(range(8)), st.permutations(range(8)), st.integers(0, 8))
def test_encodings_come_in_the_order_of_the_rows(row_of: list[int], order: list[int], count: int) -> None:
    # Given eight windows in their rows, some of which are scheduled to be encoded, in any order
    runner = Runner({f"window {window}": row for window, row in enumerate(row_of)})
    scheduled = SimpleNamespace(scheduled_encoder_inputs={f"window {window}": [0] for window in order[:count]})
    ranks = Ranks()
    ranks.model_runner = runner

    # When they are
    ranks.order_encodings()
    encoded = runner._execute_mm_encoder(scheduled)

    # Then in the order of their rows: all of them, and no other
    assert encoded == sorted(encoded, key=runner.input_batch.req_id_to_index.__getitem__)
    assert set(encoded) == {f"window {window}" for window in order[:count]}
    assert all(inputs == [0] for inputs in scheduled.scheduled_encoder_inputs.values())


def test_a_runner_that_orders_by_itself_is_left_alone() -> None:
    ranks = Ranks()
    ranks.model_runner = SimpleNamespace()
    ranks.order_encodings()
    assert vars(ranks.model_runner) == {}
    ranks.gather_rows_together()
    assert vars(ranks.model_runner) == {}


class Counted:
    """A sampler of the installed vLLM, and for how many rows it was told by name what to gather."""

    def __init__(self) -> None:
        sampler = pytest.importorskip("vllm.v1.sample.sampler", reason="vLLM is not installed")
        self.own = sampler.Sampler()
        self.rows: list[int] = []

    def gather_specific_token_logprobs(self, logprobs: Any, logprob_token_ids: Any, sampled: Any) -> Any:
        self.rows.append(len(logprob_token_ids))
        return self.own.gather_specific_token_logprobs(logprobs, logprob_token_ids, sampled)


@pytest.mark.parametrize(
    ("asked", "looked_at"),
    [
        ({row: [7] for row in range(5)}, 1),
        ({row: [7, 3, 7] for row in reversed(range(5))}, 1),
        ({0: [7], 1: [7], 2: [8], 3: [7], 4: [7]}, 5),
        ({0: [7], 1: [7, 3], 2: [7], 3: [7], 4: [7]}, 5),
        ({row: [7] for row in range(1, 5)}, 4),
        ({0: [7], 3: [7]}, 2),
    ],
)
def test_rows_that_ask_for_the_same_are_gathered_together(asked: dict[int, list[int]], looked_at: int) -> None:
    # Given log-probabilities of five rows, and what they have said
    sampler, ranks = Counted(), Ranks()
    import torch

    logprobs = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    sampled = torch.tensor([4, 7, 0, 39, 7])
    ranks.model_runner = SimpleNamespace(sampler=sampler)

    # When what they ask for is gathered in vLLM's way, and in ours
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        theirs = sampler.own.gather_specific_token_logprobs(logprobs, asked, sampled)
        ranks.gather_rows_together()
        ours = sampler.gather_specific_token_logprobs(logprobs, asked, sampled)

    # Then it is the same, and vLLM's loop was as short as it can be
    assert sampler.rows == [looked_at]
    for one, other in zip(ours, theirs, strict=True):
        assert one is other is None or (one.dtype == other.dtype and torch.equal(one, other))


def test_a_sampler_that_gathers_in_another_way_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Other:
        def gather_specific_token_logprobs(self, logits: Any, rows: Any) -> None: ...

    ranks = Ranks()
    ranks.model_runner = SimpleNamespace(sampler=Other())

    with caplog.at_level(logging.WARNING):
        ranks.gather_rows_together()

    assert vars(ranks.model_runner.sampler) == {}
    assert "left as it is" in caplog.text
