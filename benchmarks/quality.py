"""`python -m benchmarks.quality`: this fleet, bare vLLM and faster-whisper, same recordings and same weights.

Writes ``quality-<date>.json`` (``…-partial.json`` for a run that left something out on purpose) and shows its tables.
"""

from __future__ import annotations

import json
import logging
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import corpus, report, tables
from benchmarks.facts import machine, versions
from benchmarks.systems import (
    SYSTEMS,
    Answer,
    EngineChoice,
    GroupRun,
    Groups,
    Runs,
    SystemName,
    fleet,
    run_baseline,
)
from tests.asterisk import LANGUAGES, FetchError
from workers.models import Quantization
from workers.settings import load_settings

RESULTS = corpus.REPOSITORY / "benchmarks" / "results"
#: Clips of the speed comparison: enough for a minute of work of two cores.
SPEED_CLIPS = 120

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    corpus_folder: Annotated[
        Path | None,
        typer.Option("--corpus", help=f"Folder of recordings ({corpus.CORPUS_VARIABLE}; ../shared/audio if there)."),
    ] = None,
    asterisk_words: Annotated[
        int, typer.Option(min=0, help="Reference words of Asterisk prompts per language; 0 for none.")
    ] = 1000,
    limit: Annotated[int | None, typer.Option(min=1, help="Clips of each kind: for a quick look.")] = None,
    systems: Annotated[str, typer.Option(help="Systems to run, by commas.")] = ",".join(SYSTEMS),
    quantization: Annotated[
        Quantization, typer.Option(help="Linear layers of the fleet and bare vLLM; int8 has a report of its own.")
    ] = "none",
    results_folder: Annotated[Path, typer.Option("--results", help="Folder of the JSON report.")] = RESULTS,
) -> None:
    """Compare error rates, inventions and speed with whisper-base. The clips and all texts go into the report."""
    chosen = _systems(systems)
    engine = EngineChoice(quantization=quantization)
    try:
        folder = corpus.find_corpus(corpus_folder)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with tempfile.TemporaryDirectory(prefix="bench-quality-") as temporary:
        work = Path(temporary)
        clips, left_out = _clips(folder, asterisk_words, limit, work)
        results = _measure(clips, chosen, engine, folder, work)
    whole = limit is None and chosen == list(SYSTEMS)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    facts: dict[str, Any] = {
        "date": date,
        "machine": machine(),
        "versions": versions(),
        "options": engine.options
        | {"engine": load_settings().engine}
        | {"asterisk_words": asterisk_words, "limit": limit, "systems": chosen},
        "left_out": left_out,
    }
    found = report.as_json(results, report.error_rows(results), facts)
    tables.show(found)
    results_folder.mkdir(parents=True, exist_ok=True)
    kind = "" if quantization == "none" else f"-{quantization}"
    path = results_folder / f"quality{kind}-{date[:10]}{'' if whole else '-partial'}.json"
    path.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    typer.echo(path)
    if any(bar["met"] is False for bar in found["bars"]):
        raise typer.Exit(1)


def _systems(names: str) -> list[SystemName]:
    wanted = {name.strip() for name in names.split(",")}
    unknown = wanted - set(SYSTEMS)
    if unknown:
        raise typer.BadParameter(f"--systems: {', '.join(sorted(unknown))}: must be of {', '.join(SYSTEMS)}")
    return [name for name in SYSTEMS if name in wanted]


def _clips(
    folder: Path | None, asterisk_words: int, limit: int | None, work: Path
) -> tuple[list[corpus.Clip], list[str]]:
    """All clips of the run, and in words what it has to do without."""
    clips, left_out = list[corpus.Clip](), list[str]()
    if folder is None:
        left_out.append(f"the audio folder: name one with --corpus or {corpus.CORPUS_VARIABLE}")
    else:
        clips += corpus.folder_clips(folder)
        spoken = [clip.key for clip in clips if clip.key.removeprefix("audio/") in corpus.SPOKEN]
        if spoken:
            left_out.append(f"of the recordings without speech, those in which people talk: {', '.join(spoken)}")
    for language in LANGUAGES:
        # The folder may hold some of the prompts: nothing counts twice.
        taken = [clip.path.stem for clip in clips if clip.key.startswith(f"audio/asterisk/{language}/")]
        try:
            clips += corpus.asterisk_clips(language, asterisk_words, taken)
        except FetchError as error:
            logging.getLogger(__name__).warning("%s", error)
            left_out.append(f"the Asterisk prompts in {language}: apt could not fetch them")
    clips = corpus.first_of_each(clips, limit)
    paused = corpus.paused_clip(clips, work / "long-pauses.wav")
    return [*clips, *([paused] if paused else [])], left_out


def _measure(
    clips: list[corpus.Clip], systems: list[SystemName], engine: EngineChoice, folder: Path | None, work: Path
) -> report.Results:
    """Run every system over every clip, the fleet first: what it decoded once is what speeds are compared on."""
    groups: dict[str, list[corpus.Clip]] = {}
    for clip in clips:
        groups.setdefault(clip.group, []).append(clip)
    runs: dict[str, Runs] = {}
    joined: Answer | None = None
    once: Groups = {}
    if "fleet" in systems:
        with fleet(work / "fleet", engine) as running:
            runs["fleet"] = {name: _said("fleet", name, running.run(group)) for name, group in groups.items()}
            plain = [
                clip
                for clip in groups.get("speech", [])
                if not clip.is_long and not runs["fleet"]["speech"].answers[clip.key].retried
            ]
            if plain:
                once = {"no_retry": [plain[index] for index in corpus.spread(len(plain), SPEED_CLIPS)]}
                runs["fleet"]["no_retry"] = _said("fleet", "no_retry", running.run(once["no_retry"]))
            for clip in clips:
                if clip.key == f"audio/{corpus.JOINED_AUDIO}":
                    joined = running.run([clip], timestamps=True).answers[clip.key]
    if "bare" in systems:
        runs["bare"] = run_baseline("bare", {**groups, **once}, work, engine)
    if "faster-whisper" in systems:
        runs["faster-whisper"] = run_baseline("faster-whisper", groups, work, engine)
    return report.Results(clips, runs, joined, corpus.reference_starts(folder) if folder else ())


def _said(system: str, group: str, run: GroupRun) -> GroupRun:
    typer.echo(f"{system}: {group}, {len(run.answers)} clips in {run.wall_seconds:.1f} s", err=True)
    return run


if __name__ == "__main__":
    app()
