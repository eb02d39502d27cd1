"""What the commands share: the channel to a daemon, its refusals as our errors, and output for people or machines."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from fedlearn import errors
from fedlearn.errors import DeviceError, FedlearnError, TransportFailed

SOCKET_VARIABLE: Final = "FEDLEARN_DEVICE"
DEFAULT_SOCKET: Final = "unix:/run/fedlearn/device.sock"
TIMEOUT_S: Final = 30.0


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a sub-command's parser with the options all of them have."""
    made = argparse.ArgumentParser(prog=f"fedlearn-device {name}", description=description)
    made.add_argument(
        "--device",
        default=os.environ.get(SOCKET_VARIABLE, DEFAULT_SOCKET),
        metavar="ADDRESS",
        help=f"the daemon's address (default: ${SOCKET_VARIABLE}, else {DEFAULT_SOCKET})",
    )
    made.add_argument("--json", action="store_true", help="for machines")
    return made


@contextmanager
def connected(address: str) -> Iterator[grpc.Channel]:
    """Yield a channel; a refusal of the daemon becomes the error it stands for.

    Raises:
        FedlearnError: with the code that the daemon named.
        TransportFailed: nobody answers at the address.
    """
    with grpc.insecure_channel(address) as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise as_error(error, address) from None


def as_error(error: grpc.RpcError, address: str) -> FedlearnError:
    """Return our error for a failed call."""
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and not details.startswith("FL"):
        return TransportFailed(f"--device {address}: nobody answers; is `fedlearn-device serve` running there?")
    number, _, message = details.partition(" ")
    kinds = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}
    found = DeviceError(message or f"{code.name}: {details}")
    if number in kinds and issubclass(kinds[number], DeviceError | errors.TrustError):
        # TaskRefused takes a reason apart; its message is what people read
        found = DeviceError(message) if kinds[number] is errors.TaskRefused else kinds[number](message)
    return found


def show(reply: Message, as_json: bool, lines: Callable[[], Iterator[str]] | None = None) -> None:
    """Print a reply: as JSON with the contract's field names, or as ``lines`` says."""
    if as_json or lines is None:
        print(json.dumps(as_dict(reply), indent=1, ensure_ascii=False))  # noqa: T201 - the command's own output
        return
    for line in lines():
        print(line)  # noqa: T201 - the command's own output


def as_dict(reply: Message) -> dict[str, Any]:
    """Return a reply as JSON would have it, empty fields included."""
    return MessageToDict(reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows with equal keys as a plain table."""
    from tabulate import tabulate  # noqa: PLC0415 - only where a table is printed

    return tabulate([list(row.values()) for row in rows], headers=list(rows[0]) if rows else [], tablefmt="simple")


def moment(milliseconds: int) -> str:
    """Return a time of the contract in UTC, or "" for none."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S") if milliseconds else ""
