"""The fleet's connections to Redis: lists named as the fleet has them, and notes of queues that everybody can read.

Kombu notes in sets of the database (``_kombu.binding.*``) which queues an exchange leads to. Whoever sends by an
exchange reads them: so does every worker that replies to remote control. With kombu 5.7 one option, ``sep``, parts both
the words of a note and a list's name from its priority, and who comes upon a note with another ``sep`` than its own
fails, whatever it is about: no reply, nothing sent. The fleet's lists have a ``sep`` of their own (`workers.app`), and
share a database with applications that have the default. So here it is for lists only, and notes have the default.

Applications that send with a priority have that ``sep`` too, and leave notes with it (`contract.md`): those are read
like the others, and do not stay (`FleetChannel.sweep_bindings`). tests/workers/test_bindings.py guards the names.
"""

from __future__ import annotations

import contextlib
from typing import Any

from kombu.transport.redis import Channel, SentinelChannel, SentinelTransport, Transport
from redis import Redis
from redis.exceptions import ResponseError

from workers import keys
from workers.app import LIST_SEP

#: Where those who wait for replies to remote control note their queues, for as long as they wait.
REPLIES = "reply.celery.pidbox"

_LIST_SEP, _NOTE_SEP = LIST_SEP.encode(), Channel.sep.encode()


class _Client(Redis):
    """Names the queue of a message in place of its list, as kombu's own client for key prefixes does with the key."""

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        answer = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name == "BRPOP" and answer:
            name, message = answer
            return name.rsplit(_LIST_SEP, 1)[0], message
        return answer


class FleetChannel(Channel):
    """Kombu's, with `LIST_SEP` for lists only. Not for an application's own connections, which stay as they are."""

    from_transport_options: Any = tuple(name for name in Channel.from_transport_options if name != "sep")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        #: Notes with `LIST_SEP` that there were at the last sweep, by exchange.
        self._foreign: set[tuple[str, bytes]] = set()
        super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        """The routing keys, patterns and queues that are noted for ``exchange``, whoever noted them."""
        parted = [_parts(note) for note in self._notes(exchange)]
        return [(key.decode(), pattern.decode(), queue.decode()) for key, pattern, queue in filter(None, parted)]

    def sweep_bindings(self, limit: int = 100) -> Any:
        """As kombu's, once a minute in those who consume; then mends the notes that nobody else can read.

        Those of the fleet's exchanges get the default ``sep``. In `REPLIES` nobody waits for so long any more: what was
        there a minute ago is of a client that was killed, and goes.
        """
        swept = super().sweep_bindings(limit)  # type: ignore[no-untyped-call]
        kind: Any = self.typeof
        mended = {one.exchange for one in self.state.bindings if kind(one.exchange).type != "fanout"}
        found = {
            (exchange, note)
            for exchange in {*mended, REPLIES}
            for note in self._notes(exchange)
            if _NOTE_SEP not in note and _parts(note)
        }
        for exchange, note in found & self._foreign:
            # A Redis that is full takes nothing; the next sweep is soon.
            with contextlib.suppress(ResponseError), self.conn_or_acquire() as client, client.pipeline() as pipe:
                if exchange != REPLIES:
                    pipe.sadd(self.keyprefix_queue % exchange, note.replace(_LIST_SEP, _NOTE_SEP))
                pipe.srem(self.keyprefix_queue % exchange, note)
                pipe.execute()
        self._foreign = found
        return swept

    def _notes(self, exchange: str) -> set[bytes]:
        with self.conn_or_acquire() as client:
            return set(client.smembers(self.keyprefix_queue % exchange))

    def _q_for_pri(self, queue: str, pri: Any) -> str:
        priority = self.priority(pri)  # type: ignore[no-untyped-call]
        return f"{queue}{LIST_SEP}{priority}" if priority else queue

    def _get_client(self) -> type[Redis]:
        return _Client


class FleetSentinelChannel(FleetChannel, SentinelChannel):
    """The same by Sentinels."""

    from_transport_options: Any = tuple(name for name in SentinelChannel.from_transport_options if name != "sep")


_begin: Any = Transport.__init__


def install() -> None:
    """Give the fleet's connections of this process these channels. An application's own stay as they are."""
    Transport.__init__ = _with_channels_of_its_owner  # type: ignore[method-assign]


def _with_channels_of_its_owner(self: Any, client: Any, *arguments: Any, **options: Any) -> None:
    _begin(self, client, *arguments, **options)
    if client.transport_options.get("unacked_key") == keys.UNACKED:  # no one else's messages are there
        self.Channel = FleetSentinelChannel if isinstance(self, SentinelTransport) else FleetChannel


def _parts(note: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Routing key, pattern and queue; None for what is no note of either kind."""
    for sep in (_NOTE_SEP, _LIST_SEP):
        parts = note.split(sep)
        if len(parts) == 3:
            return parts[0], parts[1], parts[2]
    return None
