"""``fedlearn-device import``: the owner's own chat export, what would be kept of it, and the bytes that would leave.

Nothing is stored and no daemon is asked: this is for an owner, or a reviewer, who wants to see. With ``--push`` the
lines are handed to the daemon like any other stream's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fedlearn import __version__
from fedlearn.device.bundle import Bundle, open_bundle
from fedlearn.device.catalogue_bundle import open_catalogue_bundle
from fedlearn.device.catalogue_file import catalogue_from_bytes
from fedlearn.device.task import TOKEN_BYTES, DeviceTask
from fedlearn.device.task_codec import task_bytes, with_digest
from fedlearn.errors import ConfigError
from fedlearn.proto import device_pb2, worker_pb2
from fedlearn.proto.device_pb2_grpc import SignalsStub
from fedlearn_client.commands.connection import TIMEOUT_S, connected, parser, table
from fedlearn_client.commands.push_command import BATCH
from fedlearn_client.imports import FORMATS, OwnLine
from fedlearn_client.linux.clock import LinuxClock
from fedlearn_client.workers import Workers

WINDOW_S: Final = 24 * 3600
REHEARSAL_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a phone would have made of the lines.

    Args:
        lines: of the owner, in the file.
        kept: that said anything about the catalogue.
        kept_bytes: of all that would be stored.
        query: what the last day's lines ask for, in words of the catalogue.
        upload: the exact bytes of a contribution.
    """

    lines: int
    kept: int
    kept_bytes: int
    query: Mapping[str, Sequence[str]]
    upload: bytes = field(repr=False)


def main(arguments: Sequence[str]) -> int:
    """Read an export, show what would be kept and what would leave; with ``--push`` hand the lines over."""
    given = _parser().parse_args(arguments)
    try:
        with given.file.open("rb") as file:
            lines = list(FORMATS[given.format](file, given.me))
    except OSError as error:
        raise ConfigError(f"{given.file}: cannot be read ({error.strerror}); name the exported file.") from error
    if given.push is not None:
        _push(given, lines)
        return 0
    if given.bundle is None or given.catalogue is None or not given.root_key:
        raise ConfigError("--bundle, --catalogue and --root-key: needed to show what a phone would make of the lines.")
    bundle = open_bundle(_read(given.bundle), root_keys=given.root_key, now=LinuxClock().now(), runtime=__version__)
    rehearsal = rehearse(lines, bundle, _read(given.catalogue), given.chose)
    if given.bytes is not None:
        given.bytes.write_bytes(rehearsal.upload)
    _print(rehearsal, bundle, given.json)
    return 0


def rehearse(lines: Sequence[OwnLine], bundle: Bundle, catalogue_bundle: bytes, chosen: str) -> Rehearsal:
    """Do what a phone does, in the same sandboxed worker, and store nothing.

    Args:
        lines: the owner's.
        bundle: a checked task bundle.
        catalogue_bundle: its catalogue, checked here.
        chosen: catalogue key that the owner is taken to have chosen after the last line; "" for no example at all.
    """
    clock = LinuxClock()
    spec, roster = bundle.plan.catalogue, bundle.verified.roster
    catalogue = open_catalogue_bundle(catalogue_bundle, roster=roster, spec=spec, now=clock.now()).catalogue_bytes
    workers = Workers(clock)
    try:
        workers.load_catalogue(catalogue)
        bodies = []
        for start in range(0, len(lines), BATCH):
            bodies += _derive(workers, lines[start : start + BATCH])
        latest = max((line.time for line in lines), default=0.0)
        present = [b for line, b in zip(lines, bodies, strict=True) if b and line.time > latest - WINDOW_S]
        occasion = worker_pb2.Occasion(said=present, chosen=chosen)
        reply = workers.train(
            worker_pb2.TrainRequest(
                plan=bundle.files["plan.json"],
                step=bundle.step,
                weights=bundle.files["weights.bin"],
                private_parameters=bundle.files.get("private.bin", b""),
                occasions=[occasion] if chosen else [],
                sources=["catalogue", "chat"],
                task=task_bytes(_task(bundle)),
                catalogue=catalogue,
            ),
            REHEARSAL_S,
        )
    finally:
        workers.close()
    kept = [body for body in bodies if body]
    query = _words(present, catalogue, spec.max_bytes)
    return Rehearsal(len(lines), len(kept), sum(map(len, kept)), query, reply.contribution)


def _derive(workers: Workers, lines: Sequence[OwnLine]) -> list[bytes]:
    return workers.ingest([_signal(line, str(number)) for number, line in enumerate(lines)])


def _signal(line: OwnLine, name: str) -> device_pb2.Signal:
    signal = device_pb2.Signal(id=name, time_ms=int(line.time * 1000))
    signal.message.text = line.text
    signal.message.direction = device_pb2.DIRECTION_OUTGOING
    for start, end in line.foreign_spans:
        signal.message.foreign_spans.add(start=start, end=end)
    return signal


def _task(bundle: Bundle) -> DeviceTask:
    """Return a task that nobody signed: the worker trains on it here, and no phone or gateway would accept it."""
    plan, clock = bundle.plan, LinuxClock()
    return with_digest(
        DeviceTask(
            run_id="rehearsal",
            population=plan.population,
            purpose=plan.purpose,
            recipient=plan.recipient,
            step=0,
            attempt=0,
            plan_digest=bundle.plan_digest,
            weights_digest=hashlib.sha256(bundle.files["weights.bin"]).hexdigest(),
            token=bytes(TOKEN_BYTES),
            issued=clock.now(),
            expires=clock.now() + 600,
            round_size=bundle.verified.policy.mechanism.min_round_size,
            mechanism=plan.mechanism,
            shuffle_seed=0,
            digest=b"",
        )
    )


def _words(bodies: Sequence[bytes], catalogue: bytes, max_bytes: int) -> dict[str, list[str]]:
    """Say in words of the catalogue what the lines ask for: the Query, made readable."""
    # late: the other commands need no numpy
    from fedlearn.features import CatalogueIndex  # noqa: PLC0415
    from fedlearn.features.ingest import make_query_from  # noqa: PLC0415
    from fedlearn.features.said import said_from_bytes  # noqa: PLC0415

    index = CatalogueIndex.build(catalogue_from_bytes(catalogue, max_bytes))
    query = make_query_from([said_from_bytes(body) for body in bodies], (), index)
    terms = {number: term for term, number in index.terms.items()}
    values = {number: value for value, number in index.values.ids.items()}
    names = {number: name for name, number in index.names.ids.items()}
    sign = {-1: "not ", 0: "no longer ", 1: ""}
    wish_names = ("price from", "price to", "price level", "free", "rating", "hours from", "hours to", "near by")
    wishes = zip(wish_names, query.wishes.tolist(), strict=True)
    return {
        "words": [f"{sign[polarity]}{terms[term]}" for term, _, polarity, _ in query.terms.tolist()],
        "values": [f"{sign[polarity]}{values[value]}" for value, polarity, _ in query.values.tolist()],
        "names": [names[name] for name, _ in query.names.tolist()],
        "wishes": [f"{name} {value:g}" for name, value in wishes if value == value],  # noqa: PLR0124 - NaN: not said
    }


def _push(given: argparse.Namespace, lines: Sequence[OwnLine]) -> None:
    with connected(given.device) as channel:
        signals = SignalsStub(channel)
        kind = device_pb2.DATA_TYPE_MESSAGE_CONTENT
        signals.Register(device_pb2.RegisterRequest(stream=given.push, data_type=kind), timeout=TIMEOUT_S)
        for start in range(0, len(lines), BATCH):
            batch = [_signal(line, _name(line)) for line in lines[start : start + BATCH]]
            signals.Push(device_pb2.PushRequest(stream=given.push, signals=batch), timeout=TIMEOUT_S)


def _name(line: OwnLine) -> str:
    """Return an id that a second import of the same file gives again; the phone keeps a keyed hash of it."""
    return hashlib.sha256(f"{line.time}\x00{line.text}".encode()).hexdigest()[:32]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a file.") from error


def _parser() -> argparse.ArgumentParser:
    made = parser("import", "Read your own chat export: show what would be kept and what would leave. Stores no text.")
    made.add_argument("file", type=Path)
    made.add_argument("--format", choices=sorted(FORMATS), required=True)
    made.add_argument("--me", metavar="NAME", required=True, help="your name as the export writes it")
    made.add_argument("--bundle", type=Path, help="*.task.flb")
    made.add_argument("--catalogue", type=Path, help="*.catalogue.flb")
    made.add_argument("--root-key", action="append", default=[], metavar="HEX", help="the phone maker's root key")
    made.add_argument("--chose", default="", metavar="ITEM", help="train as if this was chosen after the last line")
    made.add_argument("--bytes", type=Path, metavar="FILE", help="write the exact bytes that would leave")
    made.add_argument("--push", metavar="STREAM", help="hand the lines to the daemon instead, as the calling app")
    return made


def _print(rehearsal: Rehearsal, bundle: Bundle, as_json: bool) -> None:
    facts: dict[str, Any] = {
        "lines_of_yours": rehearsal.lines,
        "kept": rehearsal.kept,
        "kept_bytes": rehearsal.kept_bytes,
        "query": rehearsal.query,
        "upload_bytes": len(rehearsal.upload),
        "upload_sha256": hashlib.sha256(rehearsal.upload).hexdigest(),
        "upload": rehearsal.upload.hex(),
        "recipient": bundle.plan.recipient,
    }
    for line in [json.dumps(facts, indent=1, ensure_ascii=False)] if as_json else _lines(rehearsal, bundle):
        print(line)  # noqa: T201 - the command's own output


def _lines(rehearsal: Rehearsal, bundle: Bundle) -> Iterator[str]:
    yield f"{rehearsal.lines} lines are yours. {rehearsal.kept} say something about the catalogue and would be kept:"
    yield f"{rehearsal.kept_bytes} bytes of catalogue numbers, encrypted, for 30 days at most. No text."
    yield "\nWhat your last day's lines ask for, in words of the public catalogue:"
    yield table([{"": kind, "found": ", ".join(found) or "-"} for kind, found in rehearsal.query.items()])
    size = len(rehearsal.upload)
    yield f"\nWhat would leave in one round, to {bundle.plan.recipient}: {size} bytes, clipped, on a grid."
    yield f"SHA-256 {hashlib.sha256(rehearsal.upload).hexdigest()}"
    yield f"{rehearsal.upload[:48].hex()}... (--bytes FILE writes them all)"
    yield "One update without noise says a lot about a phone; the gateway adds it to many before noise is added."
