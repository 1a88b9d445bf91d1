"""``python -m benchmarks.rows.parts PART …``: one process of a measured job; its figures are its last line, as JSON.

`enqueue` and `collect` do what these commands of `whisper-fleet` do, with the same classes. Times are CPU seconds of
the whole process, so that what else runs on the machine does not count, and start without the imports. Memory is the
highest resident memory, imports included.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from producer.collector import Collector
from producer.enqueue import enqueuer_for
from producer.follow import Follower
from producer.job import Job, load_job
from producer.opening import open_job
from producer.spec import JobSpec
from workers import keys
from workers.app import PRIORITY_BULK, create_app
from workers.messages import RowResult, Transcript
from workers.presence import live_workers
from workers.redis_client import connect
from workers.settings import DEFAULT_REDIS_URL, load_settings

#: Messages that the answering loop takes at once.
TAKEN_MESSAGES = 8
POLL_SECONDS = 0.02
#: An answer as a worker writes it; only its row number differs.
ANSWER = RowResult(
    row=987654321,
    items=[
        Transcript(
            text=" The birch canoe slid on the smooth planks, and the parked truck was glued to the road.",
            language="en",
            language_probability=0.98828125,
            duration=0.9375,
            speech_seconds=0.8125,
            model="standin",
            avg_logprob=-0.2734375,
            compression_ratio=1.1875,
            no_speech_prob=0.015625,
            temperature=0.0,
        )
    ],
).model_dump_json()


@dataclass(slots=True)
class Figures:
    """What a part used: CPU and wall seconds by phase, and its highest resident memory in bytes."""

    cpu_seconds: dict[str, float] = field(default_factory=dict)
    wall_seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what the block takes. Blocks within blocks count twice."""
        cpu, wall = time.process_time(), time.monotonic()
        yield
        self.cpu_seconds[name] = time.process_time() - cpu
        self.wall_seconds[name] = time.monotonic() - wall

    def show(self) -> None:
        """Write the figures where the one who started this process reads them."""
        self.peak_bytes = _peak_bytes()
        sys.stdout.write(json.dumps(asdict(self)) + "\n")


def bare(source: str, target: str) -> None:
    """The measure: a loop that reads, parses and writes the rows, and nothing else."""
    figures = Figures()
    with figures.phase("bare"), Path(source).open("rb") as rows, Path(target).open("wb") as out:
        for line in rows:
            out.write(json.dumps(json.loads(line), ensure_ascii=False).encode() + b"\n")
    figures.show()


def enqueue(source: str, cache_path: str) -> None:
    """Check the rows, and send them as there is room for them."""
    figures, config = Figures(), load_settings()
    with contextlib.closing(connect(_url())) as redis:
        with figures.phase("check"):
            job = open_job(JobSpec(inputs=(source,), cache_path=cache_path))
        stop, present = threading.Event(), live_workers(redis)
        with figures.phase("send"):
            enqueuer_for(job, create_app(config), redis, present, config, Follower(job).read, stop).send_all()
    figures.show()


def collect(step_path: str) -> None:
    """Put the answers on the disk, and write the step file."""
    figures = Figures()
    with contextlib.closing(connect(_url())) as redis, contextlib.closing(Collector(redis)) as collector:
        while (job := load_job(Path(step_path))) is None:
            time.sleep(POLL_SECONDS)
        _time_merge(figures)
        with figures.phase("collect"):
            while (owned := collector.add(job)) is None:  # it is being written
                time.sleep(POLL_SECONDS)
            while not owned.complete:
                collector.poll(0.5)
                if owned.error is not None:
                    raise owned.error
    for seconds in (figures.cpu_seconds, figures.wall_seconds):
        seconds["collect"] -= seconds["merge"]
    figures.show()


def answer() -> None:
    """Stand for the fleet, until it is ended: take messages and answer their rows without doing anything else."""
    head, tail = ANSWER.split("987654321")
    with contextlib.closing(connect(_url())) as redis:
        while True:
            messages: Any = redis.rpop(f"transcribe:{PRIORITY_BULK}", TAKEN_MESSAGES)
            if not messages:
                time.sleep(POLL_SECONDS)
                continue
            pipe = redis.pipeline(transaction=False)
            for message in messages:
                (records,), options, _ = json.loads(base64.b64decode(json.loads(message)["body"]))
                for record in records:
                    pipe.xadd(keys.results(options["job"]), {keys.RESULT_FIELD: f"{head}{record['row']}{tail}"})
            pipe.execute()


def _url() -> str:
    return load_settings().redis_url or DEFAULT_REDIS_URL


def _peak_bytes() -> int:
    """The highest resident memory since this program began; getrusage's includes what it was forked from."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def _time_merge(figures: Figures) -> None:
    """Count the merge by itself: the collector does it within a poll."""
    finish = Job.finish

    def timed(self: Job, *arguments: Any) -> Job:
        with figures.phase("merge"):
            return finish(self, *arguments)

    Job.finish = timed  # type: ignore[method-assign]


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    parts: dict[str, Callable[..., None]] = {"bare": bare, "enqueue": enqueue, "collect": collect, "answer": answer}
    parts[sys.argv[1]](*sys.argv[2:])
