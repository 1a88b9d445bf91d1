"""The set-up script's choices, made in a copy of the repository with a PATH of the test's own; nothing is installed."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cpu_build

ROOT = Path(__file__).parents[1]

#: What the script itself calls before it installs anything.
TOOLS = ("bash", "dirname", "grep", "id", "sed", "uname")

GOOD_UV = 'echo "  --excludes <EXCLUDES>"'
OLD_UV = 'echo "  --constraints <CONSTRAINTS>"'
PYTHON_WITH_PIP = "exit 0"
PYTHON_WITHOUT_PIP = '[ "$1 $2" != "-m pip" ]'
BARE_PYTHON = "exit 1"


class Copy:
    """A copy of the repository's set-up, and a PATH that holds nothing else than what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "repo"
        self.path = folder / "path"
        self.path.mkdir()
        (self.root / ".ci").mkdir(parents=True)
        shutil.copy(ROOT / ".ci" / "setup", self.root / ".ci")
        shutil.copy(ROOT / "pyproject.toml", self.root)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, f"{tool} is not on the PATH"
            (self.path / tool).symlink_to(found)

    def add(self, name: str, script: str, folder: Path | None = None) -> None:
        folder = folder or self.path
        folder.mkdir(parents=True, exist_ok=True)
        program = folder / name
        program.write_text(f"#!{shutil.which('bash')}\n{script}\n")
        program.chmod(0o755)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.path / "bash"), ".ci/setup", *arguments]
        variables = {"PATH": str(self.path), **environment}
        return subprocess.run(command, cwd=self.root, env=variables, capture_output=True, text=True)

    def plan(self, **environment: str) -> dict[str, str]:
        done = self.run("--print-plan", **environment)
        assert done.returncode == 0, done.stderr
        return dict(line.split(": ") for line in done.stdout.splitlines())


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


@pytest.mark.parametrize(
    ("programs", "source"),
    [
        ({"uv": GOOD_UV, "python3": PYTHON_WITH_PIP}, "path"),
        ({"uv": OLD_UV, "python3": PYTHON_WITH_PIP}, "pip"),
        ({"python3": PYTHON_WITH_PIP}, "pip"),
        ({"python3": PYTHON_WITHOUT_PIP}, "venv"),
        ({"python3": BARE_PYTHON}, "none"),
        ({}, "none"),
    ],
)
def test_uv_comes_from_the_first_place_that_has_it(copy: Copy, programs: dict[str, str], source: str) -> None:
    for name, script in programs.items():
        copy.add(name, script)

    assert copy.plan()["uv"] == source


def test_uv_of_an_earlier_run_is_used_again(copy: Copy) -> None:
    copy.add("python3", PYTHON_WITH_PIP)
    copy.add("uv", GOOD_UV, copy.root / ".cache" / "uv" / "bin")

    assert copy.plan()["uv"] == "earlier"


def test_apt_is_the_last_resort_of_root_only(copy: Copy) -> None:
    copy.add("apt-get", "exit 1")

    assert copy.plan()["uv"] == ("apt" if os.geteuid() == 0 else "none")


def test_without_any_way_one_line_says_what_to_install(copy: Copy) -> None:
    done = copy.run()

    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "uv" in line
    assert "python3-venv" in line
    assert not (copy.root / ".venv").exists()


def torch_wheel(folder: Path, machine: str) -> Path:
    release = re.search(r'"torch==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert release
    folder.mkdir()
    (folder / f"torch-{release[1]}+cpu-cp311-cp311-manylinux_2_28_{machine}.whl").touch()
    return folder


@pytest.mark.parametrize(
    "environment",
    [
        lambda folder: {"UV_FIND_LINKS": f"/nowhere,{folder}"},
        lambda folder: {"PIP_FIND_LINKS": f"/nowhere  {folder}"},
        lambda folder: {"PIP_FIND_LINKS": f"file://{folder}"},
        lambda folder: {"WHERE": str(folder)},
    ],
    ids=["uv", "pip", "file-url", "pip-config"],
)
def test_a_local_cpu_build_of_torch_is_found(
    copy: Copy, tmp_path: Path, environment: Callable[[Path], dict[str, str]]
) -> None:
    copy.add("python3", '[ "$*" = "-m pip config get global.find-links" ] && echo "$WHERE"; exit 0')

    assert copy.plan(**environment(torch_wheel(tmp_path / "wheels", platform.machine())))["torch"] == "folder"


def test_a_cpu_build_for_another_machine_is_not_taken(copy: Copy, tmp_path: Path) -> None:
    wheels = torch_wheel(tmp_path / "wheels", "pdp11")

    assert copy.plan(UV_FIND_LINKS=str(wheels))["torch"] == "index"


@pytest.mark.parametrize(
    ("environment", "when"),
    [
        ({}, "at first use"),
        ({"PYTHONDONTWRITEBYTECODE": "1"}, "now"),
        ({"PYTHONDONTWRITEBYTECODE": ""}, "at first use"),
    ],
)
def test_bytecode_that_python_would_not_keep_is_compiled_at_once(
    copy: Copy, environment: dict[str, str], when: str
) -> None:
    copy.add("uv", GOOD_UV)

    assert copy.plan(**environment)["bytecode"] == when


def test_nothing_is_done_until_something_changes(copy: Copy) -> None:
    # Given a finished set-up, newer than what it was made from
    copy.add("python", "exit 0", copy.root / ".venv" / "bin")
    stamp = copy.root / ".venv" / ".setup-stamp"
    stamp.write_text(f"{copy.root.resolve()}\n")
    for source in (copy.root / "pyproject.toml", copy.root / ".ci" / "setup"):
        os.utime(source, (1_000_000_000, 1_000_000_000))

    # Then a run says and does nothing
    done = copy.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    # But where it was moved or copied it starts (and finds no uv on this PATH): it holds the paths of where it was
    elsewhere = copy.root.parent / "elsewhere"
    shutil.copytree(copy.root, elsewhere)
    command = [str(copy.path / "bash"), ".ci/setup"]
    assert subprocess.run(command, cwd=elsewhere, env={"PATH": str(copy.path)}, capture_output=True).returncode == 1

    # and so it does when the packages may have changed
    os.utime(stamp, (999_999_999, 999_999_999))
    assert copy.run().returncode == 1


@pytest.mark.parametrize("tool", ["ruff", "mypy"])
def test_what_may_refuse_the_code_is_of_one_version(tool: str) -> None:
    """A new rule, or another style, would fail a clean clone in which nothing has changed."""
    assert re.search(rf'"{tool}==[\d.]+\.\*"', (ROOT / "pyproject.toml").read_text())


def test_ci_runs_make_test_in_the_repository(copy: Copy, tmp_path: Path) -> None:
    shutil.copy(ROOT / ".ci" / "run", copy.root / ".ci")
    copy.add("make", 'echo "$PWD: make $*"')

    command = [str(copy.path / "bash"), str(copy.root / ".ci" / "run")]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": str(copy.path)}, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, f"{copy.root}: make test\n")


def test_make_test_sets_up_lints_and_tests_in_that_order() -> None:
    done = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True)

    steps = [".ci/setup", "ruff check", "ruff format --check", "mypy", "pytest"]
    places = [done.stdout.index(step) for step in steps]
    assert places == sorted(places)


def test_no_test_of_the_cpu_build_is_skipped_where_it_was_set_up() -> None:
    # Where somebody else made the environment, it may have a GPU's build, and those tests nothing to look at.
    assert cpu_build.ON_A_CPU or Path(sys.prefix) != ROOT / ".venv"


def test_make_alone_lists_every_target() -> None:
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)

    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert re.findall(r"^  make ([\w-]+)", done.stdout, re.MULTILINE) == phony[1].split()


@pytest.mark.parametrize("name", ["Makefile", ".ci/setup", ".ci/run", "pyproject.toml"])
def test_set_up_files_name_no_host_and_no_folder_of_one_machine(name: str) -> None:
    text = (ROOT / name).read_text()

    assert not re.findall(r"https?:", text)
    assert not re.findall(r"[\w-]+\.(?:org|com|io|net|cn)\b", text)
    assert not re.findall(r"(?<![\w.])/(?:home|opt|root|work)/", text)


def test_clean_leaves_the_users_own_step_files(tmp_path: Path) -> None:
    """`run` writes into cache/, too, unless it is told otherwise."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (".venv", "cache/samples_step1.job", "cache/mine_step1.job"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("samples", "mine"):
        (tmp_path / "cache" / f"{name}_step1.jsonl").write_text("{}")

    for _ in range(2):
        subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "cache"]
        assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["mine_step1.job", "mine_step1.jsonl"]
    shutil.rmtree(tmp_path / "cache")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
