"""For workers that a test starts with ``-I version_two``: they read version 2 of the format, with one more option."""

from __future__ import annotations

from workers import messages


class OptionsTwo(messages.Options):
    added: bool = False


messages.VERSION = 2
messages.Options = OptionsTwo  # type: ignore[misc]
