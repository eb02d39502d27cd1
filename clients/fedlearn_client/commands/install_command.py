"""``fedlearn-device install``: the daemon checks every signature itself; what a file is, is told by what is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from fedlearn.device.archive import read_archive
from fedlearn.errors import BundleRefused, ConfigError
from fedlearn.proto import device_pb2 as pb
from fedlearn.proto.device_pb2_grpc import RuntimeStub
from fedlearn_client import limits
from fedlearn_client.commands.connection import TIMEOUT_S, connected, parser, show
from fedlearn_client.commands.files import contents
from fedlearn_client.commands.words import missing

INSTALL_TIMEOUT_S: Final = 120.0
"""A bundle's golden vectors run on the phone before it is installed."""

_ARCHIVE: Final = b"PK\x03\x04"
_TYPE: Final = "application/vnd.fedlearn."


def main(arguments: Sequence[str]) -> int:
    """Install a bundle or a status, and say what is still missing."""
    made = parser(
        "install",
        "Install a signed task bundle, a signed catalogue bundle, or a newer signed status. The task bundle comes "
        "first: its roster says who signs the other two.",
    )
    made.add_argument("file", type=Path, help="*.task.flb, *.catalogue.flb, or status.dsse.json")
    given = made.parse_args(arguments)
    # what surrounds the bundle in the request is far less
    data = contents(given.file, limits.INSTALL_REQUEST_BYTES - 1024, "file")
    kind = _kind(data, given.file)
    with connected(given.device) as channel:
        runtime = RuntimeStub(channel)
        if kind == "status":
            status = runtime.UpdateStatus(pb.UpdateStatusRequest(envelope=data), timeout=TIMEOUT_S)
            said = f"installed status version {status.version}"
            reply: pb.InstallReply | pb.UpdateStatusReply = status
        else:
            task = kind == "task bundle"
            request = pb.InstallRequest(task_bundle=data) if task else pb.InstallRequest(catalogue_bundle=data)
            installed = runtime.Install(request, timeout=INSTALL_TIMEOUT_S)
            said, reply = f"installed {kind} {installed.digest}", installed
        now = pb.StatusReply() if given.json else runtime.Status(pb.StatusRequest(), timeout=TIMEOUT_S)
    show(reply, given.json, lambda: _lines(said, now))
    return 0


def _lines(said: str, now: pb.StatusReply) -> Iterator[str]:
    yield said
    for step in missing(now):
        yield f"next: {step}"


def _kind(data: bytes, path: Path) -> str:
    if data.startswith(_ARCHIVE):
        try:
            files = read_archive(data, limits.INSTALL_REQUEST_BYTES)
        except BundleRefused:
            raise BundleRefused(f"file={path}: damaged, or changed since it was made; copy it again.") from None
        return "catalogue bundle" if "catalogue.json" in files else "task bundle"
    try:
        envelope = json.loads(data)
        kind = str(envelope["payloadType"]).removeprefix(_TYPE).removesuffix(".v1+json")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(
            f"file={path}: neither a bundle nor a signed status; name a *.task.flb, a *.catalogue.flb or a "
            "status.dsse.json."
        ) from None
    if kind == "status":
        return kind
    what = kind if kind in {"policy", "roster"} else "document of another kind"
    raise ConfigError(
        f"file={path}: a signed {what} is not installed by itself; the task bundle has policy and roster."
    )
