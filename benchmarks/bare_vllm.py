"""The baseline `bare`: one `LLM.generate` call of vLLM over everything, greedy, without any of Whisper's rules.

Recordings over 30 s are split as vLLM's own server does it: at the quietest 100 ms of each window's last second.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.bare_prompt import prompt
from benchmarks.systems import Answer, serve_baseline
from benchmarks.untuned import prepare_untuned
from workers.audio import SAMPLE_RATE_HZ, AudioLimits
from workers.audio_decode import open_audio
from workers.device import batch, device_kind
from workers.errors import TranscriptionError
from workers.models import BUNDLED, resolve_model
from workers.settings import load_settings
from workers.vllm_options import CPU_EXTENSION

#: As in vLLM's `SpeechToTextConfig`: seconds of a chunk, seconds searched for a quiet place, samples of that place.
CHUNK_SECONDS, SEARCH_SECONDS, QUIET_SAMPLES = 30.0, 1.0, 1600
MAX_TOKENS = 224
#: vLLM's server joins the chunks of these languages without a space.
JOINED_WITHOUT_SPACE = frozenset({"ja", "zh"})


def main() -> None:
    """Load the engine, then answer the request named on the command line."""
    settings = load_settings()
    model = resolve_model(BUNDLED, device_kind(), settings.model_cache, settings.quantization)
    prepare_untuned(settings)
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model.path_or_id,
        dtype=settings.dtype,
        enforce_eager=True,
        max_num_seqs=batch(settings).max_num_seqs,
        limit_mm_per_prompt={"audio": 1},
        worker_extension_cls=CPU_EXTENSION if device_kind() == "cpu" else "",  # eight-bit layers need it on some CPUs
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)

    def generate(prompts: list[Any]) -> list[str]:
        return [output.outputs[0].text for output in llm.generate(prompts, sampling, use_tqdm=False)]

    generate([prompt(np.zeros(SAMPLE_RATE_HZ, dtype=np.float32), "en")])

    def transcribe(clips: list[dict[str, str]]) -> tuple[list[Answer], float]:
        chunks = [decoded(clip["path"]) for clip in clips]
        prompts = [
            prompt(chunk, clip["language"])
            for clip, found in zip(clips, chunks, strict=True)
            if not isinstance(found, str)
            for chunk in found
        ]
        began = time.monotonic()
        texts = iter(generate(prompts) if prompts else [])
        seconds = time.monotonic() - began
        answers = []
        for clip, found in zip(clips, chunks, strict=True):
            if isinstance(found, str):
                answers.append(Answer(error=found))
            else:
                space = "" if clip["language"] in JOINED_WITHOUT_SPACE else " "
                answers.append(Answer(space.join(next(texts).strip() for _ in found).strip()))
        return answers, seconds

    serve_baseline(transcribe)


def decoded(path: str) -> list[np.ndarray[Any, Any]] | str:
    """A file's chunks of at most 30 s, or the type of the error that it gives."""
    from vllm.multimodal.audio import split_audio

    try:
        blocks = list(open_audio(path, AudioLimits()))
    except TranscriptionError as error:
        return error.type
    samples = np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)
    if len(samples) <= CHUNK_SECONDS * SAMPLE_RATE_HZ:
        return [samples] if len(samples) else []
    chunks = split_audio(samples, SAMPLE_RATE_HZ, CHUNK_SECONDS, SEARCH_SECONDS, QUIET_SAMPLES)
    return [chunk for chunk in chunks if len(chunk)]


if __name__ == "__main__":
    main()
