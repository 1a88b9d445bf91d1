"""The messages between a worker and its decode processes (both ways one at a time over a socket pair).

No pickle, as the child has seen hostile bytes. A message is a tag and a body:

====  ==============================================================================================================
tag   body
====  ==============================================================================================================
``R``  child: ready for requests (sent once)
``Q``  worker: JSON ``{"source", "start_s", "end_s", "channel", "cut", "later"}`` (see `workers.audio.DecodePool.open`)
``P``  child: still at work (fetching, skipping), nothing to show yet
``B``  child: uint32 k, then float32[k] speech probabilities, then float32[n] samples
``C``  child: JSON ``{"seconds", "cuts"}``, before the first block of a recording that is cut
``S``  child: the end of a span that is not the last; it waits for an answer
``G``  worker: go on with the next span
``H``  worker: halt; that was enough of this recording
``E``  child: JSON ``{"duration_s", "flags", "channels"}``, the end of a recording
``X``  child: JSON ``{"type", "message", "transient"}``, the end of one that failed
====  ==============================================================================================================
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

READY, REQUEST, PROGRESS, BLOCK, END, ERROR = b"R", b"Q", b"P", b"B", b"E", b"X"
CUTS, SPAN_END, GO_ON, HALT = b"C", b"S", b"G", b"H"

Floats = npt.NDArray[np.float32]


def pack_block(samples: Floats, speech: Floats) -> bytes:
    """The ``B`` message of a block."""
    return BLOCK + struct.pack("=I", speech.size) + speech.tobytes() + samples.tobytes()


def unpack_block(body: bytes) -> tuple[Floats, Floats]:
    """Samples and speech probabilities from the body of a ``B`` message."""
    (frames,) = struct.unpack_from("=I", body)
    floats = np.frombuffer(body, dtype=np.float32, offset=4)
    return floats[frames:], floats[:frames]
