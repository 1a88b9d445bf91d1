"""`python -m benchmarks.efficiency`: the fleet, from JSONL to step file, against its own engine given all at once.

Runs over the same clips, in turn: bare, fleet, bare, fleet, bare. What a machine gives in two minutes and in the next
differs by a third, so each run of the fleet is held against the mean of the bare runs before and after it, and the
median of these pairs counts. ``bare``: one `LLM.generate` over the fleet's own windows, those that it cuts and those
that it hears on where the model stops early (`benchmarks.heard_windows`), with the worker's engine arguments, sampling
and decode rules; reading the files and voice activity are outside its clock, log-mel is inside. ``fleet``: a job on a
worker that is ready; files, voice activity, retries, journal and merge count. Each pair hears the clips in an order of
its own: a job that ends with a hard clip waits for its retries. An engine is as fast as its start was lucky (by 10 %),
so all are started anew after three pairs, and each does some other clips before its first clock and before each of its
turns: the fleet so many that none of the encodings which its engine keeps (for windows that are tried again) are of its
turn before, the bare engine a batch, so as not to come from a rest. With ``--untuned`` a third system takes its turn
with ``bare``: ``bare untuned``, with the same arguments, but as vLLM starts by itself, without what a worker does for
its engine's speed besides (`benchmarks.untuned`); with ``--cut`` a further one, ``bare cut``: the engine of ``bare``,
given no more than the windows as they are cut. With ``--workers N`` the fleet has N workers that share the cores out
among them, and ``bare apart`` takes its turn: N bare engines on the same shares, with every Nth clip each.
faster-whisper (int8, all cores) runs once, at the end, over every third clip. Start-up is in no figure. The words that
the fleet and faster-whisper got wrong in these are counted too: speed is worth nothing without the text.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks import corpus
from benchmarks.bare_engine import BareEngine, bare_engine, generate
from benchmarks.bars import Bar
from benchmarks.budget import Budget
from benchmarks.heard_windows import Part
from benchmarks.outcome import RESULTS, report, tidy_when_ended
from benchmarks.scores import score, total, unit
from benchmarks.systems import Answer, EngineChoice, FleetUnderTest, fleet, run_baseline
from producer.shares import core_shares
from tests.asterisk import LANGUAGES, FetchError
from workers.device import CPU_SEQS, usable_cores
from workers.dtype import computes_int8
from workers.models import Quantization
from workers.vllm_options import CPU_KEPT_ENCODINGS

CLIPS, ROUNDS = 300, 5
ASTERISK_WORDS = 1000
#: As faster-whisper's weights and activations, where vLLM can.
QUANTIZATION: Quantization = "int8" if computes_int8() else "none"
#: Pairs that share one start of the engines.
PAIRS_PER_START = 3
#: Heard by each worker beyond so many other clips as its engine keeps encodings, as not all get as many.
MORE_CLIPS = 8
#: What a bare engine hears before each of its turns.
WARM_CLIPS = CPU_SEQS
#: Of so many clips faster-whisper hears one: all would take it as long as two of the five pairs.
BASELINE_STRIDE = 3
#: How long that takes, in pairs.
BASELINE_PAIRS = 0.7
#: Least speed of the fleet, as a multiple of the other's, where that was asked for.
BARS = {"bare": 1.0, "bare untuned": 1.0, "faster-whisper": 1.8}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    clips: Annotated[int, typer.Option(min=2, help="Recordings, evenly chosen from all that there are.")] = CLIPS,
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of runs; the median is reported.")] = ROUNDS,
    quantization: Annotated[Quantization, typer.Option(help="Linear layers of the fleet and its bare engine.")] = (
        QUANTIZATION
    ),
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Windows decoded together, by each engine.")] = CPU_SEQS,
    workers: Annotated[int, typer.Option(min=1, help="Workers of the fleet, each on its share of the cores.")] = 1,
    untuned: Annotated[bool, typer.Option("--untuned", help="The bare engine as vLLM starts it, too.")] = False,
    cut: Annotated[bool, typer.Option("--cut", help="The bare engine without what is heard on, too.")] = False,
    minutes: Annotated[
        float | None, typer.Option(min=1.0, help="No pair begins that would not end in this time; the first does.")
    ] = None,
    corpus_folder: Annotated[
        Path | None,
        typer.Option("--corpus", help=f"Folder of recordings, as in the quality benchmark ({corpus.CORPUS_VARIABLE})."),
    ] = None,
    results_folder: Annotated[Path, typer.Option("--results", help="Folder of the JSON report.")] = RESULTS,
) -> None:
    """Measure audio seconds per second with whisper-base. Exit code 1 if a bar is missed."""
    tidy_when_ended()
    engine = EngineChoice(max_num_seqs, quantization)
    budget = Budget(minutes, BASELINE_PAIRS)
    try:
        between = workers * (CPU_KEPT_ENCODINGS * max_num_seqs + MORE_CLIPS)
        chosen, others = _clips(corpus.find_corpus(corpus_folder), clips, between)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    seconds = sum(clip.seconds for clip in chosen)
    fewer = chosen[::BASELINE_STRIDE]
    runs: list[dict[str, Any]] = []
    parts: list[list[Part]] | None = None
    wrong_words: dict[str, float | None] = {}

    def note(system: str, wall_seconds: float, seconds: float = seconds) -> None:
        speed = round(seconds / wall_seconds, 3)
        runs.append({"system": system, "wall_seconds": round(wall_seconds, 2), "speed": speed})
        typer.echo(f"{system}: {seconds:.0f} s of audio in {wall_seconds:.1f} s, {speed:.2f} a second", err=True)

    with tempfile.TemporaryDirectory(prefix="bench-efficiency-") as temporary:
        work = Path(temporary)
        for first in budget.series(range(0, rounds, PAIRS_PER_START)):
            with loaded(chosen, others, work / f"start-{first}", engine, workers, untuned, cut, parts) as systems:
                parts = systems.bare["bare"].engines[0].parts
                turns = budget.repeats(range(first, min(first + PAIRS_PER_START, rounds)))
                for system, wall_seconds, answers in pairs(systems, chosen, others, turns):
                    note(system, wall_seconds)
                    if answers:
                        wrong_words[system] = word_error_rate(fewer, answers)
        whisper = run_baseline("faster-whisper", {"all": fewer}, work, engine)["all"]
        note("faster-whisper", whisper.wall_seconds, whisper.audio_seconds)
        wrong_words["faster-whisper"] = word_error_rate(fewer, whisper.answers)
    found = summary(runs) | {"word_error_rates": wrong_words}
    done = len(found["pairs"]["bare"])
    options = engine.options | {"rounds": rounds, "rounds_done": done, "workers": workers}
    windows = [first_sample for own in (parts or [])[: len(chosen)] for _, first_sample in own]
    heard_on = sum(first_sample > 0 for first_sample in windows)
    facts = {"clips": len(chosen), "windows": len(windows), "heard_on": heard_on}
    facts |= {"audio_seconds": round(seconds, 1), "baseline_clips": len(fewer)}
    if done < rounds:
        typer.echo(f"{minutes:g} minutes were enough for {done} of {rounds} pairs", err=True)
    asked = (clips, done, quantization, max_num_seqs)
    whole = asked == (CLIPS, ROUNDS, QUANTIZATION, CPU_SEQS) and len(chosen) >= CLIPS
    part = "efficiency" if workers == 1 else f"efficiency-{workers}-workers"
    report(
        part,
        options | facts,
        judged(found["ratios"]),
        found | {"runs": runs},
        [_table(found)],
        results_folder,
        whole=whole,
    )


@dataclass(frozen=True, slots=True)
class Bare:
    """One system of bare engines. ``only_cut``: it hears windows as they are cut, and nothing on from there."""

    engines: Sequence[BareEngine]
    only_cut: bool = False

    def generate(self, order: Sequence[int]) -> float:
        """Seconds for these clips."""
        return generate(self.engines, order, only_cut=self.only_cut)


@dataclass(frozen=True, slots=True)
class Systems:
    """Engines that are loaded and have done their first windows. ``bare``: by the system's name."""

    fleet: FleetUnderTest
    bare: Mapping[str, Bare]


@contextmanager
def loaded(
    clips: Sequence[corpus.Clip],
    others: Sequence[corpus.Clip],
    work: Path,
    engine: EngineChoice,
    workers: int,
    untuned: bool,
    cut: bool,
    parts: list[list[Part]] | None,
) -> Iterator[Systems]:
    """The fleet, its bare engines, and beside several workers bare engines on their shares of the cores.

    All have heard ``others`` when they are given: a fresh engine is slow. The bare ones have these behind ``clips``.
    ``parts``: those that an engine before found of all.
    """
    everything = [*clips, *others]
    with ExitStack() as stack:
        running = stack.enter_context(fleet(work / "fleet", engine, workers))
        one = stack.enter_context(bare_engine(everything, work / "bare", engine, parts=parts))
        bare = {"bare": Bare([one])}
        if cut:
            bare["bare cut"] = Bare([one], only_cut=True)
        if untuned:
            own = bare_engine(everything, work / "untuned", engine, untuned=True, parts=one.parts)
            bare["bare untuned"] = Bare([stack.enter_context(own)])
        if workers > 1:
            shares = [
                bare_engine(everything, work / f"bare-{number}", engine, cores, parts=one.parts)
                for number, cores in enumerate(core_shares(usable_cores(), workers))
            ]
            bare["bare apart"] = Bare([stack.enter_context(share) for share in shares])
        running.run(others)
        for system in bare.values():
            system.generate(range(len(clips), len(everything)))
        yield Systems(running, bare)


def pairs(
    systems: Systems, clips: Sequence[corpus.Clip], others: Sequence[corpus.Clip], turns: Iterable[int]
) -> Iterator[tuple[str, float, Mapping[str, Answer]]]:
    """Each run of the clips: its system, its seconds, and its answers, which a bare engine does not give.

    The bare systems run first, and after each run of the fleet. ``others``: what the fleet hears before each of its
    runs, and a bare engine a part of.
    """

    def bare(order: Sequence[int]) -> Iterator[tuple[str, float, Mapping[str, Answer]]]:
        for name, system in systems.bare.items():
            system.generate(range(len(clips), len(clips) + min(WARM_CLIPS, len(others))))
            yield name, system.generate(order), {}

    yield from bare(shuffled(len(clips), 0))
    for turn in turns:
        order = shuffled(len(clips), turn)
        systems.fleet.run(others)
        heard = systems.fleet.run([clips[place] for place in order])
        yield "fleet", heard.wall_seconds, heard.answers
        yield from bare(order)


def shuffled(count: int, turn: int) -> list[int]:
    """The order of the clips in pair ``turn``: the same each time that the benchmark runs."""
    order = list(range(count))
    random.Random(turn).shuffle(order)
    return order


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median speeds by system, and the fleet's as a multiple of the others': of pairs the median of their ratios.

    ``runs``: in their order, as `pairs` gives them.
    """
    speeds: dict[str, list[float]] = {}
    for run in runs:
        speeds.setdefault(run["system"], []).append(run["speed"])
    middle = {system: statistics.median(own) for system, own in speeds.items()}
    pairs = {system: _beside(runs, system) for system in speeds if system.startswith("bare")}
    ratios = {system: statistics.median(own) for system, own in pairs.items()}
    ratios["faster-whisper"] = middle["fleet"] / middle["faster-whisper"]
    return {
        "speeds": middle,
        "ratios": {system: round(ratio, 3) for system, ratio in ratios.items()},
        "pairs": {system: [round(ratio, 3) for ratio in own] for system, own in pairs.items()},
    }


def judged(ratios: Mapping[str, float]) -> list[Bar]:
    """The fleet's speed beside that of each system which has a bar, as far as they ran."""
    return [
        Bar(f"speed of the fleet to that of {name}", ratios[name], bar, True)
        for name, bar in BARS.items()
        if name in ratios
    ]


def _beside(runs: Sequence[dict[str, Any]], system: str) -> list[float]:
    """The speed of each run of the fleet, as a multiple of the mean of the system's last run before and first after."""
    ratios = []
    for place, run in enumerate(runs):
        if run["system"] == "fleet":
            before = next(one["speed"] for one in reversed(runs[:place]) if one["system"] == system)
            after = next(one["speed"] for one in runs[place:] if one["system"] == system)
            ratios.append(run["speed"] / statistics.harmonic_mean([before, after]))  # the mean of their times
    return ratios


def word_error_rate(clips: Sequence[corpus.Clip], answers: Mapping[str, Answer]) -> float | None:
    """Of all clips with a reference, in languages that are counted in words."""
    found = total(
        [
            score(clip.text, answers[clip.key].text, clip.language)
            for clip in clips
            if clip.text and unit(clip.language) == "WER"
        ]
    )
    return None if found.rate is None else round(found.rate, 4)


def _clips(folder: Path | None, count: int, others: int) -> tuple[list[corpus.Clip], list[corpus.Clip]]:
    """Recordings with speech: those of the corpus folder, and Asterisk's telephone prompts. Some, and some others.

    Raises ValueError where there are too few for that.
    """
    found = [clip for clip in corpus.folder_clips(folder) if clip.group == "speech"] if folder else []
    for language in LANGUAGES:
        taken = [clip.path.stem for clip in found if clip.key.startswith(f"audio/asterisk/{language}/")]
        try:
            found += corpus.asterisk_clips(language, ASTERISK_WORDS, taken)
        except FetchError as error:
            typer.echo(f"left out: {error}", err=True)
    chosen = set(corpus.spread(len(found), min(count, len(found) - others)))
    if len(chosen) < 2:
        raise ValueError(f"{len(found)} recordings are too few: {others} are only heard between the runs")
    rest = [clip for index, clip in enumerate(found) if index not in chosen]
    return [found[index] for index in sorted(chosen)], rest[:others]


def _table(found: dict[str, Any]) -> Table:
    table = Table("system", title="Seconds of audio per second, start-up excluded")
    for name in ("audio s/s", "fleet to it", "words wrong"):
        table.add_column(name, justify="right")
    for system, speed in found["speeds"].items():
        ratio = found["ratios"].get(system)
        wrong = found["word_error_rates"].get(system)
        shown = ("" if ratio is None else f"{ratio:.2f} x", "" if wrong is None else f"{wrong:.1%}")
        table.add_row(system, f"{speed:.2f}", *shown)
    return table


if __name__ == "__main__":
    app()
