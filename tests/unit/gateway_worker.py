"""Gateways in processes of their own, for tests of races and of kill -9: ``python gateway_worker.py MODE WHERE ...``.

``kills WHERE FOLDER WIDTH KILLS SEED``: one worker after another accepts canaries until it is killed. Like a phone, it
keeps what it sends until it is told ACCEPTED, and the next worker sends it again.

``race WHERE FOLDER NAME``: when the parent says so, sends every upload in FOLDER/NAME, and prints the outcomes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import gateway_fleet as fleet

from fedlearn.device.requests import Denial
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_server.gateway.intake import Intake
from fedlearn_server.gateway.state import GatewayState, Upload

THREADS = 3


def uploads_in(path: Path) -> list[Upload]:
    return [Upload(*map(bytes.fromhex, line.split())) for line in path.read_text().splitlines()]


def line_of(upload: Upload) -> bytes:
    return f"{upload.token.hex()} {upload.contribution.hex()}\n".encode()


def race(where: str, folder: Path, name: str) -> None:
    uploads = uploads_in(folder / name)
    state = GatewayState.open(where)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    sys.stdout.write(json.dumps([state.accept([upload], fleet.NOW)[0].outcome for upload in uploads]))
    state.disconnect()


def work(where: str, folder: Path, width: int, started: int) -> None:
    state = GatewayState.open(where)
    phones = fleet.Fleet(state, fleet.terms(target=width, over_selection=1.0), width)
    intake = Intake(state, lambda: fleet.NOW)

    def send(numbers: range) -> None:
        for number in numbers:
            sent, told = folder / f"{number}.sent", folder / f"{number}.told"
            if told.exists():
                continue
            if not sent.exists():
                durably(sent, line_of(phones.upload(number)))
            (upload,) = uploads_in(sent)
            if intake.submit(upload).result().outcome != pb.UploadReply.OUTCOME_ACCEPTED:
                os._exit(4)
            durably(told, b"")
            os.write(started, b"r")

    threads = [threading.Thread(target=send, args=(range(n, width, THREADS),)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def durably(path: Path, data: bytes) -> None:
    partial = path.with_suffix(".part")
    partial.write_bytes(data)
    partial.replace(path)  # a kill keeps what the system has; only a power cut would need more


def kills(where: str, folder: Path, width: int, times: int, seed: int) -> None:
    chance = random.Random(seed)
    for kill in range(times):
        heard, started = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                work(where, folder, width, started)
            finally:
                os._exit(3)
        os.close(started)
        if kill % 4:  # most kills hit a worker that accepts, some one that opens the state
            os.read(heard, 1)
        time.sleep(chance.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.close(heard)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"the worker ended by itself: {status}")


if __name__ == "__main__":
    assert Denial.BUSY  # imported before the fork: kills hit the state, and not an import
    mode, where, folder, *rest = sys.argv[1:]
    if mode == "race":
        race(where, Path(folder), *rest)
    else:
        kills(where, Path(folder), *map(int, rest))
