"""Taking back: derived data is gone, a signed receipt says so, and rankings are what they were before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedlearn.policy.canonical import canonical_bytes
from fedlearn.proto import device_pb2 as pb
from fedlearn_client.conformance.cases import Case, differs, require
from fedlearn_client.conformance.phone import STREAMS, TEXT_VERSION, Phone, other, same
from fedlearn_client.conformance.town import CHAT, OTHER, RECOMMEND, SURFACE

CONTEXT: Final = b"fedlearn.receipt.v1\x00"
_SURFACE: Final = (CHAT, RECOMMEND, SURFACE)
_OTHER: Final = (CHAT, RECOMMEND, OTHER)
_STREAM: Final = STREAMS["chat"][0]


def cases(phone: Phone) -> Iterator[Case]:
    """Yield every case."""
    yield Case("withdraw.receipt", "A withdrawal's receipt carries a good Ed25519 signature over its statement.",
               lambda: _receipt(phone))  # fmt: skip
    yield Case("withdraw.statement", "The statement names the use, and how many rows were destroyed.",
               lambda: _statement(phone))  # fmt: skip
    yield Case("withdraw.listed", "The receipt is listed for the settings screen, by the same key.",
               lambda: _listed(phone))  # fmt: skip
    yield Case("withdraw.ranking", "After a withdrawal the ranking is the one from before the grant.",
               lambda: _ranking(phone))  # fmt: skip
    yield Case("withdraw.regrant", "Granting again starts empty.", lambda: _regrant(phone))
    yield Case("withdraw.others_stay", "Another recipient's grant and its ranking stay.", lambda: _others_stay(phone))
    yield Case("purge.receipt", "A purge by the app has a receipt with a good signature, for the owner alone.",
               lambda: _purged(phone))  # fmt: skip
    yield Case("purge.silent", "The reply to a purge is the same whether or not anything was kept.",
               lambda: _purge_silent(phone))  # fmt: skip
    yield Case("purge.ranking", "After it rankings are without the stream; the grant stays, and new signals count.",
               lambda: _purge_ranking(phone))  # fmt: skip


def _granted(phone: Phone) -> bytes:
    """Grant, push, and return the ranking from before."""
    phone.ready()
    plain = phone.ranking("surface")
    phone.set(_SURFACE)
    phone.push("chat", [phone.said()])
    other(phone.ranking("surface"), plain, "a personal ranking to take back")
    return plain


def verified(receipt: pb.Receipt) -> dict[str, Any]:
    """Return the statement of a receipt whose signature is good; raise Differs otherwise."""
    require(len(receipt.public_key) == 32, "a public key of 32 bytes", f"{len(receipt.public_key)} bytes")
    try:
        key = Ed25519PublicKey.from_public_bytes(receipt.public_key)
        key.verify(receipt.signature, CONTEXT + receipt.statement)
    except (InvalidSignature, ValueError):
        differs("an Ed25519 signature over the context and the statement", "one that does not fit")
    statement = json.loads(receipt.statement)
    canonical = isinstance(statement, dict) and canonical_bytes(statement) == receipt.statement
    require(canonical, "a statement in canonical JSON", "another spelling")
    return dict(statement)


def _withdrawn(phone: Phone) -> pb.Receipt:
    reply = phone.set(_SURFACE, on=False)
    require(reply.HasField("receipt"), "a receipt", "none")
    return reply.receipt


def _receipt(phone: Phone) -> None:
    _granted(phone)
    verified(_withdrawn(phone))


def _statement(phone: Phone) -> None:
    _granted(phone)
    statement = json.loads(_withdrawn(phone).statement)
    expected = {
        "kind": "withdrawn",
        "app": CHAT,
        "data_type": "message_content",
        "purpose": RECOMMEND,
        "recipient": SURFACE,
        "text_version": TEXT_VERSION,
        "rows_destroyed": 1,
    }
    for name, value in expected.items():
        require(statement.get(name) == value, f"{name}: {value}", f"{name}: {statement.get(name)}")


def _listed(phone: Phone) -> None:
    _granted(phone)
    receipt = _withdrawn(phone)
    listed = phone.ask("settings", "Audit/Receipts").receipts
    require(bool(listed) and listed[0] == receipt, "the newest receipt in Audit.Receipts", "another one, or none")
    keys = {one.public_key for one in listed}
    require(len(keys) == 1, "one key of the phone in every receipt", f"{len(keys)}")


def _ranking(phone: Phone) -> None:
    plain = _granted(phone)
    phone.set(_SURFACE, on=False)
    same(phone.ranking("surface"), plain, "the ranking from before the grant")
    require(not phone.full_ranking("surface").used, "nothing used", "used is filled")
    require(phone.kept() == 0, "no signal kept", f"{phone.kept()}")


def _regrant(phone: Phone) -> None:
    plain = _granted(phone)
    phone.set(_SURFACE, on=False)
    phone.set(_SURFACE)
    same(phone.ranking("surface"), plain, "the ranking without personal data, until something new is pushed")


def _others_stay(phone: Phone) -> None:
    phone.ready()
    plain = phone.ranking("surface")
    phone.set(_SURFACE)
    phone.set(_OTHER)
    phone.push("chat", [phone.said()])
    theirs = phone.ranking("other")
    phone.set(_SURFACE, on=False)
    same(phone.ranking("surface"), plain, "for the surface the ranking from before")
    same(phone.ranking("other"), theirs, "for the other app, whose grant stands, the ranking it had")


def _purge(phone: Phone) -> bytes:
    """Purge as the app, and return the whole reply."""
    reply = phone.ask("chat", "Signals/Purge", pb.PurgeRequest(stream=_STREAM))
    return bytes(reply.SerializeToString())


def _purge_silent(phone: Phone) -> None:
    phone.ready()
    phone.push("chat", [phone.said()])
    unwanted = _purge(phone)
    phone.set(_SURFACE)
    phone.push("chat", [phone.said()])
    kept = _purge(phone)
    require(kept == unwanted == b"", "an empty reply both times", f"{len(unwanted)} and {len(kept)} bytes")


def _purged(phone: Phone) -> None:
    _granted(phone)
    _purge(phone)
    listed = phone.ask("settings", "Audit/Receipts").receipts
    require(bool(listed), "a receipt in Audit.Receipts", "none")
    statement = verified(listed[0])
    for name, value in {"kind": "purged", "app": CHAT, "rows_destroyed": 1}.items():
        require(statement.get(name) == value, f"{name}: {value}", f"{name}: {statement.get(name)}")


def _purge_ranking(phone: Phone) -> None:
    plain = _granted(phone)
    _purge(phone)
    same(phone.ranking("surface"), plain, "the ranking from before the push")
    on = [one.app for one in phone.switches() if one.on]
    require(on == [CHAT], "the grant still on", f"on: {', '.join(on) or 'none'}")
    phone.push("chat", [phone.said()])
    other(phone.ranking("surface"), plain, "a personal ranking from what is pushed now")
