"""Which jobs a chaos run plays, one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.chaos.faults import FAULTS, EngineName
from benchmarks.chaos.inputs import prompt_rows, speech_rows
from benchmarks.chaos.job import Plan, play
from benchmarks.chaos.judge import Line, judge
from benchmarks.chaos.schedule import moment
from workers.models import BUNDLED

#: A window costs the stand-in so long that a job of 500 rows takes some ten seconds: its middle can be hit.
STANDIN = {"WHISPER_ENGINE": "standin", "WHISPER_STANDIN_ENCODE_MS": "40", "WHISPER_DECODE_PROCESSES": "1"}
REAL = {"WHISPER_MODEL": BUNDLED, "WHISPER_DECODE_PROCESSES": "1"}
#: A poisonous record takes three workers down, each noticed after the visibility timeout of a minute.
POISON_COMPLETE_SECONDS = 480.0
#: Generous: a busy machine is no fault of the fleet.
READY_SECONDS = {"standin": 300.0, "real": 900.0}
COMPLETE_SECONDS = {"standin": 300.0, "real": 600.0}


@dataclass(frozen=True, slots=True)
class Campaign:
    """Faults on one engine. ``settings``: further ``WHISPER_*``, for tests that cannot wait for a minute's timeout."""

    engine: EngineName
    faults: Sequence[str]
    rows: int
    seed: int
    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    def plans(self) -> list[Plan]:
        """The undisturbed job, and then one job a fault. Writes their inputs; raises tests.asterisk.FetchError."""
        return [self._plan(name) for name in ("none", *(name for name in self.faults if name != "none"))]

    def lines(self, plans: Sequence[Plan]) -> Iterator[Line]:
        """Play ``plans``, of which the first is the undisturbed job."""
        undisturbed = list[bytes]()
        for plan in plans:
            outcome = play(plan, self.folder / f"{self.engine}-{plan.name}")
            undisturbed = undisturbed or outcome.step
            yield judge(outcome, undisturbed)

    def _plan(self, name: str) -> Plan:
        fault = FAULTS[name]
        if self.engine == "real" and fault.strike is None:
            fault = replace(fault, workers=1)  # nobody has to take over, and an engine takes a minute to load
        poison = moment(self.seed, self.engine, name).victim % self.rows if fault.poison else None
        folder = self.folder / f"{self.engine}-input{'-poison' if fault.poison else ''}"
        source = prompt_rows(folder, self.rows) if self.engine == "real" else speech_rows(folder, self.rows, poison)
        return Plan(
            engine=self.engine,
            name=name,
            fault=fault,
            moment=moment(self.seed, self.engine, name),
            source=source,
            rows=self.rows,
            poison=poison,
            settings={**(REAL if self.engine == "real" else STANDIN), **self.settings},
            ready_seconds=READY_SECONDS[self.engine],
            complete_seconds=POISON_COMPLETE_SECONDS if fault.poison else COMPLETE_SECONDS[self.engine],
        )
