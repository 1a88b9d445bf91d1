"""What a Redis user must be allowed to do for the fleet, tried by commands that change nothing.

(ACL DRYRUN would tell too, but that is a right that the fleet's user does not have.) Redis looks at a user's rights
before it does anything, first at the command and then at keys and channels, and says no more of these than that one of
them is refused.
"""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from workers import keys

#: Nobody's: of a script that is not there, of a key's or channel's last part.
_NO_SCRIPT, _NOBODY = "0" * 40, "whisper-check"

#: What the README's ACL line grants to commands, and a command of each. (INFO is missed by nobody but by who runs the
#: fleet: producers do not wait where Redis is full.)
_COMMANDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("+@connection", ("PING",)),
    ("+@transaction", ("UNWATCH",)),
    ("+evalsha", ("EVALSHA", _NO_SCRIPT, "0")),
    ("+script|load", ("SCRIPT", "LOAD", "return 1")),
    ("+script|exists", ("SCRIPT", "EXISTS", _NO_SCRIPT)),
    ("+time", ("TIME",)),
)
#: Its patterns of keys, and a key of each. HDEL of what no hash has leaves all as it is. (Those of what follows a call,
#: `~celery` and `~celery-taskset-meta-*`, are missed by nobody else.)
_KEYS = (
    ("~transcribe*", "transcribe"),
    ("~translate*", "translate"),
    ("~_kombu.*", "_kombu.binding.transcribe"),
    ("~celery-task-meta-*", f"celery-task-meta-{_NOBODY}"),
    ("~whisper:*", keys.JOBS),
)
#: Of remote control and events: workers', and of those who watch them.
_CONTROL_KEYS = (
    ("~celeryev.*", f"celeryev.{_NOBODY}"),
    ("~*.celery.pidbox*", f"{_NOBODY}.reply.celery.pidbox"),
)


def missing_rights(redis: Redis, *, control: bool = True) -> list[str]:
    """What this client's user lacks, as the README's ACL line grants it. Raises RedisError where Redis does not answer.

    ``control``: also what is only for remote control and events, which calls need not have.

    Other refusals, such as those of a full Redis or of one that is no master, are none of rights.
    """
    probes = [(command, granted, granted) for granted, command in _COMMANDS]
    places = (*_KEYS, *_CONTROL_KEYS) if control else _KEYS
    probes.append((("EXISTS", keys.JOBS), "+@read", "~whisper:*"))
    probes += [(("HDEL", key, _NOBODY), "+@write", granted) for granted, key in places]
    with redis.pipeline(transaction=False) as pipe:
        for command, _, _ in probes:
            pipe.execute_command(*command)  # type: ignore[no-untyped-call]
        answers = pipe.execute(raise_on_error=False)
    missing = [
        of_command if "command" in str(answer) else of_place
        for (_, of_command, of_place), answer in zip(probes, answers, strict=True)
        if isinstance(answer, NoPermissionError)
    ]
    missing += _missing_channels(redis, control)
    return list(dict.fromkeys(missing))


def _missing_channels(redis: Redis, control: bool) -> list[str]:
    database = redis.connection_pool.connection_kwargs.get("db") or 0
    missing = []
    with redis.pubsub() as listener:  # type: ignore[no-untyped-call]
        # As a client listens, and as a receiver of events and a worker's remote control do.
        results = ("&celery-task-meta-*", listener.subscribe, f"celery-task-meta-{_NOBODY}")
        of_control = [
            (f"&/{database}.{name}", listener.psubscribe, f"/{database}.{name}")
            for name in ("celeryev/*", "celery.pidbox")
        ]
        subscriptions: list[tuple[str, Any, str]] = [*(of_control if control else ()), results]
        for granted, subscribe, channel in subscriptions:
            try:
                subscribe(channel)
                listener.get_message(timeout=1.0)
            except NoPermissionError as error:
                missing.append("+@pubsub" if "command" in str(error) else granted)
            except ResponseError:
                continue
    return missing
