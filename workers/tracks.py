"""Which of a container's audio tracks is heard. For decode processes."""

from __future__ import annotations

from typing import cast

import av
from av.stream import Disposition

#: Of tracks for those who do not hear or see well, and of those who talk about a film.
ASIDE = Disposition.hearing_impaired | Disposition.visual_impaired | Disposition.comment


def heard_track(container: av.container.InputContainer) -> av.AudioStream | None:
    """The track that ffmpeg takes for the best (its default one, if it says so), None where none can be decoded.

    ffmpeg does not ask whether it knows the codec: a film may have a sound for one kind of device beside that for all.
    Then it is the best whose codec is known.
    """
    best = container.streams.best("audio")
    if best is None or best.codec_context is not None:
        return cast("av.AudioStream | None", best)
    return max(_known(container), key=_rank, default=None)


def has_other_tracks(container: av.container.InputContainer, heard: av.AudioStream) -> bool:
    """Whether there is more to hear: another track that can be decoded, or the best, if that one cannot."""
    best = container.streams.best("audio")
    return len(_known(container)) > 1 or (best is not None and best.index != heard.index)


def _known(container: av.container.InputContainer) -> list[av.AudioStream]:
    return [track for track in container.streams.audio if track.codec_context is not None]


def _rank(track: av.AudioStream) -> tuple[int, int]:
    """As ffmpeg's, with channels for bits a second; of equals the first is taken."""
    says = track.disposition
    return bool(says & Disposition.default) + (not says & ASIDE), track.codec_context.channels
