"""What an engine needs besides its own processes, and needs first."""

from __future__ import annotations

from workers import startup
from workers.device import device_kind
from workers.dtype import check_quantization
from workers.forked_engine import import_ahead
from workers.models import ResolvedModel, resolve_model
from workers.settings import Settings
from workers.startup import Startup
from workers.vllm_options import preloads_openmp, prepare_environment


def prepare(settings: Settings, parts: Startup) -> ResolvedModel:
    """Find the model's files and import vLLM, on a CPU for the engine's processes too. Raises ModelLoadError."""
    device = device_kind()
    check_quantization(settings.quantization, settings.dtype)
    with parts.part(startup.MODEL):
        model = resolve_model(settings.model, device, settings.model_cache, settings.quantization)
    prepare_environment(settings, device)
    # Without an OpenMP vLLM preloads one later, for processes that it spawns.
    if device == "cpu" and preloads_openmp():
        import_ahead()
    with parts.part(startup.LIBRARIES):
        import vllm.engine.arg_utils
        import vllm.v1.engine.async_llm  # noqa: F401
    return model
