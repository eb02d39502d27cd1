"""Valid ledger records made by the format's contract alone: own keys, own JSON, nothing of fedlearn."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

DIGEST = "ab" * 32
LEDGER_ID = "0123456789abcdef" * 2
OPERATOR = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
AUTHORITY = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
STRANGER = Ed25519PrivateKey.from_private_bytes(b"\x03" * 32)


def public(key: Ed25519PrivateKey) -> str:
    """The public key in hexadecimal."""
    return key.public_key().public_bytes_raw().hex()


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def poisson(z: float = 2.0, q: float = 0.01) -> dict[str, Any]:
    return {"kind": "poisson_gaussian", "noise_multiplier": z, "sampling_probability": q}


def truncated(z: float = 2.0, q: float = 0.01, population: int = 1000, cap: int = 20) -> dict[str, Any]:
    return {**poisson(z, q), "kind": "truncated_poisson_gaussian", "population": population, "cohort_cap": cap}


def fixed_size(z: float = 2.0, population: int = 1000, cohort: int = 10) -> dict[str, Any]:
    return {"kind": "fixed_size_gaussian", "noise_multiplier": z, "population": population, "cohort": cohort}


def metric(z: float = 4.0) -> dict[str, Any]:
    return {"kind": "metric_release", "noise_multiplier": z}


def toeplitz(*coefficients: float) -> dict[str, Any]:
    return {"kind": "toeplitz", "coefficients": list(coefficients)}


def blt(decay: list[float], scale: list[float]) -> dict[str, Any]:
    return {"kind": "blt", "decay": decay, "scale": scale}


TREE: dict[str, Any] = {"kind": "tree"}
BLT = blt([0.9, 0.5], [0.2, 0.3])


def matrix(
    factorization: dict[str, Any] = BLT, steps: int = 20, b: int = 5, k: int = 3, z: float = 8.0
) -> dict[str, Any]:
    return {
        "kind": "matrix_gaussian",
        "factorization": factorization,
        "steps": steps,
        "min_separation": b,
        "max_participations": k,
        "noise_multiplier": z,
    }


def repeated(event: dict[str, Any], count: int = 10, mean: float = 3.0, shape: float | str = 1.0) -> dict[str, Any]:
    return {"kind": "repeat_and_select", "event": event, "count": count, "mean": mean, "shape": shape}


def scope(**changes: Any) -> dict[str, Any]:
    """A scope of one planned run; ``authority=True`` adds an authority."""
    authority = changes.pop("authority", False)
    return {
        "ledger_id": LEDGER_ID,
        "population": "phones of a test",
        "kind": "simulated",
        "unit": "device",
        "neighboring_relation": "add_or_remove",
        "epsilon": 3.0,
        "delta": 1e-5,
        "gate": "plan",
        "order": None,
        "operator_key": public(OPERATOR),
        "authority_key": public(AUTHORITY) if authority else None,
        **changes,
    }


@dataclass
class Draft:
    """A record that grows entry by entry, whatever is asked for: chained, signed, but not checked."""

    scope: dict[str, Any] = field(default_factory=scope)
    operator: Ed25519PrivateKey = OPERATOR
    authority: Ed25519PrivateKey = AUTHORITY
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.add("opened", scope=self.scope)

    def add(self, kind: str, **fields: Any) -> int:
        """Append an entry and return its number."""
        number = len(self.rows)
        self.add_body(kind, canonical({"sequence": number, "time": 1000.0 + number, **fields}))
        return number

    def add_body(self, kind: str, body: str) -> None:
        """Append an entry with this very body."""
        self.rows.append({"sequence": len(self.rows), "kind": kind, "body": body})
        self.seal(len(self.rows) - 1)

    def seal(self, first: int = 0) -> None:
        """Chain and sign anew from entry ``first`` on."""
        for number in range(first, len(self.rows)):
            row = self.rows[number]
            previous = self.rows[number - 1]["hash"] if number else "0" * 64
            row["hash"] = hashlib.sha256(f"{previous}\n{row['kind']}\n{row['body']}".encode()).hexdigest()
            row["signature"] = self.operator.sign(b"fedlearn ledger entry v2\n" + row["hash"].encode()).hex()

    def change(self, number: int, **fields: Any) -> None:
        """Rewrite fields of an entry and seal the record again, as its operator could."""
        body = {**json.loads(self.rows[number]["body"]), **fields}
        self.rows[number]["body"] = canonical(body)
        self.seal(number)

    def open_run(
        self, *plan: tuple[dict[str, Any], int], run: str = "run", purpose: str = "p", epoch: str = "e"
    ) -> int:
        planned = [{"event": event, "count": count} for event, count in plan]
        return self.add("run_opened", run=run, purpose=purpose, epoch=epoch, plan=planned, config_digest=DIGEST)

    def reserve(self, step: int = 0, *, run: str = "run", part: int = 0, attempt: int = 0) -> int:
        return self.add("reserved", run=run, part=part, step=step, attempt=attempt)

    def charge(self, step: int = 0, *, run: str = "run", part: int = 0, attempt: int = 0) -> int:
        """Reserve and charge."""
        held = self.reserve(step, run=run, part=part, attempt=attempt)
        return self.pay(held, step, run=run, part=part)

    def pay(self, reservation: int, step: int = 0, *, run: str = "run", part: int = 0) -> int:
        digests = {"task_digest": DIGEST, "sum_digest": DIGEST}
        return self.add("charged", reservation=reservation, run=run, part=part, step=step, **digests)

    def commit(self, charge: int, published: str = DIGEST) -> int:
        return self.add("committed", charge=charge, published_digest=published)

    def release(self, step: int = 0, *, run: str = "run", part: int = 0, published: str = DIGEST) -> int:
        """Reserve, charge and commit."""
        return self.commit(self.charge(step, run=run, part=part), published)

    def close(self, rule: str = "completed", *, run: str = "run") -> int:
        return self.add("run_closed", run=run, rule=rule, reason="the plan was carried out")

    def grant(self, epsilon: float, purpose: str = "p", epoch: str = "e") -> int:
        text = {"ledger_id": self.scope["ledger_id"], "sequence": len(self.rows)}
        text |= {"purpose": purpose, "epoch": epoch, "epsilon": epsilon}
        signature = self.authority.sign(b"fedlearn ledger grant v1\n" + canonical(text).encode()).hex()
        return self.add("granted", purpose=purpose, epoch=epoch, epsilon=epsilon, authority_signature=signature)

    def recover(self, reason: str = "disk lost") -> int:
        text = {"ledger_id": self.scope["ledger_id"], "sequence": len(self.rows), "reason": reason}
        signature = self.authority.sign(b"fedlearn ledger recovery v1\n" + canonical(text).encode()).hex()
        return self.add("recovered", reason=reason, authority_signature=signature)

    def export(self) -> bytes:
        """The record as an export."""
        lines = [{"format": "fedlearn-ledger", "version": 2}, *self.rows]
        return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()

    def write(self, path: Path) -> Path:
        path.write_bytes(self.export())
        return path

    def checkpoint(self, length: int | None = None, *, key: Ed25519PrivateKey | None = None) -> dict[str, Any]:
        """A checkpoint of the first ``length`` entries."""
        seen = len(self.rows) if length is None else length
        body = {"ledger_id": self.scope["ledger_id"], "length": seen, "hash": self.rows[seen - 1]["hash"], "time": 5.0}
        signed = (key or self.operator).sign(b"fedlearn ledger checkpoint v1\n" + canonical(body).encode()).hex()
        return {"format": "fedlearn-ledger-checkpoint", "version": 1, **body, "signature": signed}


def training(steps: int = 3, **changes: Any) -> Draft:
    """A record of one run of ``steps`` Poisson releases, complete."""
    draft = Draft(scope(**changes))
    draft.open_run((poisson(), steps))
    for step in range(steps):
        draft.release(step)
    draft.close()
    return draft


def population(steps: int = 4) -> Draft:
    """A record of two matrix-mechanism runs under a zCDP gate, with a renewed grant, a lost charge and a void."""
    draft = Draft(scope(gate="zcdp", neighboring_relation="zero_out", kind="enrolled", epsilon=8.0, authority=True))
    draft.grant(3.0)
    draft.open_run((matrix(z=9.0), 1), (metric(40.0), 2), run="a")
    for step in range(steps):
        draft.release(step, run="a")
    draft.release(0, run="a", part=1)
    lost = draft.charge(steps, run="a")
    draft.commit(draft.charge(steps, run="a", attempt=1))
    del lost
    draft.add("voided", reservation=draft.reserve(steps + 1, run="a"), reason="no reply")
    draft.close("data_independent", run="a")
    draft.grant(5.0)
    draft.open_run((matrix(z=9.0), 1), run="b")
    draft.release(0, run="b")
    return draft
