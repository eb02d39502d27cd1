"""100,000 frames at the handlers, and 1,000 through TLS with noise beside them. Prints figures."""

from __future__ import annotations

import gc
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
import gateway_world as worlds

from fedlearn_server.deployment.certificates import ensure_certificates, now_utc
from fedlearn_server.gateway.server import Door
from fedlearn_server.gateway.tls import CertificateFiles

doors, fleets = worlds.doors, worlds.fleets
pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
FRAMES = 100_000
THROUGH_TLS = FRAMES // 100
NOISES = 200
MOST_GROWTH_KIB = 50 * 1024


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[doors.Desk]:
    made = doors.Desk(tmp_path)
    yield made
    made.close()


def resident() -> int:
    """KiB of this process now."""
    gc.collect()
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])


def no_bug(desk: doors.Desk) -> None:
    assert desk.counted("fedlearn_gateway_faults_total") == 0
    assert desk.counted("fedlearn_gateway_store_failures_total") == 0


def test_frames_at_the_handlers(desk: doors.Desk) -> None:
    desk.fleet.terms = fleets.terms(round_size=1)
    fuzzer, outcomes = doors.Fuzzer(desk, seed=66), Counter[str]()
    for _ in range(3_000):  # what is made once is made
        doors.is_answered(desk, *fuzzer.frame())
    before, began = resident(), time.monotonic()
    for number in range(FRAMES):
        outcomes[doors.is_answered(desk, *fuzzer.frame())] += 1
        if number % 20_000 == 0:
            sys.stdout.write(f"{number} frames, {resident()} KiB\n")
            sys.stdout.flush()
    grown = resident() - before
    sys.stdout.write(f"{FRAMES} frames in {time.monotonic() - began:.0f} s: {dict(outcomes)}\n")
    sys.stdout.write(f"{before} KiB before, grown by {grown} KiB\n")
    no_bug(desk)
    assert grown < MOST_GROWTH_KIB
    closed = desk.state.close(fuzzer.collection, desk.clock())
    count, length = (0, 0.0) if closed is None else (closed[0], float(np.linalg.norm(closed[1])) * fleets.GRID)
    assert count <= 1, "one token was used"
    assert length <= count * fleets.CLIP


def test_frames_through_tls(desk: doors.Desk, tmp_path: Path) -> None:
    ensure_certificates(tmp_path / "certs", now_utc())
    certificate = CertificateFiles(tmp_path / "certs" / "server.crt", tmp_path / "certs" / "server.key")
    fuzzer, outcomes, chance = doors.Fuzzer(desk, seed=67), Counter[str](), random.Random(68)
    door = Door(desk.handlers, certificate, "127.0.0.1", 0)
    try:
        with worlds.line(door.port, tmp_path / "certs" / "ca.crt") as line:
            line.ask(doors.Phone(1, desk.clock).check_in())
            before = resident()
            for number in range(THROUGH_TLS):
                method, frame = fuzzer.frame()
                outcomes[answered(line, method, frame)] += 1
                if number % (THROUGH_TLS // NOISES) == 0:
                    noise_at(door.port, chance)
            assert line.ask(doors.Phone(1, desk.clock).check_in()) is not None
            grown = resident() - before
    finally:
        door.close()
    statuses = {outcome for outcome in outcomes if "/" in outcome}
    assert statuses == {"INVALID_ARGUMENT/malformed"}, "no other status of a call"
    sys.stdout.write(f"{dict(outcomes)}, {before} KiB before, grown by {grown} KiB\n")
    no_bug(desk)
    assert grown < MOST_GROWTH_KIB


def answered(line: worlds.Line, method: str, frame: bytes) -> str:
    """Send a frame; return its outcome as ``is_answered`` has it."""
    try:
        reply = doors.REPLIES[method].FromString(line.raw(method, frame))
    except grpc.RpcError as refused:
        return f"{refused.code().name}/{refused.details()}"
    return getattr(reply, "reason", "") or "OK"


def noise_at(port: int, chance: random.Random) -> None:
    """Say something that is no TLS, and hang up."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as link:
        start = chance.choice(
            [b"", b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n"]
        )
        link.sendall(start + chance.randbytes(chance.randint(0, 2000)))
        if chance.random() < 0.3:
            link.shutdown(socket.SHUT_WR)
