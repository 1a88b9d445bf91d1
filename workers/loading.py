"""The engine loads in a thread of its own, while the worker asks Redis and starts its decode processes.

Importing vLLM takes as long as all the rest of a worker's start; nothing of it waits for anything else.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from workers import startup
from workers.forked_engine import remove_socket
from workers.settings import Settings
from workers.startup import Startup

if TYPE_CHECKING:
    from workers.interface import Engine

log = logging.getLogger(__name__)


class Loading:
    """An engine on its way. Its imports begin at once, its processes with ``result``. For one thread."""

    def __init__(self, settings: Settings, parts: Startup) -> None:
        self._settings = settings
        self._parts = parts
        self._wanted = threading.Event()
        self._given_up = False
        self._engine: Future[Engine | None] = Future()
        # A daemon: nothing of it keeps a process that has to end.
        self._thread = threading.Thread(target=self._run, name="engine-loading", daemon=True)
        self._thread.start()

    def result(self) -> Engine:
        """The engine, loaded and checked. Raises ModelLoadError."""
        self._wanted.set()
        engine = self._engine.result()
        assert engine is not None  # given up by nobody who waits for it
        return engine

    def give_up(self) -> None:
        """No engine is wanted any more. Waits for imports that run: Python may crash that ends in the midst of them."""
        self._given_up = True
        self._wanted.set()
        self._thread.join()
        remove_socket()
        if self._engine.exception() is None and (engine := self._engine.result()) is not None:
            engine.close()

    def _run(self) -> None:
        try:
            self._engine.set_result(self._load())
        except BaseException as error:  # noqa: BLE001 - raised where the engine is waited for
            remove_socket()
            self._engine.set_exception(error)

    def _load(self) -> Engine | None:
        if self._settings.engine == "standin":
            from workers.standin import StandInEngine

            if self._is_given_up():
                return None
            log.warning("STAND-IN ENGINE: this worker transcribes nothing; its texts are made up for load tests.")
            with self._parts.part(startup.ENGINE):
                return StandInEngine(self._settings)
        from workers import golden
        from workers.engine import VllmEngine
        from workers.preparation import prepare

        model = prepare(self._settings, self._parts)
        if self._is_given_up():
            return None
        engine = VllmEngine(self._settings, model=model, parts=self._parts)
        if self._settings.golden_check:
            try:
                with self._parts.part(startup.GOLDEN):
                    golden.check(engine)
            except BaseException:
                engine.close()
                raise
        return engine

    def _is_given_up(self) -> bool:
        self._wanted.wait()
        return self._given_up
