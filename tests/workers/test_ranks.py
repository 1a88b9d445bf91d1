"""Windows that are encoded together each get their own encoding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

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
