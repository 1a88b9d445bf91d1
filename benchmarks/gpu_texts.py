"""`python -m benchmarks.gpu_texts OUT.json`: what the real engine makes of the repository's samples, text by text.

For a new device, vLLM or model runner (``VLLM_USE_V2_MODEL_RUNNER=1``): with ``--against`` another such file, the texts
are compared. Greedy and without retries, so only near-ties between tokens may differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.facts import machine, versions
from benchmarks.gpu import check_packages, runner
from benchmarks.gpu_gauges import gpu
from benchmarks.recordings import SAMPLES
from workers.audio import AudioLimits, DecodePool
from workers.device import device_kind
from workers.golden import similarity
from workers.messages import Item, Options, Record, Transcript
from workers.models import BUNDLED
from workers.settings import load_settings
from workers.transcriber import Transcriber

#: Least share of words that all texts together have in common. A near-tie changes a word or two of some hundred.
ENOUGH = 0.98

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    out: Annotated[Path, typer.Argument(help="Where the texts go.")],
    model: Annotated[str, typer.Option(help="A model of WHISPER_MODEL.")] = BUNDLED,
    against: Annotated[Path | None, typer.Option(exists=True, help="Texts of another device to compare with.")] = None,
) -> None:
    """Transcribe the samples. Exit code 1 if they differ from the others by more than near-ties, 2 if none can be."""
    check_packages()
    report = {
        "device": device_kind(),
        "gpu": gpu(),
        "runner": runner(),
        "model": model,
        "machine": machine(),
        "versions": versions(),
        "texts": transcribed(model),
    }
    out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    typer.echo(out)
    if against is not None:
        other = json.loads(against.read_text(encoding="utf-8"))
        lines, share = differences(other["texts"], report["texts"])
        typer.echo("\n".join([*lines, f"{share:.4f} of the words are equal (bar: {ENOUGH:g})"]))
        if share < ENOUGH:
            raise typer.Exit(1)


def transcribed(model: str) -> dict[str, dict[str, Any]]:
    """Each sample's language, text and segments. Raises RuntimeError for one without a transcript."""
    from workers.engine import VllmEngine

    settings = load_settings(model=model, temperatures=(0.0,))
    found: dict[str, dict[str, Any]] = {}
    pool = DecodePool(1, AudioLimits.from_settings(settings))
    try:
        engine = VllmEngine(settings)
        try:
            transcriber = Transcriber(engine, pool, settings, threads=1)
            records = [Record(audio=str(path), row=row) for row, path in enumerate(sorted(SAMPLES.iterdir()))]

            def deliver(record: Record, items: list[Item]) -> None:
                (item,) = items
                if not isinstance(item, Transcript):
                    raise RuntimeError(f"{record.audio}: {item}")
                segments = [[one.start, one.end, one.text] for one in item.segments or ()]
                found[Path(record.sources[0]).name] = {
                    "language": item.language,
                    "text": item.text,
                    "segments": segments,
                }

            transcriber.transcribe(records, "transcribe", Options(timestamps=True), deliver)
            transcriber.close()
        finally:
            engine.close()
    finally:
        pool.close()
    return found


def differences(expected: dict[str, Any], heard: dict[str, Any]) -> tuple[list[str], float]:
    """A line for each sample whose text or language differs, and the share of words that all have in common."""
    names = sorted(expected.keys() | heard.keys())
    nothing = {"language": None, "text": ""}
    pairs = [(name, expected.get(name, nothing), heard.get(name, nothing)) for name in names]
    lines = [
        f"{name}: {one['language']} {one['text']!r}\n{' ' * len(name)}  {two['language']} {two['text']!r}"
        for name, one, two in pairs
        if (one["language"], one["text"]) != (two["language"], two["text"])
    ]
    weights = [max(1, len(one["text"])) for _, one, _ in pairs]
    shares = [1.0 if one["text"] == two["text"] else similarity(one["text"], two["text"]) for _, one, two in pairs]
    return lines, sum(share * weight for share, weight in zip(shares, weights, strict=True)) / sum(weights)


if __name__ == "__main__":
    app()
