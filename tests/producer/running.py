"""`run_job` in this process, beside a test."""

from __future__ import annotations

import io
import threading

from rich.console import Console

from fleet import Fleet
from producer.display import Display
from producer.errors import FleetError
from producer.job import Job
from producer.run import RunOptions, run_job
from workers.settings import load_settings


class Running:
    """`run_job` in a thread; what it shows is in ``shown``."""

    def __init__(self, fleet: Fleet, job: Job, options: RunOptions | None = None, **settings: float) -> None:
        self._out = io.StringIO()
        self.result: Job | None = None
        self.error: FleetError | None = None
        self._arguments = (job, options or RunOptions(), load_settings(REDIS_URL=fleet.url, **settings))
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self.result = run_job(*self._arguments, Display(Console(file=self._out)))
        except FleetError as error:
            self.error = error

    @property
    def shown(self) -> str:
        return self._out.getvalue()

    def join(self) -> Running:
        self._thread.join(60)
        assert not self._thread.is_alive(), self.shown
        return self
