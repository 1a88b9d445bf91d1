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
    What is kept lies in one block of memory. Each in the place where the model made it, they broke the allocator's
    large free blocks into pieces: whisper-base's rank grew from 1.7 to 2.4 GB in 160 windows, 0.77 GB of that free,
    and the kernel had to clear new pages for most windows.
    """

    def __init__(self, encode: Callable[..., Sequence[torch.Tensor]], room: int) -> None:
        """``encode``: the model's own, ``input_features`` of n windows to n encodings. ``room``: how many are kept."""
        self._encode = encode
        self._room = room
        #: Which place of the block a window's encoding is in; who waited longest comes first.
        self._kept: OrderedDict[bytes, int] = OrderedDict()
        #: All encodings of a checkpoint are of one shape and type: those of the first.
        self._block = torch.empty(0)

    def __call__(self, *, input_features: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Log-mel features, float[n_mels, 3000] each, to encodings, float[positions, width] each, in their order."""
        windows = list(input_features)
        names = [_name(window) for window in windows]
        # Copies: whoever has one may still need it when its place is another's.
        found = {name: self._block[self._kept[name]].clone() for name in names if name in self._kept}
        new = {name: window for name, window in zip(names, windows, strict=True) if name not in found}
        if new:
            found.update(zip(new, self._encode(input_features=torch.stack(list(new.values()))), strict=True))
        for name in names:
            self._keep(name, found[name])
        return [found[name] for name in names]

    def _keep(self, name: bytes, encoding: torch.Tensor) -> None:
        if name in self._kept:
            self._kept.move_to_end(name)
            return
        if not self._room:
            return
        if not len(self._block):
            self._block = encoding.new_empty((self._room, *encoding.shape))
        place = self._kept.popitem(last=False)[1] if len(self._kept) == self._room else len(self._kept)
        self._kept[name] = place
        self._block[place].copy_(encoding)


def _name(window: torch.Tensor) -> bytes:
    """Features by their content: half a millisecond, where encoding them takes hundreds."""
    return hashlib.blake2b(window.detach().contiguous().view(torch.uint8).numpy().data, digest_size=16).digest()
