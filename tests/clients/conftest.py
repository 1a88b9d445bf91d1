"""What clients of other makers are: Node with celery-node, and Celery without this package."""

from __future__ import annotations

import pytest

from node import Node, node_or_skip
from plain_celery import PlainCelery


@pytest.fixture(scope="session")
def node() -> Node:
    """Node with celery-node."""
    return node_or_skip()


@pytest.fixture(scope="session")
def plain_celery(tmp_path_factory: pytest.TempPathFactory) -> PlainCelery:
    """A Python that has Celery and not this package."""
    return PlainCelery.made_in(tmp_path_factory.mktemp("plain"))
