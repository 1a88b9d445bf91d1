"""Flower as anybody may start it: nobody gets in who should not."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fleet import READY_SECONDS, clean_environment, free_port, wait_for
from producer.embedded import end, start_guarded
from workers.flower_doors import is_loopback, same_site

FLOWER = [sys.executable, "-m", "celery", "-A", "workers", "flower"]
PASSWORD = ("someone", "a-word")


@contextlib.contextmanager
def flower(folder: Path, **changes: str) -> Iterator[str]:
    """A Flower of this machine alone, its broker being away: its URL."""
    port = free_port()
    kept = {name: value for name, value in clean_environment().items() if not name.startswith("FLOWER_")}
    environment = {**kept, "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0", **changes}
    process = start_guarded([*FLOWER, "--address=127.0.0.1", f"--port={port}"], environment, folder / "flower.log")
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        assert process.poll() is None, (folder / "flower.log").read_text()[-3000:]
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/healthcheck", timeout=30).text == "OK"
        return False

    try:
        wait_for(healthy, READY_SECONDS)
        yield url
    finally:
        end(process, 15.0)


def test_with_a_password_even_metrics_want_it(tmp_path: Path) -> None:
    with flower(tmp_path, FLOWER_BASIC_AUTH=":".join(PASSWORD)) as url:
        for path in ("/metrics", "/", "/broker", "/api/workers"):
            assert httpx.get(url + path, timeout=30).status_code == 401, path
            assert httpx.get(url + path, auth=("someone", "wrong"), timeout=30).status_code == 401, path
        metrics = httpx.get(f"{url}/metrics", auth=PASSWORD, timeout=30)
        assert metrics.status_code == 200
        assert "# HELP" in metrics.text
        # Who has the password may come from anywhere, as through a proxy.
        proxied = httpx.get(url, auth=PASSWORD, headers={"Host": "flower.example.org"}, timeout=30)
        assert proxied.status_code == 200


def test_without_a_password_this_machine_is_answered_but_no_other_sites_page(tmp_path: Path) -> None:
    with flower(tmp_path) as url:
        authority = url.removeprefix("http://")
        for path in ("/", "/metrics", "/api/workers"):
            own = {"Origin": url, "Sec-Fetch-Site": "same-origin"}
            assert httpx.get(url + path, headers=own, timeout=30).status_code == 200, path
            assert httpx.get(url + path, timeout=30).status_code == 200, path
            for foreign in (
                {"Origin": "https://news.example"},
                {"Sec-Fetch-Site": "cross-site"},
                {"Host": f"rebound.example:{authority.rpartition(':')[2]}"},
            ):
                answer = httpx.get(url + path, headers=foreign, timeout=30)
                assert answer.status_code == 403, (path, foreign)
                assert "Access-Control-Allow-Origin" not in answer.headers
        shutdown = httpx.post(f"{url}/api/worker/shutdown/w@h", headers={"Origin": "https://news.example"}, timeout=30)
        assert shutdown.status_code == 403


@pytest.mark.parametrize("arguments", [[], ["--address=0.0.0.0"], ["--unix_socket=flower.sock"]])
def test_without_a_password_it_does_not_listen_for_others(tmp_path: Path, arguments: list[str]) -> None:
    environment = {name: value for name, value in clean_environment().items() if not name.startswith("FLOWER_")}
    done = subprocess.run(
        [*FLOWER, f"--port={free_port()}", *arguments],
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "set FLOWER_BASIC_AUTH=user:password first" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "flower.sock").exists()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_addresses_of_this_machine_alone(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "127.0.0.1.example.org"])
def test_addresses_that_others_reach(address: str) -> None:
    assert not is_loopback(address)


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"Host": "127.0.0.1:5555"}, True),
        ({"Host": "[::1]:5555", "Origin": "http://[::1]:5555"}, True),
        ({"Host": "localhost:5555", "Origin": "http://localhost:8000"}, False),
        ({"Host": "localhost:5555", "Origin": "null"}, False),
        ({"Host": "localhost:5555", "Sec-Fetch-Site": "same-site"}, False),
        ({"Host": "[::1"}, False),
        ({}, False),
    ],
)
def test_a_page_of_another_site_is_known(headers: dict[str, str], allowed: bool) -> None:
    assert same_site(headers) is allowed
