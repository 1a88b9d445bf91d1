"""A worker whose stand-in engine fails on demand: ``celery -A doomed_worker worker``, with this folder on the path.

The file that ``DOOM_FILE`` names says how, once it is there: ``die`` (the engine is gone), ``hang`` (it takes windows
and gives nothing back), ``stuck`` (the thread that hands it a window never comes back), ``loading`` (it loads for as
long as the file says so).
"""

from __future__ import annotations

import os
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from workers import drain, standin
from workers.app import app
from workers.errors import EngineLostError
from workers.interface import EngineLoad, WindowRequest, WindowResult
from workers.progress import Progress

__all__ = ["app"]

Healthy = standin.StandInEngine


def doom() -> str:
    path = Path(os.environ["DOOM_FILE"])
    return path.read_text() if path.exists() else ""


class DoomedEngine:
    def __init__(self, settings: Any) -> None:
        if doom() == "loading":
            Path(os.environ["DOOM_FILE"] + ".reached").touch()
            while doom() == "loading":
                time.sleep(0.05)
        self._engine = Healthy(settings)
        self._stuck = Progress()
        self._hanging: list[Future[WindowResult]] = []

    @property
    def facts(self) -> Any:
        return self._engine.facts

    def submit(self, request: WindowRequest) -> Future[WindowResult]:
        fate = doom()
        if fate == "die":
            self._engine.fail("killed by a test")
        if fate == "stuck":
            Path(os.environ["DOOM_FILE"] + ".reached").touch()
            time.sleep(600)
        if fate != "hang":
            return self._engine.submit(request)
        self._stuck.started()
        self._hanging.append(Future())
        return self._hanging[-1]

    def healthy(self) -> bool:
        return self._engine.healthy()

    def stalled_seconds(self) -> float:
        return max(self._stuck.stalled_seconds(), self._engine.stalled_seconds())

    def load(self) -> EngineLoad:
        return self._engine.load()

    def fail(self, reason: str) -> None:
        self._engine.fail(reason)
        for future in self._hanging:
            future.set_exception(EngineLostError(reason))

    def close(self) -> None:
        self._engine.close()


standin.StandInEngine = DoomedEngine  # type: ignore[assignment, misc]
drain.AT_ONCE_SECONDS = 5.0
