"""Whisper's decode rules as one pure function over a batch of logits. Knows torch, not vLLM.

Source: openai/whisper `decoding.py` (SuppressBlank, SuppressTokens, ApplyTimestampRules). Language, task and
`<|notimestamps|>` are forced first steps here, so that one pass over the audio gives them all. One rule is our own:
timestamps at a pause are favoured (`workers.pauses`) unless the model is about to say a punctuation mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workers.decoding import ANY_LANGUAGE, MAX_INITIAL_STEPS, Rules

#: Added to the logits of timestamps at a pause: there, they are so likely as e^3 (20) times the model's own odds.
PAUSE_LOGITS = 3.0
#: Timestamps from 0.00 to 30.00 s.
STAMPS = 1501


@dataclass(frozen=True, slots=True)
class Table:
    """What is the same for all requests of a checkpoint, on the logits' device."""

    #: Ids of the languages, long[languages].
    languages: torch.Tensor
    #: Never said in a text, long[n]: the checkpoint's own list, and all control tokens.
    suppressed: torch.Tensor
    #: Never said first, long[n].
    suppressed_at_begin: torch.Tensor
    #: What ends a clause, long[n].
    punctuation: torch.Tensor
    end_of_text: int
    no_timestamps: int
    #: Forced steps that every request has: language and task, none for English-only checkpoints.
    prefix: int

    @classmethod
    def of(cls, rules: Rules, device: torch.device) -> Table:
        """The table for ``rules``."""

        def ids(values: Sequence[int]) -> torch.Tensor:
            return to_device(torch.tensor(values, dtype=torch.long), device)

        control = range(rules.end_of_text + 1, rules.no_timestamps + 1)
        return cls(
            languages=ids(rules.languages),
            suppressed=ids(sorted({*rules.suppressed, *control})),
            suppressed_at_begin=ids(rules.suppressed_at_begin),
            punctuation=ids(rules.punctuation),
            end_of_text=rules.end_of_text,
            no_timestamps=rules.no_timestamps,
            prefix=2 if rules.languages else 0,
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """What each row of a batch has asked for and said so far. Every tensor is [rows], on the logits' device.

    ``language``: the id to say first, or ANY_LANGUAGE. ``task``: the id to say second. ``timestamps``: bool. ``step``:
    tokens generated, forced ones included. ``last``, ``before``: the last two of them. ``stamp``: the latest
    timestamp said, -1 for none. ``pauses``: bool[rows, 1501], the timestamps that are favoured; None for none at all.
    """

    language: torch.Tensor
    task: torch.Tensor
    timestamps: torch.Tensor
    step: torch.Tensor
    last: torch.Tensor
    before: torch.Tensor
    stamp: torch.Tensor
    pauses: torch.Tensor | None = None


def pause_mask(pauses: Sequence[int]) -> torch.Tensor:
    """One row of `Rows.pauses` from the form that `Rules` has, bool[1501]."""
    mask = torch.zeros(STAMPS, dtype=torch.bool)
    for first, last in zip(pauses[::2], pauses[1::2], strict=True):
        mask[first : last + 1] = True
    return mask


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device that nobody waits for: from pageable memory CUDA would, for all that it has been given."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def constrain(logits: torch.Tensor, rows: Rows, table: Table, *, any_timestamps: bool = True) -> torch.Tensor:
    """Mask in place what each row may not say next; returns ``logits`` (float[rows, vocabulary]).

    ``any_timestamps`` False promises that no row has them, which saves most of the work. Nothing here waits for the
    device.
    """
    said = rows.step - table.prefix - (~rows.timestamps).long()
    forced = said < 0
    wanted = _wanted(rows, table)
    kept_one = logits.gather(1, wanted)
    kept_languages = logits[:, table.languages]

    logits.index_fill_(1, table.suppressed, -torch.inf)
    at_begin = (said == 0)[:, None]
    first = logits[:, table.suppressed_at_begin]
    logits[:, table.suppressed_at_begin] = first.masked_fill(at_begin, -torch.inf)
    stamps = logits[:, table.no_timestamps + 1 :]
    stamps.masked_fill_(~rows.timestamps[:, None], -torch.inf)
    if any_timestamps:
        _constrain_timestamps(logits, stamps, rows, said, table)

    _bar(logits, forced)
    free = forced & (rows.step == 0) & (rows.language == ANY_LANGUAGE) & bool(table.prefix)
    one = forced & ~free
    logits.scatter_(1, wanted, torch.where(one[:, None], kept_one, logits.gather(1, wanted)))
    logits[:, table.languages] = torch.where(free[:, None], kept_languages, logits[:, table.languages])
    return logits


def _wanted(rows: Rows, table: Table) -> torch.Tensor:
    """The token that a forced step has to say, long[rows, 1]; means nothing where any language will do."""
    wanted = torch.full_like(rows.step, table.no_timestamps)
    if table.prefix:
        wanted = torch.where(rows.step == 1, rows.task, wanted)
        wanted = torch.where(rows.step == 0, rows.language.clamp(min=0), wanted)
    return wanted[:, None]


def _constrain_timestamps(
    logits: torch.Tensor, stamps: torch.Tensor, rows: Rows, said: torch.Tensor, table: Table
) -> None:
    """Timestamps come in pairs, never go back, start within a second, and win where they are likelier than any word.

    ``stamps`` is the part of ``logits`` from 0.00 s on.
    """
    begin = table.no_timestamps + 1
    timed = rows.timestamps & (said >= 0)
    best = logits[:, :begin].amax(dim=-1)
    if rows.pauses is not None:
        # A full stop before the pause is said first, or it would be lost. So is one as likely as the likeliest word.
        clause_ends = (logits[:, table.punctuation] >= best[:, None]).any(dim=-1)
        favoured = rows.pauses & (rows.timestamps & (said >= 1) & ~clause_ends)[:, None]
        stamps[:, :STAMPS] += favoured[:, : stamps.shape[1]] * PAUSE_LOGITS
    last_is_stamp = timed & (said >= 1) & (rows.last >= begin)
    before_is_stamp = (said < 2) | (rows.before >= begin)
    complete = last_is_stamp & before_is_stamp  # a pair: text follows
    closing = last_is_stamp & ~before_is_stamp  # a segment has ended: the next starts, or the end
    at_begin = timed & (said == 0)

    # A segment may not be empty, but the next one may start where the last ended.
    floor = torch.where(rows.stamp < begin, 0, rows.stamp - begin + (~closing).long())
    ceiling = torch.where(at_begin, MAX_INITIAL_STEPS, stamps.shape[1])
    steps = torch.arange(stamps.shape[1], device=logits.device)[None]
    out = complete[:, None] | (steps < floor[:, None]) | (steps > ceiling[:, None])
    stamps.masked_fill_(timed[:, None] & out, -torch.inf)

    # The likeliest of what is left of the text, against all timestamps together. Softmax would change both alike.
    end = logits[:, table.end_of_text]
    best = torch.where(closing, end, best).masked_fill(at_begin, -torch.inf)
    likelier = timed & (torch.logsumexp(stamps.float(), dim=-1) > best)
    _bar(logits[:, : table.end_of_text], closing | at_begin | likelier)
    end.masked_fill_(at_begin | likelier, -torch.inf)


def _bar(logits: torch.Tensor, rows: torch.Tensor) -> None:
    """Let these rows (bool[rows]) say none of these tokens (no NaN, nor plus infinity).

    On a CPU a sum takes a tenth of a mask's time.
    """
    logits += torch.zeros_like(rows, dtype=logits.dtype).masked_fill_(rows, -torch.inf)[:, None]
