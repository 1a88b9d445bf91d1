"""What a worker is called that was given no name: the first one on a host ``worker@HOST``, the next ``worker2@HOST``.

Flower and remote control know workers by their names alone. Who holds a number is told by a socket in Linux's abstract
namespace: one process at a time has a name there, and it is free again as soon as that ends, however it does. A
container has a namespace of its own, as it has a host name.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import sys
from collections.abc import Iterator

from workers.redis_client import shown_url

MOST = 1000


@contextlib.contextmanager
def free_name(url: str) -> Iterator[str]:
    """A name (with ``%h`` for the host) that no other worker without one has on this host and broker meanwhile."""
    fleet = hashlib.sha256(shown_url(url).encode()).hexdigest()[:16]
    with socket.socket(socket.AF_UNIX) as held:
        for number in range(1, MOST):
            name = "worker" if number == 1 else f"worker{number}"
            if _took(held, f"whisper-fleet:{fleet}:{name}"):
                yield f"{name}@%h"
                return
        yield "worker@%h"


def _took(held: socket.socket, address: str) -> bool:
    if sys.platform != "linux":
        return True
    try:
        held.bind(f"\0{address}")
    except OSError:
        return False
    return True
