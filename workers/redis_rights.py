"""What a Redis user must be allowed to do for the fleet, tried by commands that change nothing.

(ACL DRYRUN would tell too, but that is a right that the fleet's user does not have.) Redis looks at a user's rights
before it does anything, first at the command and then at keys and channels, and says no more of these than that one of
them is refused.
"""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

#: Nobody's: of a script that is not there, of a key's or channel's last part.
_NO_SCRIPT, _NOBODY = "0" * 40, "whisper-check"

#: What the README's ACL line grants to commands, and a command of each. (INFO is missed by nobody but by who runs the
#: fleet: producers do not wait where Redis is full.)
_COMMANDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("+@connection", ("PING",)),
    ("+@read", ("SCAN", "0", "COUNT", "1")),
    ("+@pubsub", ("PUBSUB", "NUMPAT")),
    ("+@transaction", ("UNWATCH",)),
    ("+evalsha", ("EVALSHA", _NO_SCRIPT, "0")),
    ("+script|load", ("SCRIPT", "LOAD", "return 1")),
    ("+script|exists", ("SCRIPT", "EXISTS", _NO_SCRIPT)),
    ("+time", ("TIME",)),
)
#: Its patterns of keys, and a key of each that is kept for good or is nobody's: PERSIST leaves it as it is. (Those of
#: what follows a call, `~celery` and `~celery-taskset-meta-*`, are missed by nobody else.)
_KEYS = (
    ("~transcribe*", "transcribe"),
    ("~translate*", "translate"),
    ("~_kombu.*", "_kombu.binding.transcribe"),
    ("~celeryev.*", f"celeryev.{_NOBODY}"),
    ("~*.celery.pidbox*", f"{_NOBODY}.reply.celery.pidbox"),
    ("~celery-task-meta-*", f"celery-task-meta-{_NOBODY}"),
    ("~whisper:*", "whisper:jobs"),
)


def missing_rights(redis: Redis) -> list[str]:
    """What this client's user lacks, as the README's ACL line grants it. Raises RedisError where Redis does not answer.

    Other refusals, such as those of a full Redis or of one that is no master, are none of rights.
    """
    probes = [(command, granted, granted) for granted, command in _COMMANDS]
    probes += [(("PERSIST", key), "+@write", granted) for granted, key in _KEYS]
    with redis.pipeline(transaction=False) as pipe:
        for command, _, _ in probes:
            pipe.execute_command(*command)  # type: ignore[no-untyped-call]
        answers = pipe.execute(raise_on_error=False)
    missing = [
        of_command if "command" in str(answer) else of_place
        for (_, of_command, of_place), answer in zip(probes, answers, strict=True)
        if isinstance(answer, NoPermissionError)
    ]
    if "+@pubsub" not in missing:
        missing += _missing_channels(redis)
    return list(dict.fromkeys(missing))


def _missing_channels(redis: Redis) -> list[str]:
    database = redis.connection_pool.connection_kwargs.get("db") or 0
    missing = []
    with redis.pubsub() as listener:  # type: ignore[no-untyped-call]
        # As a receiver of events, a worker's remote control and a client listen.
        subscriptions: tuple[tuple[str, Any, str], ...] = (
            (f"&/{database}.celeryev/*", listener.psubscribe, f"/{database}.celeryev/*"),
            (f"&/{database}.celery.pidbox", listener.psubscribe, f"/{database}.celery.pidbox"),
            ("&celery-task-meta-*", listener.subscribe, f"celery-task-meta-{_NOBODY}"),
        )
        for granted, subscribe, channel in subscriptions:
            try:
                subscribe(channel)
                listener.get_message(timeout=1.0)
            except NoPermissionError:
                missing.append(granted)
            except ResponseError:
                continue
    return missing
