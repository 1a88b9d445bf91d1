"""What a CPU engine's ranks do besides: vLLM loads `CpuRanks` by its name into its worker processes.

Importing this has effects (`workers.int8_kernel`): vLLM does so before it loads a model.
"""

from __future__ import annotations

from workers import int8_kernel
from workers.encoder_cache import EncoderCache
from workers.ranks import Ranks

int8_kernel.mend()


class CpuRanks(Ranks):
    """`Ranks` of an engine on a CPU."""

    def keep_encodings(self, windows: int) -> None:
        """Have the loaded model remember what it makes of the last so many windows."""
        model = self.model_runner.model
        model.embed_multimodal = EncoderCache(model.embed_multimodal, windows)
