"""A real flower-superlink for tests: TLS, node authentication, a free loopback port, nothing left running."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import metadata
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from fedlearn.errors import FedlearnError
from fedlearn_server import flower
from fedlearn_server.flower import ControlLink, FleetLink, build_bundle

PATIENCE_S = 60.0
POLL_S = 0.2
"""Most of what is waited for is asked of SuperLink, which answers a hundred questions with a CPU-second."""
BIN = Path(sys.executable).parent
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",  # as long as the world stands, which may be for all tests
}

ASKER = '''\
"""A ServerApp that asks what its order says and writes down every answer."""

import json
import time

from flwr.serverapp import ServerApp

from fedlearn_server.collect import Asking, Conversation
from fedlearn_server.flower import limit_retries

app = ServerApp()


@app.main()
def main(grid, context):
    order = json.loads(context.run_config["fedlearn"])
    limit_retries(grid, 4.0)
    asking = Asking(order["deadline_s"], order["resend_s"])
    conversation = Conversation(grid, order["cohort"], order["parts"], asking)
    with open(order["out"], "w", encoding="utf-8", buffering=1) as out:
        for step, task in enumerate(order["tasks"]):
            time.sleep(order.get("pause_s", 0.0))
            for answer in conversation.ask(bytes.fromhex(task), step):
                said = {
                    "step": step,
                    "part": answer.partition,
                    "node": answer.node,
                    "payload": answer.payload.hex(),
                    "failure": answer.failure,
                    "reason": answer.reason,
                }
                out.write(json.dumps(said) + "\\n")
'''
ASKER_PROJECT = b"""\
[project]
name = "asker"
version = "1.0.0"
description = "Asks nodes."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedlearn"

[tool.flwr.app.components]
serverapp = "asker:app"
clientapp = "fedlearn_server.app:client_app"

[tool.flwr.app.config]
fedlearn = ""
"""


def wait_until(holds: Callable[[], Any], what: str, seconds: float = PATIENCE_S, poll_s: float = POLL_S) -> Any:
    """Return the first value of ``holds`` that is true."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for: {what}")
        time.sleep(poll_s)
    return found


def free_port() -> int:
    """Return a port that nobody listens on."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# certificates


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the tests."""

    directory: Path
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def ca(self) -> Path:
        """Its certificate; made when it is first asked for."""
        path = self.directory / "ca.crt"
        if not path.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._certificate(self.key, days=9, ca=True))
        return path

    def server(self, days: int = 9) -> tuple[Path, Path]:
        """Return (certificate, key) of a server on loopback; ``days`` < 0: it expired then."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, private = self.ca.with_name(f"server{days}.crt"), self.ca.with_name(f"server{days}.key")
        certificate.write_bytes(self._certificate(key, days=days, ca=False))
        private.write_bytes(private_pem(key))
        return certificate, private

    def _certificate(self, key: ec.EllipticCurvePrivateKey, *, days: int, ca: bool) -> bytes:
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        subject = issuer if ca else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))])
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=20))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return made.public_bytes(Encoding.PEM)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as a server's file holds it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def ssh_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as ssh-keygen writes it: the only form that a stock SuperNode reads."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def be_of_version(link: FleetLink, version: str) -> None:
    """Let a node say that its flwr is another."""
    (versions,) = [known for known in link._client._interceptors if isinstance(known, flower._Versions)]
    (name,) = [name for name, value in versions._headers.items() if value == metadata.version("flwr")]
    versions._headers[name] = version


@contextmanager
def tls_listener(certificate: Path, key: Path) -> Iterator[str]:
    """Listen with a certificate, shake hands and hang up; yield the address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    raw, _ = listener.accept()
                    with suppress(OSError):
                        context.wrap_socket(raw, server_side=True).close()
                    raw.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


# SuperLink


@dataclass(frozen=True)
class Member:
    """A registered node."""

    name: str
    node_id: int
    key: ec.EllipticCurvePrivateKey
    key_file: Path


class SuperLinkWorld:
    """A SuperLink with its database, authority, operator and nodes.

    Args:
        directory: its own.
        token: the operator's, for a SuperLink as `fedlearn up` starts it; None for Flower's own command.
    """

    def __init__(self, directory: Path, token: str | None = None) -> None:
        self.directory = directory
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.authority = Authority(directory / "certs")
        self.ca = self.authority.ca
        self._certificate, self._key = self.authority.server()
        self._started: list[psutil.Process] = []
        self._links: list[FleetLink] = []
        self._superlink: psutil.Popen | None = None
        self._made = 0
        self._command = [str(BIN / "flower-superlink")]
        if token is not None:
            file = directory / "operator.token"
            file.touch(mode=0o600)
            file.write_text(token)
            self._command = [sys.executable, "-m", "fedlearn_server.superlink", "--operator-token", str(file)]
        self.control = ControlLink(self.address, self.ca, token)

    @property
    def environment(self) -> dict[str, str]:
        """What Flower's own processes inherit."""
        path = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**os.environ, **QUIET, "FLWR_HOME": str(self.directory / "flwr"), "PATH": path}

    def start(self) -> None:
        """Start SuperLink, on the database there is, and wait until it answers."""
        command = [
            *(*self._command, "--host", "127.0.0.1", "--port", str(self.port)),
            *("--ssl-ca-certfile", str(self.ca), "--ssl-certfile", str(self._certificate)),
            *("--ssl-keyfile", str(self._key), "--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            *("--database", str(self.directory / "state.db")),
        ]
        self._superlink = self.spawn(command, "superlink.log")
        wait_until(self._answers, "SuperLink to answer")

    def kill(self) -> None:
        """End SuperLink as a power cut does; what it had started stays."""
        if self._superlink is None:
            return
        self._note_children()
        self._superlink.kill()
        self._superlink.wait()
        self._superlink = None

    def spawn(self, command: Sequence[str], log: str, environment: Mapping[str, str] | None = None) -> psutil.Popen:
        """Start a process that ends with the world at the latest."""
        with (self.directory / log).open("ab") as out:
            process = psutil.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**self.environment, **(environment or {})},
                cwd=self.directory,
            )
        self._started.append(process)
        return process

    def close(self) -> None:
        """End everything that was started here, and what that started."""
        for link in [self.control, *self._links]:
            link.close()
        self._note_children()
        for process in self._started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(self._started, timeout=10)

    def new_key(self) -> tuple[ec.EllipticCurvePrivateKey, Path]:
        """Return a node key that nobody registered, and its file."""
        self._made += 1
        key, path = ec.generate_private_key(ec.SECP384R1()), self.directory / f"key{self._made}.pem"
        path.write_bytes(ssh_pem(key))
        path.chmod(0o600)
        return key, path

    def register(self) -> Member:
        """Register a new node."""
        key, path = self.new_key()
        name = f"node{self._made}"
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return Member(name, self.control.register_node(public, name), key, path)

    def link(self, member: Member, tap: Callable[[str, bytes, bytes], None] | None = None) -> FleetLink:
        """Return a node's connection."""
        self._links.append(FleetLink(self.address, self.ca, member.key, tap))
        return self._links[-1]

    def status_of(self, member: Member) -> str:
        """Return what SuperLink says of a node."""
        return {node.node_id: node.status for node in self.control.nodes()}.get(member.node_id, "unregistered")

    def ask(
        self,
        tasks: Sequence[bytes],
        *,
        parts: int,
        cohort: str = "{}",
        deadline_s: float = 60.0,
        resend_s: float | None = None,
    ) -> Asked:
        """Start a run that asks every part each task in turn."""
        out = self.directory / f"asked{time.monotonic_ns()}.jsonl"
        order = {
            "tasks": [task.hex() for task in tasks],
            "parts": parts,
            "cohort": cohort,
            "deadline_s": deadline_s,
            "resend_s": resend_s,
            "out": str(out),
        }
        bundle = build_bundle({"pyproject.toml": ASKER_PROJECT, "asker.py": ASKER.encode()})
        return Asked(self.control.start_run(bundle, {"fedlearn": json.dumps(order)}), out)

    def wait_for_run(self, run_id: int, seconds: float = PATIENCE_S) -> str:
        """Wait until a run is over; return how it ended."""

        def over() -> str | None:
            run = self.control.run(run_id)
            return f"{run.sub_status} {run.details}".strip() if run is not None and run.is_over else None

        return str(wait_until(over, f"run {run_id} to end", seconds, poll_s=0.5))

    def _answers(self) -> bool:
        if self._superlink is not None and self._superlink.poll() is not None:
            raise RuntimeError((self.directory / "superlink.log").read_text(encoding="utf-8")[-2000:])
        try:
            self.control.nodes()
        except FedlearnError:
            return False
        return True

    def _note_children(self) -> None:
        for process in list(self._started):
            with suppress(psutil.NoSuchProcess):
                self._started.extend(child for child in process.children(recursive=True) if child not in self._started)


@dataclass(frozen=True)
class Asked:
    """A run of the asking ServerApp.

    Args:
        run_id: Flower's.
        out: where it writes down answers.
    """

    run_id: int
    out: Path

    def answers(self) -> list[dict[str, Any]]:
        """Return what it was answered so far."""
        if not self.out.exists():
            return []
        return [json.loads(line) for line in self.out.read_text(encoding="utf-8").split("\n")[:-1]]
