"""Bundles and statuses: what is not signed as it must be changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from fedlearn.proto import device_pb2 as pb
from fedlearn_client.conformance.cases import Case, require
from fedlearn_client.conformance.keys import fresh_key
from fedlearn_client.conformance.papers import Papers
from fedlearn_client.conformance.phone import Phone
from fedlearn_client.conformance.town import DAY_S, RECOMMEND

_BAD_BUNDLES: tuple[tuple[str, str, Callable[[Papers], bytes]], ...] = (
    ("unsigned", "a bundle that nobody signed", Papers.unsigned_bundle),
    ("once_signed", "a bundle that one of two needed approvers signed",
     lambda papers: papers.task_bundle(signers=papers.approvers[:1])),
    ("stranger", "a bundle signed by keys that are not on the roster",
     lambda papers: papers.task_bundle(signers=[fresh_key(), fresh_key()])),
    ("other_root", "a bundle whose roster another root signed", lambda papers: papers.task_bundle(root=fresh_key())),
    ("tampered", "a bundle with one bit of its weights turned", Papers.tampered_bundle),
    ("cut", "a bundle that ends too soon", lambda papers: papers.task_bundle()[:-1]),
    ("expired", "a bundle that has expired", lambda papers: papers.task_bundle(days=-1.0)),
    ("nothing", "an empty bundle", lambda _: b""),
)  # fmt: skip


def first(phone: Phone) -> Iterator[Case]:
    """Yield what is asked before anything good was installed."""
    for name, what, make in _BAD_BUNDLES:
        yield Case(f"install.{name}", f"Refuses {what}; nothing is installed.", _refuses(phone, what, make))
    yield Case(
        "install.accepted", "Takes the bundle, catalogue and status that are signed as they must be.",
        lambda: _accepted(phone),
    )  # fmt: skip


def last(phone: Phone) -> Iterator[Case]:
    """Yield what is asked of a target with everything installed."""
    for name, what, make in _BAD_BUNDLES:
        yield Case(f"replace.{name}", f"Refuses {what}; the one installed stays.", _refuses(phone, what, make, True))
    yield Case("catalogue.stranger", "Refuses a catalogue that no approver signed.", lambda: _strange_catalogue(phone))
    yield Case("catalogue.expired", "Refuses a catalogue that has expired.", lambda: _old_catalogue(phone))
    yield Case("status.lower", "Refuses a status of a lower version than one seen before.", lambda: _lower(phone))
    yield Case("status.stale", "Refuses a status that is older than 24 hours.", lambda: _stale(phone))
    yield Case("status.future", "Refuses a status from tomorrow.", lambda: _future(phone))
    yield Case("status.stranger", "Refuses a status that no status key signed.", lambda: _strange_status(phone))
    yield Case("status.approver", "Refuses a status that an approver signed.", lambda: _approvers_status(phone))
    yield Case("status.stopped", "What a status stops ranks no more, until a later one lifts it.",
               lambda: _stopped(phone))  # fmt: skip


def _refuses(phone: Phone, what: str, make: Callable[[Papers], bytes], installed: bool = False) -> Callable[[], None]:
    def check() -> None:
        papers = phone.documents
        if installed:
            phone.ready()
            # a good one would be newer than the one installed
            papers = replace(papers, now=papers.now + 1)
        before = _standing(phone)
        phone.refused("system", "Runtime/Install", pb.InstallRequest(task_bundle=make(papers)), what)
        after = _standing(phone)
        require(after == before, "nothing changed by it", "other bundles or another catalogue in Status")

    return check


def _standing(phone: Phone) -> tuple[object, ...]:
    status = phone.ask("system", "Runtime/Status")
    return tuple(one.digest for one in status.bundles), status.catalogue, status.status_version


def _accepted(phone: Phone) -> None:
    phone.install()
    status = phone.ask("system", "Runtime/Status")
    require(len(status.bundles) == 1, "one bundle in Status", str(len(status.bundles)))
    require(bool(status.catalogue), "a catalogue in Status", "none")
    require(status.status_fresh, "a fresh status", "status_fresh is false")
    require(not status.paused, "not paused", "paused")


def _strange_catalogue(phone: Phone) -> None:
    phone.ready()
    later = replace(phone.documents, now=phone.documents.now + 1)
    request = pb.InstallRequest(catalogue_bundle=later.catalogue_bundle(signers=[fresh_key()]))
    phone.refused("system", "Runtime/Install", request, "a catalogue signed by a stranger")


def _old_catalogue(phone: Phone) -> None:
    phone.ready()
    later = replace(phone.documents, now=phone.documents.now + 1)
    request = pb.InstallRequest(catalogue_bundle=later.catalogue_bundle(days=-1.0))
    phone.refused("system", "Runtime/Install", request, "an expired catalogue")


def _status_refused(phone: Phone, envelope: bytes, what: str) -> None:
    before = _standing(phone)
    phone.refused("system", "Runtime/UpdateStatus", pb.UpdateStatusRequest(envelope=envelope), what)
    require(_standing(phone) == before, "the status that was there", "another one in Status")


def _lower(phone: Phone) -> None:
    phone.ready()
    low, high = phone.next_status(), phone.next_status()
    phone.ask("system", "Runtime/UpdateStatus", pb.UpdateStatusRequest(envelope=phone.documents.status(high)))
    _status_refused(phone, phone.documents.status(low), "a lower status")


def _stale(phone: Phone) -> None:
    phone.ready()
    _status_refused(phone, phone.documents.status(phone.next_status(), age_s=DAY_S + 600), "a stale status")


def _future(phone: Phone) -> None:
    phone.ready()
    _status_refused(phone, phone.documents.status(phone.next_status(), age_s=-DAY_S), "a status from the future")


def _strange_status(phone: Phone) -> None:
    phone.ready()
    _status_refused(phone, phone.documents.status(phone.next_status(), signer=fresh_key()), "a stranger's status")


def _approvers_status(phone: Phone) -> None:
    phone.ready()
    by_approver = phone.documents.status(phone.next_status(), signer=phone.documents.approvers[0])
    _status_refused(phone, by_approver, "an approver's status")


def _stopped(phone: Phone) -> None:
    phone.ready()
    digest = phone.ask("system", "Runtime/Status").bundles[0].digest
    before = phone.ranking("surface")
    stopping = phone.documents.status(phone.next_status(), stopped=[digest])
    phone.ask("system", "Runtime/UpdateStatus", pb.UpdateStatusRequest(envelope=stopping))
    try:
        phone.refused("surface", "Recommend/Get", pb.GetRequest(purpose=RECOMMEND), "a ranking by a stopped bundle")
    finally:
        lifting = phone.documents.status(phone.next_status())
        phone.ask("system", "Runtime/UpdateStatus", pb.UpdateStatusRequest(envelope=lifting))
    require(phone.ranking("surface") == before, "the ranking from before once it is lifted", "another one")
