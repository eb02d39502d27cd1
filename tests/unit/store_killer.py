"""A phone that pushes, takes back and grants anew until it is killed, and the questions to ask of what it left.

Run as a program it says on stdout what it was told is durable: ``ack G N`` (rows up to N of generation G are kept),
``back G`` (it begins to take generation G back) and ``done G`` (it was told that G is destroyed).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

_spec = importlib.util.spec_from_file_location("store_world", Path(__file__).with_name("store_world.py"))
world = importlib.util.module_from_spec(_spec)
sys.modules.setdefault("store_world", world)
_spec.loader.exec_module(world)

USE = ("chat", world.CHAT, "train", "operator")
ROWS = 7


def body_of(generation: int, number: int) -> bytes:
    """The body of a row, long enough that rows fill pages."""
    return f"generation {generation} row {number} ".encode() * 12


def say(*words: object) -> None:
    """Write one line at once."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def live(directory: Path, pushes: int) -> None:
    """Never ends."""
    phone = world.open_phone(directory)
    phone.withdrawals.finish_pending()
    phone.stream("chat")
    generation = int(phone.facts.get("test_generation") or b"0")
    while True:
        generation += 1
        phone.facts.set("test_generation", str(generation).encode())
        phone.grant(*USE)
        for push in range(pushes):
            start = push * ROWS
            rows = [(f"{generation}-{start + n}", world.NOW - 1, body_of(generation, start + n)) for n in range(ROWS)]
            phone.push("chat", rows)
            say("ack", generation, start + ROWS)
        phone.upload("train", "operator", body_of(generation, 0))
        say("back", generation)
        phone.withdrawals.withdraw(*USE)
        say("done", generation)


@dataclass
class Killed:
    """One directory that is lived in and killed again and again."""

    directory: Path
    chance: random.Random
    pushes: int
    destroyed: int = 0
    lives: int = 0
    named: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)

    def kill(self) -> None:
        """Let it live for a while, kill it, and look."""
        process = subprocess.Popen(
            [sys.executable, __file__, str(self.directory), str(self.pushes)], stdout=subprocess.PIPE, text=True
        )
        said: list[str] = []
        wanted = self.chance.randrange(1, min(3 * self.pushes, 25))
        for line in process.stdout:
            said.append(line.strip())
            # half of them while something is being destroyed
            if len(said) >= wanted and (said[-1].startswith("back") or self.chance.random() < 0.3):
                break
        time.sleep(self.chance.uniform(0.0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        said += [line.strip() for line in process.stdout.read().splitlines()]
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        self.check(said)

    def check(self, said: list[str]) -> None:
        """No acknowledged row is lost, none that was taken back is there, and every destruction has its receipt."""
        words = [line.split() for line in said]
        backs = [int(word[1]) for word in words if word[0] == "back"]
        dones = [int(word[1]) for word in words if word[0] == "done"]
        acks = [(int(word[1]), int(word[2])) for word in words if word[0] == "ack"]
        phone = world.open_phone(self.directory)
        try:
            begun = phone.database.rows("SELECT count(*) FROM withdrawals WHERE finished IS NULL")[0][0]
            early = phone.read("chat")
            receipts = phone.withdrawals.finish_pending()
            assert len(receipts) == begun <= 1
            assert early == phone.read("chat"), "rows that were taken back could be read until the rest was done"
            here = set(early)
            granted = phone.consent.has_any("train", "operator")
            current = max((generation for generation, _ in acks), default=0)
            may_be_back = bool(backs) and (not acks or backs[-1] >= current)
            self.log.append(f"{said[-1:]} begun {begun}, {len(here)} rows, granted {granted}")
            if not granted:
                assert not here, "resurrected"
                assert not acks or may_be_back, "a grant was lost"
            elif acks and current not in dones:
                generation, count = acks[-1]
                assert {body_of(generation, n) for n in range(count)} <= here, "an acknowledged row is lost"
            # a withdrawal takes what earlier lives left, too
            self.destroyed = max([self.destroyed, *dones])
            assert all(int(body.split()[1]) > self.destroyed for body in here), "resurrected"
            self._check_rest(phone, granted, here)
        finally:
            phone.close()

    def _check_rest(self, phone: world.Phone, granted: bool, here: set[bytes]) -> None:
        rows, notes, receipts = (
            phone.database.rows(f"SELECT count(*) FROM {table}")[0][0]
            for table in ("signals", "withdrawals", "receipts")
        )
        assert rows == len(here)
        assert notes == receipts
        states = {entry.state.value for entry in phone.egress.entries(1_000, True) if not granted}
        assert states <= {"destroyed"}, "an upload of a use that was taken back could still leave"
        keys = [path for path in (self.directory / "keys").iterdir() if path.name.startswith("key-")]
        # of the store, of the present stream, of uploads for the present pair; and a life that ends between the key of
        # a pair and the row that names it leaves a key of nothing
        self.lives += 1
        assert len(keys) <= 3 + self.lives, "keys of destroyed streams are left"
        named = {
            f"key-{hashlib.sha256(alias.encode()).hexdigest()[:32]}"
            for table in ("streams", "egress_keys")
            for (alias,) in phone.database.rows(f"SELECT key_alias FROM {table}")
        }
        left = {path.name for path in keys} & (self.named - named)
        assert not left, "keys of destroyed streams are left"
        self.named |= named


if __name__ == "__main__":
    live(Path(sys.argv[1]), int(sys.argv[2]))
