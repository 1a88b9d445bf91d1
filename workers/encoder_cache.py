"""What Whisper's encoder made of the last windows, kept in a CPU engine's ranks for those that are heard again.

vLLM encodes the audio of every request, also of a window that is tried again at another temperature or without its
prompt (`workers.fallback`), up to six times over. On a CPU a window costs as much to encode as a hundred tokens cost to
decode. vLLM's own encoder cache does not serve models with a decoder of their own (vLLM `EncoderDecoderCacheManager`).
A rank puts it in the model's place (`workers.cpu_ranks`).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch


class EncoderCache:
    """Stands for a model's ``embed_multimodal``: encodes what it has not kept, and forgets what waited longest.

    Ranks that share a model get the same windows in the same order, and so agree on what is to be encoded.
    """

    def __init__(self, encode: Callable[..., Sequence[torch.Tensor]], room: int) -> None:
        """``encode``: the model's own, ``input_features`` of n windows to n encodings. ``room``: how many are kept."""
        self._encode = encode
        self._room = room
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def __call__(self, *, input_features: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Log-mel features, float[n_mels, 3000] each, to encodings, float[positions, width] each, in their order."""
        windows = list(input_features)
        names = [_name(window) for window in windows]
        found = {name: self._kept[name] for name in names if name in self._kept}
        new = {name: window for name, window in zip(names, windows, strict=True) if name not in found}
        if new:
            made = self._encode(input_features=torch.stack(list(new.values())))
            # Of several at once each is a part of one block of memory, and would keep all of it.
            found.update(zip(new, made if len(new) == 1 else [one.clone() for one in made], strict=True))
        for name in names:
            self._keep(name, found[name])
        return [found[name] for name in names]

    def _keep(self, name: bytes, encoding: torch.Tensor) -> None:
        if name in self._kept:
            self._kept.move_to_end(name)
            return
        self._kept[name] = encoding
        if len(self._kept) > self._room:
            self._kept.popitem(last=False)


def _name(window: torch.Tensor) -> bytes:
    """Features by their content: half a millisecond, where encoding them takes hundreds."""
    return hashlib.blake2b(window.detach().contiguous().view(torch.uint8).numpy().data, digest_size=16).digest()
