"""`python -m benchmarks.bare_windows REQUEST [--untuned]`: vLLM's `LLM.generate` over the windows that a worker cuts.

REQUEST is a JSON list of ``[path, language]``; the engine is a worker's, or with ``--untuned`` vLLM's own with a
worker's arguments. Prints how many windows each has, as a JSON list. Then each line of its input is a JSON list of
recordings (their places in REQUEST), and it prints the seconds that one `generate` call over the windows of these took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.untuned import prepare_untuned, untuned_arguments
from workers.audio import AudioLimits, DecodePool
from workers.device import device_kind
from workers.errors import TranscriptionError
from workers.guard import unlink_shared_memory
from workers.interface import WindowRequest
from workers.models import BUNDLED, resolve_model
from workers.settings import Settings, load_settings
from workers.speech_spans import WindowOptions
from workers.vllm_options import engine_arguments, prepare_environment
from workers.vllm_requests import find_tokens, prompt_of, sampling_of
from workers.windows import speech_windows

#: Without what a worker does for its engine's speed.
UNTUNED = "--untuned"


def main() -> None:
    """Load the engine, cut the windows, and serve."""
    # What is printed belongs to the reader of the figures, whatever a library says.
    figures = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = load_settings()
    device, untuned = device_kind(), UNTUNED in sys.argv[2:]
    if untuned:
        prepare_untuned(settings)
    else:
        prepare_environment(settings, device)
    model = resolve_model(BUNDLED, device, settings.model_cache, settings.quantization)
    from vllm import LLM

    llm = LLM(**(untuned_arguments if untuned else engine_arguments)(model.path_or_id, settings))
    unlink_shared_memory()  # as a worker does
    tokens = find_tokens(llm.model_config, llm.get_tokenizer())
    recordings = windows(Path(sys.argv[1]), settings)

    def generate(requests: list[WindowRequest]) -> float:
        prompts = [prompt_of(request, [tokens.start_of_transcript]) for request in requests]
        sampling = [sampling_of(request, tokens, settings.max_tokens, 1) for request in requests]
        began = time.monotonic()
        outputs: list[Any] = llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.monotonic() - began
        if any(len(output.outputs[0].token_ids) <= 2 for output in outputs):
            raise RuntimeError("a window gave no text: the decode rules were not followed")
        return seconds

    generate(next(recording for recording in recordings if recording)[:1])
    print(json.dumps([len(recording) for recording in recordings]), file=figures, flush=True)
    for line in sys.stdin:
        chosen = [window for place in json.loads(line) for window in recordings[place]]
        print(generate(chosen), file=figures, flush=True)


def windows(request: Path, settings: Settings) -> list[list[WindowRequest]]:
    """Each file's windows, as a worker asks its engine for them; none of one that cannot be read."""
    found: list[list[WindowRequest]] = []
    options = WindowOptions.from_settings(settings)
    pool = DecodePool(1, AudioLimits.from_settings(settings))
    try:
        for path, language in json.loads(request.read_text(encoding="utf-8")):
            found.append([])
            with suppress(TranscriptionError), pool.open(path, None, None, None) as stream:
                found[-1] = [
                    WindowRequest(window.samples, "transcribe", language, timestamps=True)
                    for window in speech_windows(stream, options)
                ]
    finally:
        pool.close()
    return found


if __name__ == "__main__":
    main()
