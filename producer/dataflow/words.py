"""What is said on the command line's behalf, in the words of a pipeline: arguments instead of options."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager

from producer.errors import reworded, without_commands

_ARGUMENTS = {
    "--cache-path": "cache_path",
    "--force": "force=True",
    "--language": "language",
    "--media-key": "media_key",
    "--model": "hf_model_name_or_path",
    "--output-key": "output_key",
    "--prefix": "file_name_prefix",
    "--task": "task",
}
_OPTION = re.compile("|".join(map(re.escape, _ARGUMENTS)))
# Rows are never reused here.
_REUSE = re.compile(r" \(and keep answers with --reuse[^)]*\)")


def in_arguments(message: str) -> str:
    """``message`` with each option of ``whisper-fleet`` as the argument that it is in a pipeline."""
    return _OPTION.sub(lambda found: _ARGUMENTS[found[0]], _REUSE.sub("", without_commands(message)))


def arguments_named() -> AbstractContextManager[None]:
    """Errors of the block name arguments, not options of a command line."""
    return reworded(in_arguments)
