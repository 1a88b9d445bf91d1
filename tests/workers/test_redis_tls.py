"""A broker that only TLS reaches, clients' certificates required, and a user with no more rights than it needs."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from celery import Celery, chord
from redis.exceptions import RedisError

from fleet import CLI, READY_SECONDS, clean_environment, ended, free_port, run_cli, wait_for
from producer.embedded import end, start_guarded, worker_command
from readme_acl import readme_rules
from redis_server import Certificates, TlsServer, acl_user, tls_server_or_skip
from workers.app import create_app
from workers.errors import SettingsError
from workers.presence import live_workers
from workers.redis_client import check_server, connect
from workers.redis_url import check_url
from workers.settings import load_settings

#: A password that a URL has to escape.
PASSWORD = "s3cret: with/@#?&"
FLOWER = ("someone", "a-word")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    binary, folder = tls_server_or_skip(), tmp_path_factory.mktemp("tls")
    with TlsServer(binary, Certificates(folder / "certificates"), folder / "redis", "the-admins") as running:
        yield running


@pytest.fixture(scope="module")
def url(server: TlsServer) -> Iterator[str]:
    """The URL of the user that the README describes."""
    with acl_user(server, "fleet", PASSWORD, readme_rules()):
        yield server.url("fleet", PASSWORD, **server.certificates.by_client)


@dataclass(frozen=True, slots=True)
class Running:
    """A worker and a Flower on ``url``, and where their logs are."""

    url: str
    environment: dict[str, str]
    folder: Path
    flower: str

    def logs(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("*.log"))


@pytest.fixture(scope="module")
def running(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder, port = tmp_path_factory.mktemp("services"), free_port()
    environment = clean_environment(REDIS_URL=url, WHISPER_ENGINE="standin")
    commands = {"worker": worker_command("tls@%h"), "flower": [*CLI, "flower", "--port", str(port)]}
    processes = []
    try:
        for name, command in commands.items():
            more = {"FLOWER_BASIC_AUTH": ":".join(FLOWER)} if name == "flower" else {}
            processes.append(start_guarded(command, {**environment, **more}, folder / f"{name}.log"))

        def ready() -> bool:
            for process in processes:
                assert process.poll() is None, "".join(path.read_text()[-3000:] for path in folder.glob("*.log"))
            return bool(live_workers(connect(url)))

        wait_for(ready, READY_SECONDS)
        yield Running(url, environment, folder, f"http://127.0.0.1:{port}")
    finally:
        for process in processes:
            end(process, 20.0)


@pytest.fixture(scope="module")
def by_sentinel(server: TlsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Sentinel that only TLS reaches, and that knows the server as ``the-master``."""
    port, folder = free_port(), tmp_path_factory.mktemp("sentinel")
    certificates = server.certificates
    certificate, key = certificates.server
    config = folder / "sentinel.conf"
    lines = (
        *("bind 127.0.0.1", "port 0", f"tls-port {port}", "tls-auth-clients yes", "tls-replication yes"),
        *(f"tls-cert-file {certificate}", f"tls-key-file {key}", f"tls-ca-cert-file {certificates.ca}"),
        *("sentinel resolve-hostnames yes", "sentinel announce-hostnames yes"),
        f"sentinel monitor the-master localhost {server.port} 1",
        f"sentinel auth-pass the-master {server.password}",
    )
    config.write_text("\n".join(lines) + "\n")
    command = [str(server.binary.path), str(config), "--sentinel"]
    process = start_guarded(command, server.binary.environment, folder / "sentinel.log")
    options = "&".join(f"{name}={value}" for name, value in certificates.by_client.items())
    made = f"sentinel://:{server.password}@localhost:{port}/0?master_name=the-master&{options}"
    try:
        wait_for(lambda: _answers(made))
        yield made
    finally:
        end(process, 10.0)


def _answers(url: str) -> bool:
    with contextlib.suppress(RedisError), connect(url) as redis:
        return bool(redis.ping())
    return False


def test_sentinels_and_the_server_that_they_name_are_spoken_to_by_tls(
    running: Running, by_sentinel: str, samples: Path
) -> None:
    check_url(by_sentinel)
    with create_app(load_settings(REDIS_URL=by_sentinel)) as client:
        # A call goes by the broker, its answer by the result backend, and a worker's reply by remote control.
        recording = str(next(samples.glob("*.wav")))
        (transcript,) = client.send_task("whisper.transcribe", [[{"audio": recording}]]).get(timeout=READY_SECONDS)
        assert transcript["text"].startswith("stand-in ")
        assert client.control.inspect(timeout=60, limit=1).ping()


def test_a_job_goes_through_tls_to_its_step_file(
    running: Running, server: TlsServer, samples: Path, tmp_path: Path
) -> None:
    source = tmp_path / "data.jsonl"
    rows = [{"audio": str(path)} for path in sorted(samples.glob("*.wav"))[:4]]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    done = run_cli("run", str(source), "--cache-path", str(tmp_path / "cache"), environment=running.environment)

    assert done.returncode == 0, done.stderr
    step = Path(done.stdout.strip().splitlines()[-1])
    answers = [json.loads(line) for line in step.read_text().splitlines()]
    assert [answer["audio"] for answer in answers] == [row["audio"] for row in rows]
    assert not [answer for answer in answers if "transcription_error" in answer]
    # And nothing that the README's user may not do was tried.
    assert server.admin().execute_command("ACL", "LOG") == []
    assert PASSWORD not in done.stderr + running.logs()
    assert "insecure" not in running.logs()


def test_the_same_url_is_celerys_own(running: Running, samples: Path) -> None:
    # Given an application that knows nothing of this package; Celery wants to be told that it shall verify.
    url = f"{running.url}&ssl_cert_reqs=required"
    recording = str(next(samples.glob("*.wav")))

    with Celery("another", broker=url, backend=url) as client:
        answer = client.send_task("whisper.transcribe", [[{"audio": recording}]], queue="transcribe")
        (transcript,) = answer.get(timeout=120)

    assert transcript["model"] == "standin"
    connect(url).ping()


def test_a_chord_is_counted_and_its_callback_sent_to_the_default_queue(
    running: Running, server: TlsServer, samples: Path
) -> None:
    url = f"{running.url}&ssl_cert_reqs=required"
    recording = str(next(samples.glob("*.wav")))
    with Celery("another", broker=url, backend=url) as client:
        call = client.signature("whisper.transcribe", [[{"audio": recording}]], queue="transcribe")
        end = chord([call, call.clone()], client.signature("another.after")).apply_async()
        (message,) = wait_for(lambda: server.admin().lrange("celery", 0, -1))
        end.forget()  # no worker here has that task
    assert json.loads(message)["headers"]["task"] == "another.after"
    assert server.admin().execute_command("ACL", "LOG") == []


def test_flower_sees_events_and_queues_through_tls(running: Running) -> None:
    def api(path: str) -> dict[str, object]:
        with contextlib.suppress(httpx.TransportError):  # it does not listen yet
            answer = httpx.get(running.flower + path, auth=FLOWER, timeout=30)
            return dict(answer.json()) if answer.status_code == 200 else {}
        return {}

    workers = wait_for(lambda: api("/api/workers?refresh=1"))
    assert [name.partition("@")[0] for name in workers] == ["tls"]
    queues = api("/api/queues/length")["active_queues"]
    assert queues == [{"name": "transcribe", "messages": 0}, {"name": "translate", "messages": 0}]
    # Events come, too: this worker's heartbeat made it known.
    wait_for(
        lambda: (
            'flower_worker_online{worker="tls@' in httpx.get(f"{running.flower}/metrics", auth=FLOWER, timeout=30).text
        )
    )
    assert PASSWORD not in httpx.get(f"{running.flower}/broker", auth=FLOWER, timeout=30).text


def test_a_server_that_is_not_the_one_is_refused(server: TlsServer) -> None:
    options = server.certificates.by_client
    stranger = {**options, "ssl_ca_certs": str(server.certificates.other_ca)}

    with pytest.raises(SettingsError, match=r"certificate is not accepted \(self.signed.*ssl_ca_certs=/path/ca\.pem"):
        check_server(server.url(**stranger))
    # The authority of nobody's choice is none.
    with pytest.raises(SettingsError, match="certificate is not accepted"):
        check_server(server.url(ssl_certfile=options["ssl_certfile"], ssl_keyfile=options["ssl_keyfile"]))
    elsewhere = server.url(**options).replace("localhost", "127.0.0.1")
    with pytest.raises(SettingsError, match=r"certificate is not accepted .*use the name that is in it"):
        check_server(elsewhere)
    # But whoever insists may go there.
    check_server(f"{elsewhere}&ssl_check_hostname=false")
    check_server(server.url(**stranger, ssl_cert_reqs="none"))


def test_a_client_without_certificate_is_told_what_is_missing(server: TlsServer, tmp_path: Path) -> None:
    url = server.url(ssl_ca_certs=str(server.certificates.ca))

    done = run_cli("jobs", environment=clean_environment(REDIS_URL=url))

    # Some servers only end the connection, which an outage may do too.
    assert done.returncode == (1 if "in violation of protocol" in done.stderr else 2)
    assert done.stderr.count("\n") == 1
    assert "ssl_certfile" in done.stderr


@pytest.mark.parametrize("wrong", ["password", "user"])
def test_a_wrong_password_is_one_line_without_it(server: TlsServer, url: str, wrong: str) -> None:
    user, password = ("fleet", "not-the-password") if wrong == "password" else ("nobody", PASSWORD)

    url = server.url(user, password, **server.certificates.by_client)
    done = run_cli("jobs", environment=clean_environment(REDIS_URL=url))

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "refuses this user or password" in done.stderr
    assert password not in done.stderr


def test_a_user_without_rights_is_told_of_the_acl(server: TlsServer) -> None:
    with acl_user(server, "nobody", "pw", ["+get", "~*"]), pytest.raises(SettingsError, match="ACL in the README"):
        check_server(server.url("nobody", "pw", **server.certificates.by_client))


def test_the_readmes_user_may_not_do_more(url: str) -> None:
    redis = connect(url)
    for command in (["FLUSHALL"], ["CONFIG", "GET", "requirepass"], ["KEYS", "*"], ["ACL", "LIST"], ["SHUTDOWN"]):
        with pytest.raises(Exception, match="no permissions"):
            redis.execute_command(*command)
    with pytest.raises(Exception, match="no permissions"):
        redis.get("something:else")


def test_a_worker_does_not_start_on_a_server_it_cannot_trust(server: TlsServer, tmp_path: Path) -> None:
    options = {**server.certificates.by_client, "ssl_ca_certs": str(server.certificates.other_ca)}
    environment = clean_environment(REDIS_URL=server.url(**options), WHISPER_ENGINE="standin")
    process = subprocess.Popen(
        worker_command(), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with ended(process):
        said, _ = process.communicate(timeout=300)

    assert process.returncode == 1
    [line] = [line for line in said.splitlines() if "cannot start" in line]
    assert "certificate is not accepted" in line
    assert "STAND-IN" not in said, "it looks before it loads an engine"
    assert server.password not in said
