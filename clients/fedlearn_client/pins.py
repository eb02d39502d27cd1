"""The operator's ledgers as this phone saw them last: none may become shorter, or another, without its noticing.

With each task comes a checkpoint of the ledger that the spend is written to: its length and the hash of its newest
entry, signed by the operator. The phone keeps the longest one of each recipient and population, and takes part in
nothing on top of a shorter one, of another one of the same length, of another ledger, or of none at all. So an operator
who cuts off what was spent loses the phones that saw it.

What it cannot see: a ledger that is longer *and* another (a phone knows hashes, not entries), or an operator who always
hands out the same old checkpoint. Two phones' pins, or a pin and the ledger itself, show both to a reviewer.

The pins are facts of the store, and lie in the KeyStore's anchor too, which a wiped store does not take back: there
without the signature, so after a wipe the rule still holds, but only the new checkpoint is evidence.
"""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

from fedlearn.device.ledger_head import MOST_BYTES, LedgerHead, open_ledger_head
from fedlearn.errors import Refusal, StoreFailed, TaskRefused
from fedlearn.policy.canonical import canonical_bytes, sha256_hex
from fedlearn_client.hooks import AuditSink
from fedlearn_client.shared_anchor import Anchor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedlearn.device.bundle import Bundle
    from fedlearn_client.store.facts import Facts

MOST_ANCHORED: Final = 8
"""Pins in the anchor, the newest; a policy has one population, and few operators."""

_PINS: Final = "ledger_pins"
_CONFLICT: Final = "ledger_conflict:"
_NAME_DIGITS: Final = 32
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Pin:
    """What was seen last of one recipient's ledger for one population.

    Args:
        ledger_id, length, hash, time: as ``LedgerHead``.
        policy_version: in force then. Under a later one, which approvers signed, a new ledger may begin.
    """

    ledger_id: str
    length: int
    hash: str
    time: float
    policy_version: int


class LedgerPins:
    """Pins, durable. Safe to use from several threads.

    Args:
        facts: of the store.
        anchor: the KeyStore's part for them.
        audit: is told of each refusal, with both checkpoints.

    Raises:
        StoreFailed: store or KeyStore cannot be read.
    """

    def __init__(self, facts: Facts, anchor: Anchor, audit: AuditSink) -> None:
        self._facts = facts
        self._anchor = anchor
        self._audit = audit
        self._lock = threading.Lock()
        kept, held = facts.get(_PINS), anchor.read_anchor()
        stored, anchored = _read(kept), _read(held)
        self._pins = _merged(stored, anchored)
        self._anchored = anchored
        if anchored and kept is None:
            audit.record("ledger_pins_restored", {"pins": len(anchored)})
        for data, read, where in ((kept, stored, "store"), (held, anchored, "keystore")):
            if data is not None and not read:
                audit.record("ledger_pins_damaged", {"where": where, "left": len(self._pins)})

    def require(self, checkpoint: bytes, bundle: Bundle) -> None:
        """Check the checkpoint that came with a task, and pin it, durably, before anything is trained.

        Args:
            checkpoint: as the gateway handed it out; b"" where it handed out none, which is right until the first one.
            bundle: names recipient, population, policy and the operator's key.

        Raises:
            TaskRefused: LEDGER: not the operator's, shorter than the pinned one, another one of the same length, of
                another ledger under the same policy, or none where there was one. Both are kept, and logged.
            StoreFailed: the pin could not be written.
        """
        name = _name(bundle)
        with self._lock:
            pinned = self._pins.get(name)
            if not checkpoint and pinned is None:
                return
            try:
                head = _opened(checkpoint, bundle)
                _compare(pinned, head, bundle)
            except TaskRefused as refused:
                self._keep_conflict(name, pinned, checkpoint, str(refused))
                raise
            version = bundle.verified.policy.version
            pin = Pin(head.ledger_id, head.length, head.hash, head.time, version)
            if pinned is None or replace(pin, time=pinned.time) != pinned:
                self._write(name, pin, checkpoint)
            self._seal()
            if pinned is None:
                self._audit.record("ledger_pinned", {"ledger": head.ledger_id, "length": head.length, "first": True})

    def notice(self, checkpoint: bytes, bundle: Bundle) -> None:
        """Take in the checkpoint of an acknowledgement: pinned if it may be, else kept and logged; refuses nothing."""
        if not checkpoint:
            return
        try:
            self.require(checkpoint, bundle)
        except (TaskRefused, StoreFailed) as error:
            self._audit.record("ledger_not_pinned", {"code": error.code})

    def conflict(self, bundle: Bundle) -> dict[str, Any] | None:
        """Return the first refusal that was kept for the bundle's recipient and population: for an audit."""
        kept = self._facts.get(_CONFLICT + _name(bundle))
        found: dict[str, Any] | None = None if kept is None else json.loads(kept)
        return found

    def _write(self, name: str, pin: Pin, checkpoint: bytes) -> None:
        pins = {**self._pins, name: pin}
        body = json.loads(_to_json(pins))
        body["checkpoints"] = {**self._texts(), name: checkpoint.decode("utf-8")}
        self._facts.set(_PINS, canonical_bytes(body))
        self._pins = pins

    def _texts(self) -> dict[str, str]:
        """Return the signed checkpoints that were pinned: evidence, which the anchor has no room for."""
        try:
            texts = json.loads(self._facts.get(_PINS) or b"{}").get("checkpoints", {})
        except (ValueError, AttributeError):
            return {}
        return texts if isinstance(texts, dict) else {}

    def _seal(self) -> None:
        """Write the anchor if it is behind."""
        newest = sorted(self._pins, key=lambda name: (self._pins[name].time, name), reverse=True)[:MOST_ANCHORED]
        wanted = {name: self._pins[name] for name in newest}
        if wanted != self._anchored:
            self._anchor.write_anchor(_to_json(wanted))
            self._anchored = wanted

    def _keep_conflict(self, name: str, pinned: Pin | None, checkpoint: bytes, why: str) -> None:
        offered = checkpoint[: 2 * MOST_BYTES].decode("utf-8", errors="backslashreplace")
        known = self._texts().get(name) or _plain(pinned)
        seen: dict[str, str | int | float | bool] = {"why": why, "offered": offered, "pinned": known}
        if self._facts.get(_CONFLICT + name) is None:  # the first one: later ones are of the same quarrel
            self._facts.set(_CONFLICT + name, canonical_bytes(seen))
        self._audit.record("ledger_refused", seen)


def _opened(checkpoint: bytes, bundle: Bundle) -> LedgerHead:
    if not checkpoint:
        _refuse("none came, where there was one before")
    recipient = bundle.plan.recipient
    key = next((one.task_key for one in bundle.verified.policy.recipients if one.id == recipient), "")
    return open_ledger_head(checkpoint, key)


def _compare(pinned: Pin | None, head: LedgerHead, bundle: Bundle) -> None:
    if pinned is None:
        return
    if head.ledger_id != pinned.ledger_id:
        if bundle.verified.policy.version <= pinned.policy_version:
            _refuse("of another ledger than before, under the same policy")
        return
    if head.length < pinned.length:
        _refuse(f"{head.length} entries, where {pinned.length} were seen: some were cut off")
    if head.length == pinned.length and head.hash != pinned.hash:
        _refuse(f"another ledger of {head.length} entries than the one that was seen")


def _refuse(what: str) -> NoReturn:
    raise TaskRefused(Refusal.LEDGER, f"ledger_checkpoint: {what}; ask the operator for the ledger.")


def _name(bundle: Bundle) -> str:
    return sha256_hex(canonical_bytes([bundle.plan.recipient, bundle.plan.population]))[:_NAME_DIGITS]


def _merged(stored: Mapping[str, Pin], anchored: Mapping[str, Pin]) -> dict[str, Pin]:
    """Return of each the one that says more: a later policy's, else the longer one; the anchor's where they tie."""
    merged = dict(stored)
    for name, pin in anchored.items():
        other = merged.get(name, pin)
        if (pin.policy_version, pin.length) >= (other.policy_version, other.length):
            merged[name] = pin
    return merged


def _to_json(pins: Mapping[str, Pin]) -> bytes:
    plain = {name: list(asdict(pin).values()) for name, pin in pins.items()}
    return canonical_bytes({"version": _VERSION, "pins": plain})


def _read(data: bytes | None) -> dict[str, Pin]:
    """Read pins back; none where they are damaged.

    Raises:
        StoreFailed: a newer runtime wrote them: an older one must not go on from less than it knows.
    """
    if data is None:
        return {}
    try:
        body = json.loads(data)
        if body["version"] > _VERSION:
            raise StoreFailed("ledger_pins: written by a newer version of the runtime; update it.")
        return {name: _pin(*values) for name, values in body["pins"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _pin(ledger_id: Any, length: Any, head: Any, time: Any, policy_version: Any) -> Pin:
    kinds = ((ledger_id, str), (length, int), (head, str), (time, float), (policy_version, int))
    if any(type(value) is not kind for value, kind in kinds):
        raise TypeError("pin")
    return Pin(ledger_id, length, head, time, policy_version)


def _plain(pin: Pin | None) -> str:
    return "" if pin is None else canonical_bytes(asdict(pin)).decode("ascii")
