"""compose.yaml, the Dockerfile and .dockerignore say what they should, and agree with each other and with the code."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from composed import COMPOSE, DOCKERFILE, ROOT, Dockerfile, MissingVariableError, compose_file, mounts
from workers.settings import Settings

REQUIRED = {"REDIS_PASSWORD": "secret", "FLOWER_BASIC_AUTH": "user:word"}
WORKERS = ("worker", "worker-cpu")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return compose_file(REQUIRED)


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    return dict(compose["services"])


@pytest.fixture(scope="module")
def dockerfile() -> Dockerfile:
    return Dockerfile()


def seconds(duration: str) -> float:
    found = re.fullmatch(r"(\d+)(s|m)", duration)
    assert found, duration
    return int(found[1]) * {"s": 1, "m": 60}[found[2]]


def schema_check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_file_follows_the_compose_specification() -> None:
    done = schema_check(COMPOSE)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_refuses_a_misspelt_file(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE.read_text().replace("healthcheck:", "health_check:"))

    assert schema_check(wrong).returncode != 0


def test_the_override_in_the_comment_works(tmp_path: Path, services: dict[str, Any]) -> None:
    # Given the example for a second GPU
    found = re.search(r"^#   services:\n(?:#    .*\n)+", COMPOSE.read_text(), re.MULTILINE)
    assert found
    example = tmp_path / "compose.override.yaml"
    example.write_text(found[0].replace("#   ", ""))

    # Then it is a Compose file that extends a service there is, on another GPU
    assert schema_check(example).returncode == 0
    [second] = yaml.safe_load(example.read_text())["services"].values()
    extended = services[second["extends"]["service"]]
    assert second["extends"]["file"] == COMPOSE.name
    assert second["environment"]["CUDA_VISIBLE_DEVICES"] != extended["environment"]["CUDA_VISIBLE_DEVICES"]


@pytest.mark.parametrize("name", REQUIRED)
def test_a_password_that_is_not_set_is_asked_for(name: str) -> None:
    with pytest.raises(MissingVariableError, match=f"^set {name}"):
        compose_file({variable: value for variable, value in REQUIRED.items() if variable != name})


def test_only_flower_is_published_and_only_on_loopback(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}

    assert list(published) == ["flower"]
    assert all(port.startswith("127.0.0.1:") for port in published["flower"])
    assert not [name for name, service in services.items() if "network_mode" in service]


def test_every_service_has_its_redis_and_every_volume_is_declared(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        named = {source for source, _, _ in mounts(service) if not source.startswith((".", "/"))}
        assert named <= set(compose["volumes"]), name
        assert service["restart"] == "unless-stopped"
        assert service["init"] is True
        if name != "redis":
            assert service["depends_on"] == {"redis": {"condition": "service_healthy"}}
            assert service["environment"]["REDIS_URL"] == "redis://:secret@redis:6379/0"


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_has_time_to_start_and_to_drain(services: dict[str, Any], name: str) -> None:
    worker = services[name]

    drain_seconds = float(worker["environment"]["WHISPER_DRAIN_SECONDS"])
    assert drain_seconds == Settings.model_fields["drain_seconds"].default
    assert seconds(worker["stop_grace_period"]) >= drain_seconds + 60
    assert seconds(worker["healthcheck"]["start_period"]) >= 600
    assert worker["shm_size"]


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_can_be_scaled(services: dict[str, Any], name: str) -> None:
    # One name or one published port would keep Compose from starting a second.
    assert not {"container_name", "ports", "hostname"} & set(services[name])


def test_only_the_gpu_worker_needs_a_gpu(services: dict[str, Any]) -> None:
    [device] = services["worker"]["deploy"]["resources"]["reservations"]["devices"]

    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert services["worker"]["environment"]["CUDA_VISIBLE_DEVICES"] == "0"
    assert services["worker-cpu"]["profiles"] == ["cpu"]
    assert [name for name, service in services.items() if "deploy" in service] == ["worker"]


def test_workers_see_the_audio_where_the_producer_sees_it(services: dict[str, Any]) -> None:
    for name in (*WORKERS, "collector"):
        assert ("./tests/samples", "/data", True) in list(mounts(services[name])), name
    assert ("cache", "/cache", False) in list(mounts(services["collector"]))
    assert ("models", "/models", False) in list(mounts(services["worker"]))


def test_folders_of_ones_own_take_the_place_of_samples_and_volume() -> None:
    folders = {"WHISPER_DATA": "/srv/audio", "WHISPER_CACHE": "./out"}

    collector = compose_file({**REQUIRED, **folders})["services"]["collector"]

    assert list(mounts(collector)) == [("/srv/audio", "/data", True), ("./out", "/cache", False)]


def test_every_setting_of_a_worker_exists(services: dict[str, Any], dockerfile: Dockerfile) -> None:
    known = {f"WHISPER_{name.upper()}" for name in Settings.model_fields}
    named = {variable for name in WORKERS for variable in services[name]["environment"]}
    named |= {pair.split("=")[0] for line in dockerfile.steps("gpu", "ENV") for pair in line.split()}

    assert {name for name in named if name.startswith("WHISPER_")} <= known


def test_every_setting_is_handed_on_to_those_it_is_for(services: dict[str, Any]) -> None:
    """One that is not is dropped without a word: a limit on what is fetched, for example."""
    own = {"redis_url", "model_cache", *(name for name in Settings.model_fields if name.startswith("standin_"))}
    producers = {"window_rows", "chunk_rows", "stall_seconds"}
    workers = set(Settings.model_fields) - own - producers

    for service, names in (dict.fromkeys(WORKERS, workers) | {"collector": producers}).items():
        wanted = {f"WHISPER_{name.upper()}" for name in names}
        assert not wanted - set(services[service]["environment"]), service


def test_every_target_is_a_stage_that_runs_the_command_line_as_a_user(
    services: dict[str, Any], dockerfile: Dockerfile
) -> None:
    targets = {name: service["build"]["target"] for name, service in services.items() if "build" in service}

    assert targets == {"worker": "gpu", "worker-cpu": "cpu", "collector": "producer", "flower": "producer"}
    for target in targets.values():
        assert dockerfile.steps(target, "ENTRYPOINT") == ['["whisper-fleet"]']
        assert dockerfile.steps(target, "USER")[-1] == "fleet"
        [made] = [step for step in dockerfile.steps(target, "RUN") if "useradd" in step]
        assert {"/cache", "/data", "/models"} <= set(made.split())


def test_each_image_has_the_extras_it_needs(dockerfile: Dockerfile) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {"gpu": {"gpu", "flower"}, "cpu": {"cpu", "flower", "whisper-base"}, "producer": {"flower"}}

    for target, extras in wanted.items():
        [copied] = [step for step in dockerfile.steps(target, "COPY") if "/venv" in step]
        stage = copied.split()[0].removeprefix("--from=")
        [install] = [step for step in dockerfile.steps(stage, "RUN") if "-r pyproject.toml" in step]
        assert set(re.findall(r"--extra ([\w-]+)", install)) == extras
        assert extras <= set(known)
        assert ("--torch-backend cpu" in install) == (target == "cpu")


def test_what_is_copied_exists_and_is_not_ignored(dockerfile: Dockerfile) -> None:
    ignored, *kept = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    sources = set()
    for parent, steps in dockerfile.stages.values():
        assert parent in dockerfile.stages or ":" in parent
        for instruction, rest in steps:
            if instruction != "COPY":
                continue
            if rest.startswith("--from="):
                assert rest.split()[0].removeprefix("--from=") in dockerfile.stages
            else:
                sources |= set(rest.split()[:-1])

    assert ignored == "*"
    assert sources == {line[1:] for line in kept if line.startswith("!")}
    assert all((ROOT / source).exists() for source in sources)
    # What the build of the package itself asks for.
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert sources == {"pyproject.toml", "README.md", *packages["packages"]}


@pytest.mark.parametrize("path", [COMPOSE, DOCKERFILE, ROOT / ".dockerignore"], ids=lambda path: path.name)
def test_container_files_name_no_outside_host_and_no_folder_of_one_machine(path: Path) -> None:
    text = path.read_text()

    assert not re.findall(r"https?://(?!127\.0\.0\.1)", text)
    assert not re.findall(r"(?<![\w.])/(?:home|opt|root|work)/", text)
