"""One gateway over TLS on loopback, phones of raw bytes with real keys, and the command as a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import gateway_world as worlds

from fedlearn.device.padding import MIB, padded
from fedlearn.device.requests import Denial
from fedlearn.errors import OutOfRange, TransportFailed
from fedlearn.proto import gateway_pb2 as pb
from fedlearn.types import Level
from fedlearn.wire import encode_contribution
from fedlearn_client.hooks import Method
from fedlearn_client.network import GatewayTransport
from fedlearn_server.deployment.certificates import ensure_certificates, issue_server, make_authority, now_utc
from fedlearn_server.gateway.process import Opened, opened_gateway
from fedlearn_server.gateway.state import GatewayState

doors, fleets = worlds.doors, worlds.fleets
COMMAND = "import sys; from fedlearn_server.gateway.command import main; sys.exit(main(sys.argv[1:]))"
WIDTH = 400_000
"""Weights: 1.6 MB, so that a phone fetches them in pieces."""
PATIENCE_S = 60.0


@pytest.fixture
def draining() -> list[bool]:
    return [False]


@pytest.fixture
def gateway(tmp_path: Path, draining: list[bool]) -> Iterator[Opened]:
    with opened_gateway(worlds.settings_in(tmp_path), draining=lambda: draining[0]) as opened:
        yield opened


@pytest.fixture
def line(gateway: Opened, tmp_path: Path) -> Iterator[worlds.Line]:
    with worlds.line(gateway.door.port, tmp_path / "certs" / "ca.crt") as made:
        yield made


def enrolled(line: worlds.Line, *numbers: int) -> list[Any]:
    phones = [doors.Phone(number, time.time) for number in numbers]
    for phone in phones:
        assert line.ask(phone.enrolment()).outcome == pb.EnrolReply.OUTCOME_ENROLLED
    return phones


def task_of(line: worlds.Line, phone: Any) -> Any:
    """Check in until the question has opened its collection."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        reply = line.ask(phone.check_in())
        if not reply.reason:
            return doors.task_in(reply)
        assert reply.reason == Denial.NO_TASK
        time.sleep(0.02)
    raise AssertionError("no task came")


def fetched(line: worlds.Line, digest: bytes, piece: int) -> bytes:
    data = bytearray()
    while True:
        reply = line.ask(pb.FetchRequest(digest=digest, offset=len(data), max_bytes=piece))
        if not reply.data:
            assert reply.total == len(data)
            return bytes(data)
        data += reply.data


def upload_of(phone: Any, task: Any) -> pb.UploadRequest:
    return phone.upload(task, values=fleets.canary(phone.number, WIDTH))


def status_of(line: worlds.Line, method: str, frame: bytes) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as refused:
        line.raw(method, frame)
    return refused.value.code().name, refused.value.details()


def test_a_step_from_enrolment_to_the_sum(gateway: Opened, line: worlds.Line) -> None:
    phones = enrolled(line, 1, 2, 3, 4, 5)
    question = worlds.Question(gateway.state, fleets.terms(), fleets.round_task(width=WIDTH))
    tasks = [task_of(line, phone) for phone in phones]
    weights = fetched(line, bytes.fromhex(tasks[0].weights_digest), 700_000)
    assert np.frombuffer(weights, "<f4").shape == (WIDTH,)
    assert len({task.token for task in tasks}) == 5

    gateway.state.revoke(phones[4].device, time.time())
    assert line.ask(upload_of(phones[4], tasks[4])).outcome == pb.UploadReply.OUTCOME_REJECTED
    assert line.ask(phones[4].check_in()).reason == Denial.REVOKED

    uploads = [upload_of(phone, task) for phone, task in zip(phones, tasks, strict=True)]
    for upload in (uploads[0], uploads[1], uploads[0], uploads[2]):
        reply = line.ask(upload)
        assert (reply.outcome, reply.reason) == (pb.UploadReply.OUTCOME_ACCEPTED, "")
    found = question.reply().contribution
    assert (found.level, found.count) == (Level.COHORT, 3)
    assert (found.values == sum(fleets.canary(number, WIDTH) for number in (1, 2, 3))).all()

    assert line.ask(uploads[3]).outcome == pb.UploadReply.OUTCOME_LATE
    again = worlds.Question(gateway.state, fleets.terms(), fleets.round_task(width=WIDTH)).reply()
    assert encode_contribution(again.contribution) == encode_contribution(found)
    assert gateway.figures.registry.get_sample_value("fedlearn_gateway_faults_total") == 0


def test_what_is_refused(gateway: Opened, line: worlds.Line, tmp_path: Path) -> None:
    phone = enrolled(line, 1)[0]
    asked = phone.check_in()
    assert line.ask(asked).reason == Denial.NO_TASK
    assert line.ask(asked).reason == Denial.REPLAYED
    skewed = line.ask(phone.check_in(time_ms=round((time.time() - 301) * 1000)))
    assert skewed.reason == Denial.CLOCK
    assert abs(skewed.time_ms / 1000 - time.time()) < PATIENCE_S
    assert line.ask(phone.check_in(population="village")).reason == Denial.POPULATION
    assert line.ask(doors.Phone(2, time.time).check_in()).reason == Denial.UNKNOWN

    malformed = ("INVALID_ARGUMENT", "malformed")
    frame = padded(phone.check_in())
    assert status_of(line, "CheckIn", frame + b"\0") == malformed
    assert status_of(line, "CheckIn", bytes(len(frame))) == malformed
    assert status_of(line, "CheckIn", padded(phone.check_in(attestation=bytes(70_000)))) == malformed
    assert status_of(line, "Upload", bytes(20 * MIB))[0] == "RESOURCE_EXHAUSTED", "gRPC does not take it in"
    assert status_of(line, "Forget", frame)[0] == "UNIMPLEMENTED"
    assert line.ask(phone.check_in()).reason == Denial.NO_TASK, "the connection is still good"
    settings = worlds.settings_in(tmp_path, listen=f"127.0.0.1:{gateway.door.port}")
    with pytest.raises(OutOfRange, match="listen="), opened_gateway(settings):
        pass


def test_the_runtimes_own_transport(gateway: Opened, line: worlds.Line, tmp_path: Path) -> None:
    phone = enrolled(line, 1)[0]
    dead, ca = f"127.0.0.1:{worlds.free_port()}", (tmp_path / "certs" / "ca.crt").read_bytes()
    transport = GatewayTransport([dead, f"127.0.0.1:{gateway.door.port}"], ca, random_bytes=os.urandom)
    try:
        reply = pb.CheckInReply.FromString(transport.call(Method.CHECK_IN, padded(phone.check_in())))
        assert reply.reason == Denial.NO_TASK
        with pytest.raises(TransportFailed) as refused:
            transport.call(Method.CHECK_IN, bytes(1024))
        assert refused.value.denial == Denial.MALFORMED
    finally:
        transport.hang_up()


def test_certificates(gateway: Opened, line: worlds.Line, tmp_path: Path) -> None:
    ensure_certificates(tmp_path / "foreign", now_utc())
    with worlds.line(gateway.door.port, tmp_path / "foreign" / "ca.crt") as pinned:
        assert status_of(pinned, "CheckIn", bytes(256))[0] == "UNAVAILABLE"
    spoil_handshakes(gateway.door.port)
    assert enrolled(line, 1)

    make_authority(tmp_path / "certs", now_utc())
    issue_server(tmp_path / "certs", now_utc())
    with worlds.line(gateway.door.port, tmp_path / "certs" / "ca.crt") as pinned:
        assert enrolled(pinned, 2), "a phone that pins the new authority, without a restart"
    assert enrolled(line, 3), "and one that was connected before"


def test_draining(gateway: Opened, line: worlds.Line, draining: list[bool]) -> None:
    phone = enrolled(line, 1)[0]
    question = worlds.Question(gateway.state, fleets.terms(round_size=1, target=1), fleets.round_task(width=WIDTH))
    task = task_of(line, phone)
    draining[0] = True
    assert line.ask(phone.check_in()).reason == Denial.BUSY
    assert line.ask(upload_of(phone, task)).outcome == pb.UploadReply.OUTCOME_ACCEPTED
    assert question.reply().contribution.count == 1
    gateway.door.drain(0.0)
    assert status_of(line, "CheckIn", bytes(256))[0] == "UNAVAILABLE"


def spoil_handshakes(port: int) -> None:
    """Say something that is no TLS, and wait until the gateway hangs up."""
    for words in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100), b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as plain:
            plain.sendall(words)
            while plain.recv(4096):  # an alert, then the end
                pass


# --- the command ---


def toml(settings: Any) -> str:
    lines = []
    for name in settings.__slots__:
        value = getattr(settings, name)
        if value is not None:
            plain = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
            lines.append(f"{name} = {json.dumps(plain)}\n")
    return "".join(lines)


def wait_for(process: subprocess.Popen[bytes], status: Path, log: Path) -> dict[str, Any]:
    """Wait until the process serves its metrics."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        said = json.loads(status.read_text()) if status.exists() else {}
        if said.get("pid") == process.pid and said.get("metrics_port"):
            return said
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def ready(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.read().decode()


def test_the_command_without_superlink(tmp_path: Path) -> None:
    port = worlds.free_port()
    settings = worlds.settings_in(tmp_path, listen=f"127.0.0.1:{port}", drain_s=3.0)
    (tmp_path / "gateway.toml").write_text(toml(settings), encoding="utf-8")
    with (tmp_path / "log").open("wb") as log:
        arguments = [sys.executable, "-c", COMMAND, "--settings", str(tmp_path / "gateway.toml")]
        process = subprocess.Popen(arguments, stderr=log)
    state = GatewayState.open(settings.store)
    try:
        said = wait_for(process, tmp_path / "node" / "status.json", tmp_path / "log")
        assert ready(said["metrics_port"]).startswith("connecting")
        spoil_handshakes(port)
        with worlds.line(port, tmp_path / "certs" / "ca.crt") as line:
            phone = enrolled(line, 1)[0]
            terms = fleets.terms(round_size=1, target=1)
            question = worlds.Question(state, terms, fleets.round_task(width=WIDTH))  # as another gateway is asked
            task = task_of(line, phone)
            process.send_signal(signal.SIGTERM)
            until = time.monotonic() + PATIENCE_S
            while line.ask(phone.check_in()).reason != Denial.BUSY:
                assert time.monotonic() < until
            assert line.ask(upload_of(phone, task)).outcome == pb.UploadReply.OUTCOME_ACCEPTED
        assert question.reply().contribution.count == 1
        assert process.wait(PATIENCE_S) == 0
    finally:
        state.disconnect()
        process.kill()
        process.wait()
    lines = [json.loads(one) for one in (tmp_path / "log").read_text(encoding="utf-8").splitlines()]
    assert {"denied: CheckIn", f"phones are served on port {port}"} <= {one["message"] for one in lines}
    assert not [one for one in lines if one["level"] in {"error", "critical"}]
    assert phone.device.hex() not in (tmp_path / "log").read_text(encoding="utf-8")
