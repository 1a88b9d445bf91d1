"""What is made of a window for vLLM without its renderer is what its renderer would have made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.renderers import renderer_from_config
from vllm.renderers.inputs.preprocess import parse_model_prompt

from workers.errors import ModelLoadError
from workers.interface import SAMPLE_RATE_HZ, WindowRequest
from workers.models import BUNDLED, resolve_model
from workers.settings import load_settings
from workers.vllm_options import engine_arguments
from workers.vllm_requests import Inputs, prompt_of

IDS = [50_258, 50_259, 50_359]
SPEECH = np.random.default_rng(1).normal(0, 0.1, 3 * SAMPLE_RATE_HZ).astype(np.float32)


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def llm(request: pytest.FixtureRequest) -> Any:
    """The part of a loaded engine that makes inputs: no processes, no weights. A GPU's model is in 16 bits."""
    settings = load_settings()
    arguments = engine_arguments(resolve_model(BUNDLED, "cpu", settings.model_cache).path_or_id, settings)
    arguments["dtype"] = request.param  # which a CPU may have no kernels for: nothing is computed here
    config = AsyncEngineArgs(**arguments, kv_cache_memory_bytes=2**28).create_engine_config()
    return SimpleNamespace(model_config=config.model_config, renderer=renderer_from_config(config))


def features(rendered: dict[str, Any]) -> torch.Tensor:
    (item,) = rendered["decoder_prompt"]["mm_kwargs"]["audio"]
    found: torch.Tensor = item["input_features"].data
    return found


def test_a_window_is_what_the_renderer_makes_of_it(llm: Any) -> None:
    request = WindowRequest(SPEECH, "transcribe")
    (theirs,) = llm.renderer.render_cmpl([parse_model_prompt(llm.model_config, prompt_of(request, IDS))])

    ours = Inputs(llm, [50_258]).of(request, IDS)

    dtype = llm.model_config.dtype
    assert features(ours).dtype == features(theirs).dtype == dtype
    torch.testing.assert_close(features(ours), features(theirs), rtol=0, atol=1e-5 + 2 * torch.finfo(dtype).eps)
    assert ours.keys() == theirs.keys()
    assert ours["encoder_prompt"] == theirs["encoder_prompt"]
    own, other = ours["decoder_prompt"], theirs["decoder_prompt"]
    assert own.keys() == other.keys()
    assert (own["type"], own["mm_placeholders"]) == (other["type"], other["mm_placeholders"])
    assert own["prompt_token_ids"] == other["prompt_token_ids"] == IDS
    for name in ("mm_kwargs", "mm_hashes"):
        assert type(own[name]) is type(other[name])
    (item,), (their_item,) = own["mm_kwargs"]["audio"], other["mm_kwargs"]["audio"]
    assert type(item) is type(their_item)
    assert item["input_features"].field == their_item["input_features"].field
    assert ours["arrival_time"] >= theirs["arrival_time"]


def test_the_same_audio_twice_is_two_windows_and_a_prompt_stays_as_it_is(llm: Any) -> None:
    inputs = Inputs(llm, [50_258])
    prompted = [50_361, 400, *IDS]

    one, other = (inputs.of(WindowRequest(SPEECH, "transcribe"), prompted) for _ in range(2))

    assert one["decoder_prompt"]["mm_hashes"] != other["decoder_prompt"]["mm_hashes"]
    # vLLM's renderer would put a start-of-transcript before it.
    assert one["decoder_prompt"]["prompt_token_ids"] == prompted
    assert one["decoder_prompt"]["prompt_token_ids"] is not prompted


def test_a_model_with_other_features_is_refused(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    render = llm.renderer.render_cmpl

    def rendered(prompts: Any) -> Any:
        (one,) = render(prompts)
        features(one).mul_(1.1)
        return [one]

    monkeypatch.setattr(llm.renderer, "render_cmpl", rendered)

    with pytest.raises(ModelLoadError, match="that are not Whisper"):
        Inputs(llm, [50_258])


def test_a_model_with_another_transform_is_refused(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = llm.renderer.get_mm_processor().info.get_feature_extractor()
    other = WhisperFeatureExtractor(n_fft=512)
    monkeypatch.setattr(extractor, "n_fft", other.n_fft)
    monkeypatch.setattr(extractor, "mel_filters", other.mel_filters)

    with pytest.raises(ModelLoadError, match="that are not Whisper"):
        Inputs(llm, [50_258])
