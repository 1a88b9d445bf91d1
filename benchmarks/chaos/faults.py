"""What is done to a fleet. Each fault strikes one job in the middle."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import psutil
from redis.exceptions import RedisError

from benchmarks.chaos.schedule import Moment
from benchmarks.chaos.stage import POLL_SECONDS, Part, Stage
from workers.redis_client import connect

Found = TypeVar("Found")
EngineName = Literal["standin", "real"]
ENGINES: tuple[EngineName, ...] = ("standin", "real")
STALL_SECONDS = 20.0
DISK_FULL_SECONDS = 10.0
#: Rows between sent and journaled where the producer has to be at work in the middle of the job.
SMALL_WINDOW_ROWS = 100
VICTIM_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Struck:
    """What a fault did. ``workers``: the pids of the workers that it ended without a word."""

    workers: frozenset[int] = frozenset()
    note: str = ""


Strike = Callable[[Stage, Moment], Struck]


@dataclass(frozen=True, slots=True)
class Fault:
    """One line of the report, and the fleet it needs.

    ``commands``: what is started on the input. ``own_fleet``: they bring broker and workers of their own.
    """

    about: str
    strike: Strike | None = None
    engines: tuple[EngineName, ...] = ("standin",)
    commands: tuple[str, ...] = ("enqueue",)
    workers: int = 2
    collectors: int = 1
    own_fleet: bool = False
    poison: bool = False
    full_disk: bool = False
    settings: dict[str, str] = field(default_factory=dict)


def kill_worker(stage: Stage, moment: Moment) -> Struck:
    """The process with the engine; whoever supervises it lives."""
    victim = moment.choose(stage.worker_processes())
    victim.kill()
    return Struck(frozenset({victim.pid}))


def kill_command(stage: Stage, moment: Moment) -> Struck:
    """What the operator started as a worker: the supervisor, and with it the worker."""
    part = moment.choose(stage.named("worker"))
    tree = {part.process.pid, *(child.pid for child in psutil.Process(part.process.pid).children(recursive=True))}
    part.process.kill()
    return Struck(frozenset(tree & stage.sightings().workers))


def kill_child(kind: str) -> Strike:
    """A process of a worker's engine or front-end."""

    def strike(stage: Stage, moment: Moment) -> Struck:
        victim = moment.choose(_wait(lambda: stage.children(kind), kind))
        victim.kill()
        return Struck()

    return strike


def signal_part(name: str, number: signal.Signals) -> Strike:
    """A command that a user started."""

    def strike(stage: Stage, moment: Moment) -> Struck:
        part = moment.choose(_wait(lambda: _running(stage, name), name))
        part.process.send_signal(number)
        return Struck()

    return strike


def kill_owner(stage: Stage, moment: Moment) -> Struck:
    """The collector that serves the job; the other has to take it over."""

    def owners() -> list[Part]:
        return [part for part in _running(stage, "collector") if _has_open(part, "journal.jsonl")]

    (victim, *_) = _wait(owners, "collector that serves the job")
    victim.process.kill()
    return Struck()


def terminate_some(stage: Stage, moment: Moment) -> Struck:
    """A worker, the collector and the producer at the same time, as when a machine is shut down."""
    for name in ("worker", "collector", "enqueue"):
        running = _running(stage, name)
        if running:
            moment.choose(running).process.send_signal(signal.SIGTERM)
    return Struck()


def kill_valkey(stage: Stage, moment: Moment) -> Struck:
    """The broker's data on the disk are kept, and it is back a little later."""
    stage.valkey.kill()
    time.sleep(moment.down_seconds)
    stage.start_valkey()
    return Struck(note=f"down for {moment.down_seconds:.1f} s")


def kill_own_valkey(stage: Stage, moment: Moment) -> Struck:
    """The broker of a `run`, which has to start it again itself."""
    stage.valkey.kill()
    return Struck()


def flush(stage: Stage, moment: Moment) -> Struck:
    """Every key is gone: queue, held messages, answers, registrations."""
    with contextlib.closing(connect(stage.url)) as redis:
        redis.flushall()
    return Struck()


def kill_connections(stage: Stage, moment: Moment) -> Struck:
    """Every connection to the broker, whatever it is doing."""
    with contextlib.closing(connect(stage.url)) as redis:
        own = redis.client_id()
        others = [client["id"] for client in redis.client_list() if int(client["id"]) != own]
        for id in others:
            with contextlib.suppress(RedisError):  # it ended by itself
                redis.client_kill_filter(_id=id)
    return Struck(note=f"{len(others)} connections")


def stall(stage: Stage, moment: Moment) -> Struck:
    """The broker answers nobody for 20 s."""
    stage.valkey.suspend()
    time.sleep(STALL_SECONDS)
    stage.valkey.resume()
    return Struck()


def fill_disk(stage: Stage, moment: Moment) -> Struck:
    """No byte more fits where the collector writes; after a while there is room again."""
    if not os.path.ismount(stage.cache):
        return _limit_files(stage)
    ballast = stage.cache / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    time.sleep(DISK_FULL_SECONDS)
    ballast.unlink()
    return Struck(note=errno.errorcode[errno.ENOSPC])


def _limit_files(stage: Stage) -> Struck:
    """Where nothing can be mounted: the collector's files may not grow, which is another error in the same place."""
    (collector,) = stage.named("collector")
    _, hard = resource.prlimit(collector.process.pid, resource.RLIMIT_FSIZE)
    size = max((path.stat().st_size for path in stage.cache.rglob("journal.jsonl")), default=0)
    resource.prlimit(collector.process.pid, resource.RLIMIT_FSIZE, (size, hard))
    time.sleep(DISK_FULL_SECONDS)
    if collector.running:
        resource.prlimit(collector.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    return Struck(note=errno.errorcode[errno.EFBIG])


def _running(stage: Stage, name: str) -> list[Part]:
    return [part for part in stage.named(name) if part.running]


def _has_open(part: Part, name: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(file.path.endswith(f"/{name}") for file in psutil.Process(part.process.pid).open_files())
    return False


def _wait(find: Callable[[], list[Found]], what: str) -> list[Found]:
    deadline = time.monotonic() + VICTIM_SECONDS
    while not (found := find()):
        if time.monotonic() > deadline:
            raise LookupError(f"no {what} to strike")
        time.sleep(POLL_SECONDS)
    return found


_SENDING = {"WHISPER_WINDOW_ROWS": str(SMALL_WINDOW_ROWS)}

FAULTS: dict[str, Fault] = {
    "none": Fault("nothing happens", engines=ENGINES),
    "kill-worker": Fault("kill -9 of a worker", kill_worker, engines=ENGINES),
    "kill-command": Fault("kill -9 of a `whisper-fleet worker`", kill_command),
    "kill-engine": Fault("kill -9 of an engine process", kill_child("engine process"), engines=("real",), workers=1),
    "kill-rank": Fault(
        "kill -9 of a tensor-parallel rank",
        kill_child("rank"),
        engines=("real",),
        workers=1,
        settings={"WHISPER_TENSOR_PARALLEL_SIZE": "2"},
    ),
    "kill-decoder": Fault("kill -9 of a decode process", kill_child("decode process")),
    "kill-collector": Fault("kill -9 of the collector", signal_part("collector", signal.SIGKILL)),
    "kill-producer": Fault("kill -9 of the producer", signal_part("enqueue", signal.SIGKILL), settings=_SENDING),
    "kill-valkey": Fault("kill -9 of Valkey, its file kept", kill_valkey),
    "flush": Fault("FLUSHALL, everything sent", flush),
    "flush-sending": Fault("FLUSHALL while the producer sends", flush, settings=_SENDING),
    "kill-connections": Fault("CLIENT KILL of every connection", kill_connections, settings=_SENDING),
    "stall": Fault("20 s stall of Valkey", stall, settings=_SENDING),
    "disk-full": Fault("disk full at the collector", fill_disk, full_disk=True),
    "terminate": Fault("SIGTERM of worker, collector, producer", terminate_some, settings=_SENDING),
    "two-collectors": Fault("two workers, two collectors, its own killed", kill_owner, collectors=2, settings=_SENDING),
    "started-twice": Fault("the same `run` twice at once", commands=("run", "run"), collectors=0),
    "kill-run": Fault(
        "kill -9 of `run` with its own fleet",
        signal_part("run", signal.SIGKILL),
        commands=("run",),
        own_fleet=True,
        collectors=0,
    ),
    "terminate-run": Fault(
        "SIGTERM of `run` with its own fleet",
        signal_part("run", signal.SIGTERM),
        commands=("run",),
        own_fleet=True,
        collectors=0,
    ),
    "kill-own-valkey": Fault(
        "kill -9 of the Valkey of a `run`", kill_own_valkey, commands=("run",), own_fleet=True, collectors=0
    ),
    "poison": Fault("a record that kills its worker each time", poison=True),
}
