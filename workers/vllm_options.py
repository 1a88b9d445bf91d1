"""What vLLM is told: its environment, which has to stand before vLLM is imported, and its engine's arguments.

Holds for vLLM 0.26 to 0.33. Imports nothing of it.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from workers.device import CPU_MALLOC, Device, batch, cpu_binding, device_kind, usable_cores
from workers.dtype import engine_dtype
from workers.nvml import BLACKWELL, compute_capability
from workers.settings import Settings

log = logging.getLogger(__name__)

#: Which of its two model runners vLLM takes on a GPU: each has its own kind of logits processor.
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
#: Encoder positions of one window; vLLM's budget per step counts them (vLLM `encoder_cache_manager.py`).
ENCODER_POSITIONS = 1500
#: By these vLLM sees in LD_PRELOAD which OpenMP it has (vLLM `ompmultiprocessing.py`). Two would be one too many.
OPENMP_NAMES = ("libiomp", "libomp", "libgomp")
#: vLLM's own settings of PyTorch's compiler on a CPU, which that reads when it is imported: too late in a process that
#: imports it before vLLM sets them (vLLM `platforms/cpu.py`). In eager mode, too, log-probabilities are compiled.
CPU_COMPILER = {"TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
#: A CPU engine's executor, as vLLM finds it.
CPU_EXECUTOR = "workers.cpu_executor.CpuExecutor"
#: What a CPU engine's ranks can do besides, as vLLM finds it.
CPU_EXTENSION, EXTENSION = "workers.cpu_ranks.CpuRanks", "workers.ranks.Ranks"
#: Windows whose encodings they keep, for each that is decoded at once: while one says some 130 tokens, so many others
#: are begun. A window has 1.5 MB with whisper-base in bfloat16, 3.8 MB with large-v3.
CPU_KEPT_ENCODINGS = 4


def prepare_environment(settings: Settings, device: Device) -> None:
    """Set what the user has not set himself, and add to what is preloaded."""
    defaults = {
        # A worker has threads; a forked engine can inherit a lock that is held for ever. (Ranks: `forked_ranks`.)
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Each thread that computes log-mel would start helpers of its own, which wait for work by spinning: on two
        # cores they took nearly half of the engine's speed. The engine's own threads are bound by vLLM.
        "OMP_NUM_THREADS": "1",
    }
    if device == "cpu":
        binding = settings.cpu_threads_bind or cpu_binding(usable_cores(), settings.tensor_parallel_size)
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = binding
        defaults["VLLM_CPU_KVCACHE_SPACE"] = str(settings.cpu_kv_cache_gib)
        defaults |= CPU_MALLOC | CPU_COMPILER
        if not can_compile():
            defaults["TORCHDYNAMO_DISABLE"] = "1"
        _preload_openmp()
    else:
        # CUDA's own order is fastest first: CUDA_VISIBLE_DEVICES would mean other GPUs to it than to NVML, whose memory
        # decides on the batch.
        defaults["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        # vLLM 0.26 to 0.30 have no custom logits processors in the V2 runner, and no GPU has run ours in it yet.
        defaults[RUNNER] = "0"
        # FlashInfer compiles its own when the engine starts, which takes CUDA's toolkit. No request here has a top-k or
        # a top-p; GPUs add up by vLLM's own kernel, as up to 0.28 (from 0.29 on by FlashInfer's on NVSwitch machines).
        defaults["VLLM_USE_FLASHINFER_SAMPLER"] = defaults["VLLM_ALLREDUCE_USE_FLASHINFER"] = "0"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def can_compile() -> bool:
    """Whether PyTorch's compiler works for a CPU, which vLLM uses for log-probabilities and would end without.

    It calls a C++ compiler with Python's headers, and splits the paths of its own headers and results at spaces.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    headers = Path(sysconfig.get_path("include"), "Python.h")
    results = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir()
    return compiler is not None and headers.is_file() and not any(map(str.isspace, sys.prefix + results))


def _preload_openmp() -> None:
    """Have the ranks' threads wait for each other in Intel's OpenMP, where it is installed, on AMD's CPUs too.

    vLLM's documentation recommends it on x86-64, installs it and leaves it to the user; by itself it takes PyTorch's.
    A user who preloads an OpenMP keeps that one; what else he preloads stays.
    """
    library = intel_openmp()
    if library is None or preloads_openmp():
        return
    if not is_preloadable(library):  # and vLLM would bind threads that are none
        log.warning(
            "%s is not preloaded, as a space or colon is in its path: the engine is slower than it could be", library
        )
        return
    os.environ["LD_PRELOAD"] = f"{os.environ.get('LD_PRELOAD', '')}:{library}".removeprefix(":")


def is_preloadable(library: Path) -> bool:
    """Whether the loader takes a path as one: it splits at spaces and colons."""
    return not set(str(library)) & set(" :")


def preloads_openmp() -> bool:
    """Whether programs that are started now have an OpenMP from their first moment."""
    return any(name in os.environ.get("LD_PRELOAD", "") for name in OPENMP_NAMES)


def intel_openmp() -> Path | None:
    """Where the package intel-openmp has its library, if it is installed."""
    try:
        files = metadata.files("intel-openmp") or []
    except metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())).resolve() for file in files if file.name == "libiomp5.so")
    return next((path for path in found if path.is_file()), None)


def logits_processor() -> str:
    """The decode rules for the model runner that the environment names, as vLLM loads them."""
    if os.environ.get(RUNNER, "0") not in ("", "0"):
        return "workers.logits_processor_v2:WhisperRulesV2"
    return "workers.logits_processor:WhisperRules"


def engine_arguments(path_or_id: str, settings: Settings) -> dict[str, Any]:
    """`AsyncEngineArgs` for a model. Raises ModelLoadError for what this device cannot do."""
    device, windows, dtype = device_kind(), batch(settings), engine_dtype(settings.dtype)
    # On these GPUs vLLM prefers FlashInfer's, which is compiled when the engine starts and has no cross-attention.
    flash = device != "cpu" and dtype != "float32" and compute_capability() == BLACKWELL
    return {
        "model": path_or_id,
        "dtype": dtype,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "distributed_executor_backend": CPU_EXECUTOR if device == "cpu" else None,  # None: vLLM's choice
        "worker_extension_cls": CPU_EXTENSION if device == "cpu" else EXTENSION,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "max_num_seqs": windows.max_num_seqs,
        "max_num_batched_tokens": ENCODER_POSITIONS * windows.encode_batch,
        "enforce_eager": settings.enforce_eager if settings.enforce_eager is not None else device == "cpu",
        "scheduling_policy": "priority",
        "limit_mm_per_prompt": {"audio": 1},
        # It would keep the features of some 4,000 windows, 4 GiB, for a second hearing that costs 2 ms to prepare; and
        # its two sides lose step with each other where several threads ask.
        "mm_processor_cache_gb": 0,
        "logits_processors": [logits_processor()],
        "disable_log_stats": True,
        # vLLM's own pattern, and the second copy of the weights that openai/whisper-large-v3 has, twice as large.
        "ignore_patterns": ["original/**/*", "*.fp32*"],
        **({"attention_backend": "FLASH_ATTN"} if flash else {}),
    }
