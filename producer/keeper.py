"""A fleet of a client's own, kept by one thread: what it starts is bound to the thread that starts it.

(The kernel ends a guarded child when the thread that started it ends: `workers.guard`.) So a client may be used by
threads that come and go, and its workers are looked after while nobody calls.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from redis import Redis

from producer.embedded import EmbeddedFleet
from producer.errors import ClientClosedError, FleetError
from producer.file_lock import FileLock
from producer.valkey import IN_USE, RUN_FOLDER_PREFIX
from workers.presence import Presence, live_workers
from workers.redis_client import connect

#: How often the fleet's processes are looked after.
CHECK_SECONDS = 0.5


class _StoppedError(Exception):
    """The keeper was told to stop."""


class FleetKeeper:
    """Starts a private Valkey and local workers, starts again what ends by accident, and ends them. Thread-safe."""

    def __init__(self, workers: int, environment: Mapping[str, str], restarts: int) -> None:
        self._workers = workers
        self._environment = environment
        self._restarts = restarts
        self._ready = threading.Event()
        self._stop = threading.Event()
        self._failure: FleetError | None = None
        self._fleet: EmbeddedFleet | None = None
        self._thread = threading.Thread(target=self._keep, name="fleet", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether the fleet is there, and was not given up."""
        return self._ready.is_set() and self._failure is None and not self._stop.is_set()

    @property
    def url(self) -> str:
        """The private broker's URL, once the fleet is there."""
        assert self._fleet is not None
        return self._fleet.url

    def wait(self) -> None:
        """Return once every worker has loaded its engine. Raises FleetError with the reason if one cannot."""
        self._ready.wait()
        self.check()

    def check(self) -> None:
        """Raise FleetError once the fleet is hopeless or stopped."""
        if self._failure is not None:
            raise copy.copy(self._failure)
        if self._stop.is_set():
            raise ClientClosedError("the client was closed")

    def wait_ready(self, redis: Redis, waiting: Callable[[str], None] = lambda what: None) -> list[Presence]:
        """The live workers (see `EmbeddedFleet.wait_ready`, which has been waited for)."""
        self.check()
        return live_workers(redis)

    def stop(self) -> None:
        """End all of it at once; returns when it is gone."""
        self._stop.set()
        self._thread.join()

    def _keep(self) -> None:
        try:
            # Named and locked as the folders of sockets are, so that those of killed processes are removed with them.
            folder = Path(tempfile.mkdtemp(prefix=RUN_FOLDER_PREFIX))
            with FileLock(folder / IN_USE) as lock:
                lock.acquire()
                self._run(folder)
        except _StoppedError:
            shutil.rmtree(folder, ignore_errors=True)
        except FleetError as error:  # the folder stays for now: its logs say more
            self._failure = error
        except Exception as error:  # noqa: BLE001 - whoever waits for the fleet gets it
            self._failure = FleetError(f"an own fleet cannot be started: {error}")
        finally:
            self._ready.set()

    def _run(self, folder: Path) -> None:
        with EmbeddedFleet(
            folder, workers=self._workers, environment=self._environment, restarts=self._restarts
        ) as self._fleet:
            with contextlib.closing(connect(self._fleet.url)) as redis:
                self._fleet.wait_ready(redis, self._check_stop)
            self._ready.set()
            while not self._stop.wait(CHECK_SECONDS):
                self._fleet.check()
            raise _StoppedError  # what the workers still do is nobody's any more

    def _check_stop(self, _what: str) -> None:
        if self._stop.is_set():
            raise _StoppedError
