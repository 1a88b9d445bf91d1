"""A window as the bare engines of the benchmarks get it. Imports nothing of the fleet: a GPU machine has little."""

from __future__ import annotations

from typing import Any

import numpy as np

from workers.audio import SAMPLE_RATE_HZ


def prompt(samples: np.ndarray[Any, Any], language: str) -> dict[str, Any]:
    """What vLLM's server makes of a chunk (`vllm/model_executor/models/whisper.py`, `get_generation_prompt`)."""
    return {
        "encoder_prompt": {"prompt": "", "multi_modal_data": {"audio": (samples, SAMPLE_RATE_HZ)}},
        "decoder_prompt": {"prompt": f"<|startoftranscript|><|{language}|><|transcribe|><|notimestamps|>"},
    }
