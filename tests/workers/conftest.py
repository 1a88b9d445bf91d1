"""Fixtures for tests of the worker's modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from workers.fallback import FallbackDecoder
from workers.gates import Gates
from workers.interface import Engine


@pytest.fixture
def decoders() -> Iterator[Callable[..., FallbackDecoder]]:
    """Makes decoders that end with the test."""
    made: list[FallbackDecoder] = []

    def make(engine: Engine, **gates: object) -> FallbackDecoder:
        made.append(FallbackDecoder(engine, Gates(**gates)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for decoder in made:
        decoder.close()
