"""How many answers are read at once."""

from __future__ import annotations

from producer.read_size import READ_BYTES, READ_COUNT, ReadSize


def test_short_answers_are_soon_read_by_the_hundred() -> None:
    size = ReadSize()
    counts = []
    while size.count < READ_COUNT:
        counts.append(size.count)
        size.learn([[1000] * size.count])
    assert len(counts) <= 4
    size.learn([])
    assert size.count == READ_COUNT, "where nothing came nothing was learnt"
    size.begin_small()
    assert size.count == counts[0]


def test_long_answers_of_all_streams_together_stay_in_their_bounds() -> None:
    size = ReadSize()
    for _ in range(5):
        size.learn([[2**20] * size.count, [2**20], [100]])
    assert size.count * 2 * 2**20 <= READ_BYTES < (size.count + 1) * 2.1 * 2**20
    size.learn([[2 * READ_BYTES]])
    assert size.count == 1
