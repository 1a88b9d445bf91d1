"""`python -m benchmarks.long_recording`: one long recording on one worker and on two, and whether its text is the same.

Decoding, voice activity, cuts, queues and the collector are real. Stand-in engines set the pace, so that the figure is
that of the fleet and not of this machine's cores; their texts are checksums of the windows' samples. Start-up is
excluded: a run is timed from the command to the step file.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks.bars import Bar
from benchmarks.outcome import RESULTS, report, tidy_when_ended
from benchmarks.recordings import write_recording
from benchmarks.standin_fleet import Clock, busy_cores, standin_fleet
from producer.opening import open_job
from producer.run import RunOptions, run_job
from producer.spec import JobSpec
from workers.settings import load_settings

HOURS = 2.0
#: Most time of two workers, as a share of one's.
MOST_SHARE = 0.6
#: A window takes the engine so long, whatever else it does: two hours take one worker two to three minutes.
ENCODE_MS = 500
SPEED: Mapping[str, str] = {
    "WHISPER_ENGINE": "standin",
    "WHISPER_STANDIN_ENCODE_MS": str(ENCODE_MS),
    "WHISPER_CONCURRENCY": "4",
    "WHISPER_DECODE_PROCESSES": "2",
}
#: Name, workers, settings.
RUNS: tuple[tuple[str, int, Mapping[str, str]], ...] = (
    ("unsplit", 1, {"WHISPER_SPLIT_SECONDS": "0"}),
    ("one worker", 1, {}),
    ("two workers", 2, {}),
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    hours: Annotated[float, typer.Option(min=0.4, help="Length of the recording; the bar is for the default.")] = HOURS,
    encode_ms: Annotated[int, typer.Option(min=1, help="Time of a window in the stand-in engine.")] = ENCODE_MS,
    results_folder: Annotated[Path, typer.Option("--results", help="Folder of the JSON report.")] = RESULTS,
) -> None:
    """Measure how much faster two workers are. Exit code 1 if they are not, or if the text is another."""
    tidy_when_ended()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-long-") as temporary:
        folder = Path(temporary)
        write_recording(folder / "long.flac", hours * 3600)
        source = folder / "rows.jsonl"
        source.write_text(json.dumps({"audio": str(folder / "long.flac")}) + "\n")
        for name, workers, settings in RUNS:
            environment = {**SPEED, "WHISPER_STANDIN_ENCODE_MS": str(encode_ms), **settings}
            runs.append({"run": name, **_run(folder / name.replace(" ", "-"), source, workers, environment)})
            typer.echo(f"{name}: {runs[-1]['seconds']:.1f} s", err=True)
    answers = [run.pop("answer") for run in runs]
    seconds = {run["run"]: run["seconds"] for run in runs}
    share = round(seconds["two workers"] / min(seconds["unsplit"], seconds["one worker"]), 3)
    other_texts = sum(answer != answers[0] for answer in answers)
    judged = [
        Bar("time of two workers to the best time of one", share, MOST_SHARE),
        Bar("runs whose text or segments are not the unsplit recording's", float(other_texts), 0.0),
    ]
    options = {"hours": hours, "standin": {**SPEED, "WHISPER_STANDIN_ENCODE_MS": str(encode_ms)}}
    figures = {"share": share, "characters": len(answers[0][0]), "segments": len(answers[0][1]), "runs": runs}
    whole = (hours, encode_ms) == (HOURS, ENCODE_MS)
    report("long-recording", options, judged, figures, [_table(runs)], results_folder, whole=whole)


def _run(folder: Path, source: Path, workers: int, environment: Mapping[str, str]) -> dict[str, Any]:
    folder.mkdir()
    with standin_fleet(folder / "fleet", workers, environment) as fleet:
        began = time.monotonic()
        with busy_cores() as busy:
            job = open_job(JobSpec((str(source),), cache_path=str(folder / "steps"), timestamps=True))
            run_job(job, RunOptions(), load_settings(REDIS_URL=fleet.url), Clock())  # type: ignore[arg-type]
        seconds = time.monotonic() - began
        logs = [fleet.log_path(number).read_text(encoding="utf-8") for number in range(1, workers + 1)]
    row = json.loads(job.step.path.read_text(encoding="utf-8"))
    return {
        "workers": workers,
        "seconds": round(seconds, 2),
        "parts_by_worker": [len(re.findall(r"Task \S+ succeeded", log)) for log in logs],
        "busy_cores_share": busy["share"],
        "answer": (row["transcription"], row["transcription_segments"]),
    }


def _table(runs: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("run", title="One recording: from the command to the step file")
    for name in ("seconds", "parts by worker", "cores busy"):
        table.add_column(name, justify="right")
    for run in runs:
        parts = " + ".join(map(str, run["parts_by_worker"]))
        table.add_row(run["run"], f"{run['seconds']:.1f}", parts, f"{run['busy_cores_share']:.0%}")
    return table


if __name__ == "__main__":
    app()
