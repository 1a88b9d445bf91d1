"""Which of a container's audio tracks is heard. For decode processes."""

from __future__ import annotations

from typing import cast

import av


def heard_track(container: av.container.InputContainer) -> av.AudioStream | None:
    """The track that ffmpeg takes for the best (its default one, if it says so), None where none can be decoded.

    ffmpeg does not ask whether it knows the codec: a film may have a sound for one kind of device beside that for all.
    Then it is the first whose codec is known.
    """
    best = container.streams.best("audio")
    if best is None or best.codec_context is not None:
        return cast("av.AudioStream | None", best)
    return next((track for track in container.streams.audio if track.codec_context is not None), None)


def has_other_tracks(container: av.container.InputContainer, heard: av.AudioStream) -> bool:
    """Whether there is more to hear: another track that can be decoded, or the best, if that one cannot."""
    best = container.streams.best("audio")
    known = [track for track in container.streams.audio if track.codec_context is not None]
    return len(known) > 1 or (best is not None and best.index != heard.index)
