"""``fedlearn-device import``: the owner's own chat export, what would be kept of it, and the bytes that would leave.

Nothing is stored and no daemon is asked: this is for an owner, or a reviewer, who wants to see. With ``--push`` the
lines are handed to the daemon like any other stream's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedlearn import __version__
from fedlearn.errors import ConfigError, MissingDependency, TrustError
from fedlearn.proto import device_pb2
from fedlearn_client import limits
from fedlearn_client.commands.arguments import Parser
from fedlearn_client.commands.connection import connected, parser, show, table
from fedlearn_client.commands.files import contents, leave_no_core, opened
from fedlearn_client.commands.push_command import Line, hand_over
from fedlearn_client.imports import FORMATS, OwnLine
from fedlearn_client.imports.signals import signals_of
from fedlearn_client.linux.clock import LinuxClock

if TYPE_CHECKING:
    from fedlearn.device.bundle import Bundle
    from fedlearn_client.imports.rehearsal import Rehearsal, Upload

LARGEST_EXPORT: Final = 128 << 20
LARGEST_BUNDLE: Final = 64 << 20
_KEY: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Usable:
    """The owner's lines that a phone takes, and how many it does not.

    Args:
        lines: oldest first.
        too_long: of more than 16 KiB, or with too many quotes in them.
        ahead: dated more than five minutes ahead of this machine's clock.
    """

    lines: list[OwnLine] = field(repr=False)
    too_long: int
    ahead: int


def main(arguments: Sequence[str]) -> int:
    """Read an export, show what would be kept and what would leave; with ``--push`` hand the lines over."""
    made = _parser()
    given = made.parse_args(arguments)
    _require_one_way(made, given)
    leave_no_core()
    with opened(given.file, LARGEST_EXPORT, "file") as file:
        usable = _usable(list(FORMATS[given.format](file, given.me)), LinuxClock().now())
    if given.push is not None:
        return _push(given, usable)
    return _show(given, usable)


def _usable(lines: Sequence[OwnLine], now: float) -> Usable:
    short = [
        line
        for line in lines
        if len(line.text.encode()) <= limits.TEXT_BYTES and len(line.foreign_spans) <= limits.FOREIGN_SPANS
    ]
    past = [line for line in short if 0.0 <= line.time <= now + limits.FUTURE_S]
    return Usable(past, len(lines) - len(short), len(short) - len(past))


def _show(given: Any, usable: Usable) -> int:
    try:
        # late: the other commands need no numpy
        from fedlearn.device.bundle import open_bundle  # noqa: PLC0415
        from fedlearn.device.catalogue_bundle import open_catalogue_bundle  # noqa: PLC0415
        from fedlearn_client.imports.rehearsal import rehearse  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingDependency(f"`import` needs the package {error.name!r}: pip install fedlearn-client.") from None
    clock = LinuxClock()
    keys = [_root_key(key) for key in given.root_key]
    data = contents(given.bundle, LARGEST_BUNDLE, "--bundle")
    with _naming(f"--bundle={given.bundle}"):
        bundle = open_bundle(data, root_keys=keys, now=clock.now(), runtime=__version__)
    data = contents(given.catalogue, LARGEST_BUNDLE, "--catalogue")
    with _naming(f"--catalogue={given.catalogue}"):
        catalogue = open_catalogue_bundle(
            data, roster=bundle.verified.roster, spec=bundle.plan.catalogue, now=clock.now()
        )
    rehearsal = rehearse(usable.lines, bundle, catalogue.catalogue_bytes, given.chose, clock)
    if given.bytes is not None and rehearsal.upload is not None:
        _write(given.bytes, rehearsal.upload.data)
    lines = [json.dumps(_facts(rehearsal, bundle, usable), indent=1, ensure_ascii=False)]
    for line in lines if given.json else _lines(rehearsal, bundle, usable):
        print(line)  # noqa: T201 - the command's own output
    return 0


@contextmanager
def _naming(argument: str) -> Iterator[None]:
    """A document that may not be used is said to be that of an argument."""
    try:
        yield
    except TrustError as error:
        raise type(error)(f"{argument}: {error}") from None


def _push(given: Any, usable: Usable) -> int:
    lines = (Line(number, signal) for number, signal in enumerate(signals_of(usable.lines), 1))
    with connected(given.device) as channel:
        done = hand_over(channel, given.push, device_pb2.DATA_TYPE_MESSAGE_CONTENT, lines, "your lines")
    show(device_pb2.PushReply(received=done), given.json, lambda: _handed_over(done, usable))
    return 0


def _handed_over(done: int, usable: Usable) -> Iterator[str]:
    yield f"{done} lines handed over; what the owner did not agree to is not kept"
    yield from _left_out(usable)


def _root_key(given: str) -> str:
    """Return a root key that was given in hexadecimal, or as the file that has it."""
    if _KEY.fullmatch(given):
        return given
    path = Path(given)
    key = contents(path, 4096, "--root-key").decode(errors="replace").strip() if path.exists() else ""
    if not _KEY.fullmatch(key):
        raise ConfigError(f"--root-key={given}: must be 64 lower-case hexadecimal digits, or a file with them.")
    return key


def _write(path: Path, data: bytes) -> None:
    """Write an upload for its owner's eyes: one update without noise says a lot."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
    except OSError as error:
        raise ConfigError(f"--bytes={path}: cannot be written ({error.strerror}).") from None


def _parser() -> Parser:
    made = parser("import", "Read your own chat export: show what would be kept and what would leave. Stores no text.")
    made.add_argument("file", type=Path, help="the export")
    made.add_argument("--format", choices=sorted(FORMATS), required=True)
    made.add_argument("--me", metavar="NAME", required=True, help="your name as the export writes it")
    made.add_argument("--bundle", type=Path, metavar="FILE", help="*.task.flb")
    made.add_argument("--catalogue", type=Path, metavar="FILE", help="*.catalogue.flb")
    made.add_argument(
        "--root-key",
        action="append",
        default=[],
        metavar="KEY",
        help="the phone maker's root key: a *.pub file, or hex",
    )
    made.add_argument("--chose", metavar="ITEM", help="show the update if this was chosen after the last line")
    made.add_argument("--bytes", type=Path, metavar="FILE", help="write the exact bytes of that update")
    made.add_argument("--push", metavar="STREAM", help="hand the lines to the daemon instead, as the calling app")
    return made


def _require_one_way(made: Parser, given: Any) -> None:
    shown = {"--bundle": given.bundle, "--catalogue": given.catalogue, "--root-key": given.root_key or None}
    if given.push is not None:
        shown |= {"--chose": given.chose, "--bytes": given.bytes}
        extra = [name for name, value in shown.items() if value is not None]
        if extra:
            made.error(f"{', '.join(extra)}: --push hands the lines over and shows nothing; leave out one or the other")
        return
    absent = [name for name, value in shown.items() if value is None]
    if absent:
        made.error(f"{', '.join(absent)}: needed to show what a phone would make of the lines (or --push STREAM)")
    if given.bytes is not None and given.chose is None:
        made.error("--bytes: nothing leaves a phone without a choice to learn from; add --chose ITEM")


def _facts(rehearsal: Rehearsal, bundle: Bundle, usable: Usable) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "lines_of_yours": rehearsal.lines,
        "too_long": usable.too_long,
        "ahead_of_the_clock": usable.ahead,
        "kept": rehearsal.kept,
        "kept_bytes": rehearsal.kept_bytes,
        "kept_days": rehearsal.retention_days,
        "query": rehearsal.query,
        "recipient": bundle.plan.recipient,
        "upload": None,
    }
    if rehearsal.upload is not None:
        facts["upload"] = {
            "bytes": rehearsal.upload.data.hex(),
            "size": len(rehearsal.upload.data),
            "sha256": hashlib.sha256(rehearsal.upload.data).hexdigest(),
            "numbers": rehearsal.upload.numbers,
            "l2_norm": rehearsal.upload.l2_norm,
            "l2_bound": rehearsal.upload.l2_bound,
            "values_sha256": rehearsal.upload.values_sha256,
        }
    return facts


def _lines(rehearsal: Rehearsal, bundle: Bundle, usable: Usable) -> Iterator[str]:
    yield f"{rehearsal.lines} lines are yours. {rehearsal.kept} say something about the catalogue and would be kept:"
    yield f"{rehearsal.kept_bytes} bytes of catalogue numbers, encrypted, for {rehearsal.retention_days} days at most."
    yield "No text."
    yield from _left_out(usable)
    yield "\nWhat your last day's lines ask for, in words of the public catalogue:"
    yield table([{"": kind, "found": ", ".join(found) or "-"} for kind, found in rehearsal.query.items()])
    yield ""
    if rehearsal.upload is None:
        yield "Nothing would leave: a phone learns from choices, and an export has none. --chose ITEM shows one."
    else:
        yield from _leaving(rehearsal.upload, bundle)


def _leaving(upload: Upload, bundle: Bundle) -> Iterator[str]:
    yield f"What would leave in one round with that choice, to {bundle.plan.recipient}: {len(upload.data)} bytes."
    yield f"{upload.numbers} numbers on a grid; their L2 norm is {upload.l2_norm:.3g}, at most {upload.l2_bound:g}."
    yield f"SHA-256 of the numbers  {upload.values_sha256}"
    yield f"SHA-256 of the bytes    {hashlib.sha256(upload.data).hexdigest()}"
    yield f"{upload.data[:32].hex()}... (--bytes FILE writes them all)"
    yield "The bytes have 16 random ones in them, so that no upload counts twice; the numbers are the same each time."
    yield "One update without noise says a lot about a phone; the gateway adds it to many before noise is added."


def _left_out(usable: Usable) -> Iterator[str]:
    if usable.too_long:
        yield f"Left out: {usable.too_long} of more than {limits.TEXT_BYTES >> 10} KiB, or with too many quotes."
    if usable.ahead:
        yield f"Left out: {usable.ahead} dated ahead of this machine's clock, or before 1970."
