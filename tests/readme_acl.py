"""The Redis user that the README describes, with all of its rights or some."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from fleet import Fleet

README = Path(__file__).parents[1] / "README.md"


def readme_rules(*, without: Iterable[str] = ()) -> list[str]:
    """The rules of the ACL line in the README, without name and password."""
    [line] = re.findall(r"^redis-cli (ACL SETUSER (?:.*\\\n)*.*)", README.read_text(), re.MULTILINE)
    rules = shlex.split(line.replace("\\\n", " "))
    assert rules[:5] == ["ACL", "SETUSER", "fleet", "on", ">PASSWORD"]
    return [rule for rule in rules[5:] if rule not in without]


def restricted(fleet: Fleet, rules: Iterable[str], database: int = 0) -> str:
    """The URL of a user of the fleet's broker with these rules and no others."""
    fleet.redis.execute_command("ACL", "SETUSER", "fleet", "reset", "on", ">pw", *rules)
    return f"redis://fleet:pw@127.0.0.1:{urlsplit(fleet.url).port}/{database}"
