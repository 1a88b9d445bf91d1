"""Whether an engine's output can be a model's at all. Pure Python: no torch, no vLLM.

A GPU that computes NaN (a broken one, or float16 that overflows) ends no process: the likeliest token is then the one
with id 0, whatever the decode rules force, and its log-probability is no number. Found here, such a window is tried
again; a whole job would else get permanent errors and texts of "!!!!" from a worker that takes itself for healthy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from workers.decoding import ANY_LANGUAGE, Rules
from workers.errors import EngineLostError, TransientError

#: So many such outputs without a good one between them, and the engine is lost. One more than the tries of a record
#: whose own window does it (`workers.retries`: three in place, of five messages): that is no fault of the engine.
MOST_IN_A_ROW = 16


class Soundness:
    """Looks at the outputs of one engine, and counts those in a row that no model can have given. For one thread."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def check(self, ids: Sequence[int], logprobs: Sequence[Mapping[int, float]], rules: Rules) -> None:
        """Raises TransientError ``engine_error`` for an output that cannot be, EngineLostError for one too many.

        ``ids``, ``logprobs``: as for `workers.decoding.parse_output`; ``rules``: those of the request.
        """
        if follows(ids, rules) and all(math.isfinite(step[id]) for id, step in zip(ids, logprobs, strict=True)):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row >= MOST_IN_A_ROW:
            raise EngineLostError(f"it computes no numbers: so it was with {self._in_a_row} windows in a row")
        raise TransientError("engine_error", "the engine computed no numbers (NaN) for a window")


def follows(ids: Sequence[int], rules: Rules) -> bool:
    """Whether the first tokens are those that the rules force."""
    forced: list[tuple[int, ...]] = []
    if rules.languages:
        forced += [rules.languages if rules.language == ANY_LANGUAGE else (rules.language,), (rules.task,)]
    if not rules.timestamps:
        forced.append((rules.no_timestamps,))
    return len(ids) >= len(forced) and all(id in allowed for id, allowed in zip(ids, forced, strict=False))
