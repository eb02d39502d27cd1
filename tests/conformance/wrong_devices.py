"""Devices for tests of the kit: the real daemon in this process, one socket a caller; and the same with one fault each.

Worker and catalogue check run in this process too, so that starting them costs nothing; a fault is a patch of the real
code.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fedlearn.device import bundle, manifest
from fedlearn.device.catalogue_bundle import open_catalogue_bundle
from fedlearn.errors import CallerRefused
from fedlearn.features import text
from fedlearn.policy import status
from fedlearn.policy.document import DataType
from fedlearn.proto import conformance_pb2 as cases
from fedlearn.proto import device_pb2, worker_pb2
from fedlearn.types import ClippedDelta
from fedlearn_client import daemon, guard, installed, participation, participation_rows, recommend, scheduler, workers
from fedlearn_client.anchor import NO_STEP
from fedlearn_client.catalogue_check import Checked
from fedlearn_client.conformance import town
from fedlearn_client.conformance.callers import Callers, Entry
from fedlearn_client.conformance.judge import judge
from fedlearn_client.conformance.keys import make_keys
from fedlearn_client.conformance.numbers import METHOD
from fedlearn_client.consent import Consent
from fedlearn_client.examples import StoredExamples
from fedlearn_client.fakes import FIT, FakeAttestation, FakeAuditSink, FakeConditions, FakeKeyStore
from fedlearn_client.grants import Age, Owner
from fedlearn_client.hooks import Caller, Role
from fedlearn_client.linux.callers import SocketCallers
from fedlearn_client.linux.clock import LinuxClock
from fedlearn_client.services import door, signals
from fedlearn_client.services.wire import receipt_message
from fedlearn_client.settings import Settings
from fedlearn_client.store.signals import SignalStore
from fedlearn_client.store.streams import Destroyed, Streams
from fedlearn_client.transport import NoTransport
from fedlearn_client.worker import layers, numerics, serve

Patch = pytest.MonkeyPatch


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that a device does wrong.

    Args:
        name: of the device.
        break_it: patches the real code.
        fails: parts or cases of the kit that must find it.
        may_fail: further ones that it cannot help to fail.
        asked: parts to ask; among them some that it must pass.
    """

    name: str
    break_it: Callable[[Patch], None]
    fails: tuple[str, ...]
    may_fail: tuple[str, ...]
    asked: tuple[str, ...]


# --- numbers ----------------------------------------------------------------------------------------------------------


def _longer_grams(patch: Patch) -> None:
    patch.setattr(text, "GRAMS", (2, 4))


def _no_clip(patch: Patch) -> None:
    def unclipped(values: Any, bound: float) -> ClippedDelta:
        return replace(real(np.where(np.isfinite(values), 0.0, values), bound), values=np.array(values, np.float64))

    real = numerics.clip_l2
    patch.setattr(numerics, "clip_l2", unclipped)


def _nearest(patch: Patch) -> None:
    patch.setattr(numerics, "to_grid", lambda values, step: np.rint(values / step).astype(np.int64))


def _nan_passes(patch: Patch) -> None:
    real = numerics.clip_l2
    patch.setattr(numerics, "clip_l2", lambda values, bound: real(np.nan_to_num(values), bound))


def _ties_backwards(patch: Patch) -> None:
    patch.setattr(numerics, "order_of", lambda scores: np.lexsort((-np.arange(len(scores)), -scores)).tolist())


def _no_mask(patch: Patch) -> None:
    from fedlearn_client.worker import train

    def fill(graph: Any, columns: Any, rows: Any) -> None:
        real(graph, columns, rows)
        graph.mask[...] = True

    real = train._fill
    patch.setattr(train, "_fill", fill)


def _incoming_read(patch: Patch) -> None:
    from fedlearn.proto import device_pb2

    class Both(int):
        def __eq__(self, _: object) -> bool:
            return True

        __hash__ = int.__hash__

    fake = type("pb", (), {"DIRECTION_OUTGOING": Both(device_pb2.DIRECTION_OUTGOING)})
    patch.setattr(numerics, "device_pb2", fake)


def _history_forgotten(patch: Patch) -> None:
    """A run that is met late is taken for one that begins."""
    real = participation.first_sight
    nothing = participation_rows.Figures(NO_STEP, 0, 0.0)
    patch.setattr(participation, "first_sight", lambda *given: None if real(*given) is None else nothing)


def _status_forgotten(patch: Patch) -> None:
    patch.setattr(guard, "require_live", lambda *_: None)


ALL_NUMBERS = ("query", "rows", "update", "contribute", "rank", "guard")
WRONG_NUMBERS = (
    Fault(
        "another_n_gram_length", _longer_grams, ("query.chinese", "query.long"), ("query", "rows", "rank"), ALL_NUMBERS
    ),
    Fault("missing_clip", _no_clip, ("contribute.above", "contribute.just_above"), ("contribute",), ALL_NUMBERS),
    Fault("grid_to_the_nearest", _nearest, ("contribute.toward_zero",), ("contribute",), ("contribute", "update")),
    Fault("nan_taken_for_zero", _nan_passes, ("contribute.nan",), ("contribute",), ("contribute", "update")),
    Fault("ties_backwards", _ties_backwards, ("rank.ties", "rank.all_equal"), ("rank",), ("rank", "query")),
    Fault("padding_counts", _no_mask, ("update.padding", "update.epochs"), ("update",), ("update", "contribute")),
    Fault("incoming_read", _incoming_read, ("query.incoming",), (), ("query", "update")),
    Fault("status_forgotten", _status_forgotten, ("guard.a_stale_status", "guard.no_status"), ("guard",), ("guard",)),
    Fault(
        "history_forgotten",
        _history_forgotten,
        ("guard.a_run_met_late", "guard.after_a_wiped_store"),
        ("guard",),
        ("guard",),
    ),
)


@contextlib.contextmanager
def numbers(break_it: Callable[[Patch], None] | None = None) -> Iterator[str]:
    """The address of a server of numbers in this process."""
    with contextlib.ExitStack() as life:
        patch = life.enter_context(Patch.context())
        if break_it is not None:
            break_it(patch)
        folder = life.enter_context(tempfile.TemporaryDirectory(prefix="kit-"))
        address = f"unix:{folder}/n"
        server = grpc.server(ThreadPoolExecutor(1))
        server.add_generic_rpc_handlers((_Numbers(),))
        server.add_insecure_port(address)
        server.start()
        life.callback(lambda: server.stop(None).wait())
        yield address


class _Numbers(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        self._numerics = numerics.Numerics()

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer) if details.method == METHOD else None

    def _answer(self, data: bytes, context: Any) -> bytes:
        case = cases.Case.FromString(data)
        if case.WhichOneof("body") == "verdict":
            return cases.Reply(verdict=judge(case.verdict.situation)).SerializeToString()
        return self._numerics.answer(data)


# --- behaviour --------------------------------------------------------------------------------------------------------


def _consent_ignored(patch: Patch) -> None:
    patch.setattr(Consent, "effective", lambda self, purpose, recipient: self._streams.all())
    patch.setattr(Consent, "wanted", lambda self, app, data_type: True)
    patch.setattr(Consent, "admits", lambda self, stream: True)


def _ranking_leaked(patch: Patch) -> None:
    for name in ("present", "sources"):
        real = getattr(StoredExamples, name)
        patch.setattr(StoredExamples, name, lambda self, purpose, _, real=real: real(self, purpose, town.SURFACE))


def _receipts_unsigned(patch: Patch) -> None:
    patch.setattr(FakeKeyStore, "sign", lambda self, message: bytes(64))


def _signatures_unchecked(patch: Patch) -> None:
    def unchecked(files: Any, kind: str, schema: str, approvers: Any, threshold: int) -> Any:
        covered = dict(files)
        envelope = covered.pop(manifest.MANIFEST_FILE)
        _, payload = manifest.unverified_payload(envelope)
        return manifest._read(payload, schema, covered), covered

    patch.setattr(bundle, "require_manifest", unchecked)


def _one_signature_enough(patch: Patch) -> None:
    real = bundle.require_manifest
    patch.setattr(bundle, "require_manifest", lambda *given: real(*given[:4], 1))


def _used_told_to_all(patch: Patch) -> None:
    def told(self: Any, caller: Any, *rest: Any) -> Any:
        return real(self, replace(caller, role=Role.SURFACE), *rest)

    real = recommend.Recommender.get
    patch.setattr(recommend.Recommender, "get", told)


def _off_switch_ignored(patch: Patch) -> None:
    real = Consent.owner
    patch.setattr(Consent, "owner", lambda self: Owner(real(self).age, False))
    patch.setattr(Consent, "_read", _without_off(Consent._read))


def _without_off(real: Callable[..., Any]) -> Callable[..., Any]:
    def read(self: Any, policy: Any) -> Any:
        standing = real(self, policy)
        return replace(standing, owner=Owner(standing.owner.age, False))

    return read


def _streams_of_all(patch: Patch) -> None:
    """An app reaches the streams of others."""
    patch.setattr(Streams, "of_app", lambda self, app: self.all())


def _signals_unchecked(patch: Patch) -> None:
    patch.setattr(signals, "check_signals", lambda *_: None)


def _duplicates_kept(patch: Patch) -> None:
    real = SignalStore.add
    patch.setattr(
        SignalStore,
        "add",
        lambda self, stream, rows: real(self, stream, [replace(row, id=os.urandom(8).hex()) for row in rows]),
    )


def _push_tells(patch: Patch) -> None:
    def push(self: Any, caller: Any, request: Any) -> Any:
        reply = real(self, caller, request)
        wanted = self.intake.consent.wanted(caller.app, DataType.MESSAGE_CONTENT)
        reply.received = reply.received if wanted or caller.app != town.CHAT else 0
        return reply

    real = signals.SignalsServicer.push
    patch.setattr(signals.SignalsServicer, "push", push)


def _purge_tells(patch: Patch) -> None:
    """Every purge is answered with its receipt, and that says how much there was."""

    def purge(self: Any, caller: Any, request: Any) -> Any:
        receipt = self.withdrawals.purge(self._stream(caller, request.stream))
        return device_pb2.PurgeReply(receipt=receipt_message(receipt))

    patch.setattr(signals.SignalsServicer, "purge", purge)


def _any_grant(patch: Patch) -> None:
    patch.setattr(Consent, "_require_grantable", lambda *_: None)


def _minors_too(patch: Patch) -> None:
    patch.setattr(Consent, "set_owner", lambda self, age, off, real=Consent.set_owner: real(self, Age.ADULT, off))


def _never_restricted(patch: Patch) -> None:
    patch.setattr(Streams, "restrict", lambda self, app, name, purposes: self.find(app, name))


def _nothing_destroyed(patch: Patch) -> None:
    patch.setattr(Streams, "renew_key", lambda self, number, connection: Destroyed("key-of-nothing", 1))


def _any_status(patch: Patch) -> None:
    real = installed.open_status
    patch.setattr(installed, "open_status", lambda envelope, roster, now, *_, **__: real(envelope, roster, now))


def _old_status(patch: Patch) -> None:
    patch.setattr(status, "_require_fresh", lambda *_: None)


def _stopped_goes_on(patch: Patch) -> None:
    patch.setattr(installed, "_require_not_named", lambda *_: None)


def _feedback_of_all(patch: Patch) -> None:
    real = recommend.RankingMemory.items
    patch.setattr(
        recommend.RankingMemory,
        "items",
        lambda self, at, app, now: real(self, at, town.SURFACE, now) or real(self, at, app, now),
    )


def _every_role(patch: Patch) -> None:
    open_to_all = {path: replace(one, roles=frozenset(Role)) for path, one in door.METHODS.items()}
    patch.setattr(door, "METHODS", open_to_all)


def _strangers_too(patch: Patch) -> None:
    def caller(self: Any, peer: str) -> Caller:
        try:
            return real(self, peer)
        except CallerRefused:
            return Caller("kit.stranger", Role.SYSTEM)

    real = SocketCallers.caller
    patch.setattr(SocketCallers, "caller", caller)


def _trains_anyway(patch: Patch) -> None:
    """It asks the gateway before it asks for consent, and so writes an egress entry."""

    def train_now(self: Any, purpose: str) -> str:
        entry = "INSERT INTO egress (time, method, purpose, recipient, run_id, step, size, sha256, state, expires)"
        with self._rooms.database.transaction() as connection:
            connection.execute(f"{entry} VALUES (1, 'CheckIn', ?, 'kit-lab', '', 0, 0, x'', 'sent', 0)", (purpose,))
        return real(self, purpose)

    real = scheduler.Scheduler.train_now
    patch.setattr(scheduler.Scheduler, "train_now", train_now)


WRONG_BEHAVIOUR = (
    Fault(
        "consent_ignored",
        _consent_ignored,
        ("consent.grid.nothing", "consent.grid.chat_surface", "consent.no_trace"),
        ("feedback.choice",),
        ("consent.grid.nothing", "consent.grid.chat_surface", "consent.no_trace", "consent.list", "feedback"),
    ),
    Fault(
        "ranking_leaked",
        _ranking_leaked,
        ("consent.grid.chat_surface", "consent.grid.reading_surface", "consent.no_trace"),
        ("consent.grid",),
        ("consent.grid.nothing", "consent.grid.chat_surface", "consent.grid.reading_surface", "consent.no_trace",
         "withdraw.ranking", "withdraw.receipt", "install"),
    ),
    Fault("receipts_unsigned", _receipts_unsigned, ("withdraw.receipt", "purge.receipt"), (), ("withdraw", "purge")),
    Fault(
        "unsigned_bundle_taken",
        _signatures_unchecked,
        ("install.unsigned", "install.once_signed", "install.stranger", "replace.unsigned"),
        # a stranger's roster that it took has the version of the good one, which it refuses ever after
        ("replace.once_signed", "replace.stranger", "catalogue", "status"),
        ("install", "replace", "catalogue", "status"),
    ),
    Fault(
        "one_signature_enough",
        _one_signature_enough,
        ("install.once_signed", "replace.once_signed"),
        ("replace.unsigned",),
        ("install", "replace.once_signed", "replace.unsigned"),
    ),
    Fault("used_told_to_all", _used_told_to_all, ("recommend.used",), (), ("recommend", "feedback")),
    Fault("off_switch_ignored", _off_switch_ignored, ("consent.off_switch",), (),
          ("consent.off_switch", "consent.minor")),
    Fault("streams_of_all", _streams_of_all, ("signals.not_mine",), (), ("signals.not_mine", "signals.duplicate")),
    Fault(
        "signals_unchecked",
        _signals_unchecked,
        ("signals.future", "signals.before_1970", "signals.long_id", "signals.oversize", "signals.wrong_body",
         "signals.too_many"),
        ("signals",),
        ("signals",),
    ),
    Fault("duplicates_kept", _duplicates_kept, ("signals.duplicate",), (), ("signals.duplicate", "signals.silent")),
    Fault("push_tells", _push_tells, ("signals.silent",), (), ("signals.silent", "signals.duplicate")),
    Fault("purge_tells", _purge_tells, ("purge.silent",), (), ("purge",)),
    Fault(
        "any_grant",
        _any_grant,
        ("consent.text_version", "consent.disputed", "consent.unlisted"),
        ("consent.minor", "consent.age_unknown"),
        ("consent.text_version", "consent.disputed", "consent.unlisted", "consent.minor", "consent.watch"),
    ),
    Fault("minors_too", _minors_too, ("consent.minor", "consent.age_unknown"), (),
          ("consent.minor", "consent.age_unknown", "consent.list")),
    Fault("never_restricted", _never_restricted, ("consent.restricted",), (), ("consent.restricted", "consent.list")),
    Fault(
        "nothing_destroyed",
        _nothing_destroyed,
        ("withdraw.regrant", "purge.ranking"),
        ("withdraw.ranking", "withdraw.statement"),
        ("withdraw", "purge"),
    ),
    Fault("any_status", _any_status, ("status.lower",), (), ("status",)),
    Fault("old_status", _old_status, ("status.stale", "status.future"), (), ("status",)),
    Fault("stopped_goes_on", _stopped_goes_on, ("status.stopped",), (), ("status",)),
    Fault("feedback_of_all", _feedback_of_all, ("feedback.foreign",), (), ("feedback",)),
    Fault("every_role", _every_role, ("roles.Signals.Push", "roles.Consent.Watch", "roles.Audit.Egress"), ("roles",),
          ("roles", "stranger")),
    Fault("strangers_too", _strangers_too, ("stranger.Runtime.Status", "stranger.Runtime.Install"),
          ("stranger.Runtime",), ("roles", "stranger")),
    Fault("trains_anyway", _trains_anyway, ("training.no_grant", "training.other_purpose"), ("training.off_switch",),
          ("training",)),
)  # fmt: skip


class _Process:
    """What ``worker.process.WorkerProcess`` is to ``Workers``, without a process."""

    def __init__(self, with_numerics: bool) -> None:
        self._worker = serve.Worker(numerics=numerics.Numerics() if with_numerics else None)

    def first_words(self, deadline_s: float) -> frozenset[str]:
        return frozenset(value for name, value in vars(layers).items() if name.isupper() and isinstance(value, str))

    def ask(self, request: bytes, deadline_s: float, stop: Any = None) -> worker_pb2.Reply:
        return worker_pb2.Reply.FromString(self._worker.answer(request))

    def close(self) -> None:
        return None


class _Workers(workers.Workers):
    def _start(self, arguments: list[str]) -> Any:
        return _Process("--numerics" in arguments)


def _checked_here(data: bytes, **given: Any) -> Checked:
    opened = open_catalogue_bundle(data, **given)
    return Checked(**{field.name: getattr(opened, field.name) for field in fields(Checked)})


@contextlib.contextmanager
def device(break_it: Callable[[Patch], None] | None = None, conformance: bool = True) -> Iterator[Callers]:
    """A daemon in this process that was never used; how to call it."""
    with contextlib.ExitStack() as life:
        patch = life.enter_context(Patch.context())
        patch.setattr(daemon, "Workers", _Workers)
        patch.setattr(installed, "check_catalogue", _checked_here)
        if break_it is not None:
            break_it(patch)
        folder = Path(life.enter_context(tempfile.TemporaryDirectory(prefix="kit-")))
        keys = make_keys(folder / "keys")
        sockets = {name: folder / name for name in (*town.ROLES, town.STRANGER)}
        table = folder / "unused"
        settings = Settings(
            directory=folder / "state",
            socket=sockets["system"],
            callers=table,
            root_keys=(keys["root"].public,),
            recommend_rate=10_000.0,
            recommend_burst=10_000,
            train=False,
            conformance=conformance,
        )
        known = {sockets[name]: Caller(app, Role(role)) for name, (app, role) in town.ROLES.items()}
        clock = LinuxClock()
        hooks = daemon.Hooks(
            conditions=FakeConditions(FIT),
            keystore=FakeKeyStore(),
            attestation=FakeAttestation(),
            callers=SocketCallers(known),
            transport=NoTransport(),
            clock_rng=clock,
            audit=FakeAuditSink(),
        )
        others = tuple(path for name, path in sockets.items() if name != "system")
        made = daemon.Daemon(settings, hooks, others)
        life.callback(made.stop)
        made.start()
        entries = {name: Entry(f"unix:{path}") for name, path in sockets.items()}
        callers = Callers(f"unix:{sockets['system']}", entries, folder / "keys")
        life.callback(callers.close)
        yield callers


def callers_file(callers: Callers, path: Path) -> Path:
    """The same callers as a file."""
    table: dict[str, Any] = {name: {"address": entry.address} for name, entry in callers.entries.items()}
    path.write_text(json.dumps({"keys": str(callers.keys), **table}))
    return path
