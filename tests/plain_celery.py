"""A Python environment that has Celery, redis-py and what they need, and nothing of this package."""

from __future__ import annotations

import subprocess
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


@dataclass(frozen=True, slots=True)
class PlainCelery:
    """The environment's interpreter."""

    python: Path
    folder: Path

    @classmethod
    def made_in(cls, folder: Path) -> PlainCelery:
        """A new environment whose packages are links to those of this one: nothing has to be fetched."""
        venv.create(folder / "venv", symlinks=True, with_pip=False)
        (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
        for name in _needed("celery", "redis", "packaging"):  # as celery[redis] brings
            found = metadata.distribution(name)
            for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
                (packages / top).symlink_to(Path(str(found.locate_file(top))))
        return cls(folder / "venv" / "bin" / "python", folder)

    def run(self, code: str, environment: Mapping[str, str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run ``code`` to its end."""
        return subprocess.run(
            [str(self.python), "-I", "-c", code],
            cwd=self.folder,
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def _needed(*names: str) -> set[str]:
    """The distributions ``names`` and all that they require here, without extras."""
    found: set[str] = set()
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found.add(name)
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
    return found
