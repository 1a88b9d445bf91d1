"""`python -m benchmarks.bare_windows REQUEST [--untuned]`: vLLM's `LLM.generate` over the windows of a worker.

REQUEST is JSON: ``recordings``, a list of ``[path, language]``, and ``parts``, of each its windows
(`benchmarks.heard_windows`), or null to have them found. The engine is a worker's, or with ``--untuned`` vLLM's own
with a worker's arguments. Prints the parts as JSON. Then each line of its input is JSON: a list of recordings (their
places) and whether only windows as they are cut count, without what is heard on of them; it prints the seconds that one
`generate` call over the windows of these took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.heard_windows import Cut, Part, heard_parts, requests
from benchmarks.untuned import prepare_untuned, untuned_arguments
from workers import decoding
from workers.audio import AudioLimits, DecodePool
from workers.device import device_kind
from workers.errors import TranscriptionError
from workers.gates import Gates
from workers.guard import unlink_shared_memory
from workers.interface import WindowRequest, WindowResult
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
    tokenizer = llm.get_tokenizer()
    tokens = find_tokens(llm.model_config, tokenizer)

    def generate(windows: Sequence[WindowRequest]) -> tuple[float, list[Any]]:
        prompts = [prompt_of(request, [tokens.start_of_transcript]) for request in windows]
        sampling = [sampling_of(request, tokens, settings.max_tokens, 1) for request in windows]
        began = time.monotonic()
        outputs: list[Any] = llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.monotonic() - began
        if any(len(output.outputs[0].token_ids) <= 2 for output in outputs):
            raise RuntimeError("a window gave no text: the decode rules were not followed")
        return seconds, outputs

    def decode(windows: Sequence[WindowRequest]) -> list[WindowResult]:
        def text(ids: Sequence[int]) -> str:
            return str(tokenizer.decode(ids, skip_special_tokens=True))

        _, outputs = generate(windows)
        return [_result(one.outputs[0], own, tokens, text) for one, own in zip(outputs, windows, strict=True)]

    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    recordings = cut_windows(asked["recordings"], settings)
    generate([next(cuts for cuts in recordings if cuts)[0].request])
    found: list[list[Part]] = asked["parts"] or heard_parts(recordings, decode, Gates.from_settings(settings))
    print(json.dumps(found), file=figures, flush=True)
    for line in sys.stdin:
        order, only_cut = json.loads(line)
        chosen = [
            request
            for place in order
            for request in requests(recordings[place], [part for part in found[place] if not (only_cut and part[1])])
        ]
        print(generate(chosen)[0], file=figures, flush=True)


def cut_windows(recordings: Sequence[tuple[str, str]], settings: Settings) -> list[list[Cut]]:
    """Each file's windows, as a worker cuts them; none of one that cannot be read."""
    found: list[list[Cut]] = []
    options = WindowOptions.from_settings(settings)
    pool = DecodePool(1, AudioLimits.from_settings(settings))
    try:
        for path, language in recordings:
            found.append([])
            with suppress(TranscriptionError), pool.open(path, None, None, None) as stream:
                found[-1] = [
                    Cut(WindowRequest(window.samples, "transcribe", language, timestamps=True), window.speech)
                    for window in speech_windows(stream, options)
                ]
    finally:
        pool.close()
    return found


def _result(
    output: Any, request: WindowRequest, tokens: decoding.Tokens, text: Callable[[Sequence[int]], str]
) -> WindowResult:
    """A window's text, as `workers.engine` takes it from vLLM's answer."""
    logprobs = [{id: entry.logprob for id, entry in step.items()} for step in output.logprobs]
    flags = ("repetition",) if output.finish_reason == "repetition" else ()
    ran_out = output.finish_reason in ("length", "repetition")
    return decoding.parse_output(output.token_ids, logprobs, request, tokens, text, flags, ran_out=ran_out)


if __name__ == "__main__":
    main()
