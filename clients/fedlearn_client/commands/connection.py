"""What the commands share: the channel to a daemon, its refusals as our errors, and output for people or machines."""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from fedlearn import errors
from fedlearn.errors import (
    ConfigError,
    FedlearnError,
    MessageTooLarge,
    Refusal,
    TaskRefused,
    TransportFailed,
)
from fedlearn_client.commands import arguments

SOCKET_VARIABLE: Final = "FEDLEARN_DEVICE"
DEFAULT_SOCKET: Final = "unix:/run/fedlearn/device.sock"
TIMEOUT_S: Final = 30.0

_OPTIONS: Final = (("grpc.max_receive_message_length", 32 << 20),)  # a log with bodies is over gRPC's 4 MiB
_CODED: Final = re.compile(r"(FL\d{3}) (.*)", re.DOTALL)
_TOO_LARGE: Final = "larger than max"  # gRPC's own words


def parser(name: str, description: str) -> arguments.Parser:
    """Return the parser of a sub-command that talks to a daemon."""
    made = arguments.parser(name, description)
    add_connection(made)
    return made


def add_connection(made: argparse.ArgumentParser, default: bool = True) -> None:
    """Add the options that every command which talks to a daemon has.

    Args:
        made: a parser.
        default: False for an action of a command: what was said before the action then stands.
    """
    address = os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET
    made.add_argument(
        "--device",
        default=address if default else argparse.SUPPRESS,
        metavar="ADDRESS",
        help=f"the daemon's socket (default: ${SOCKET_VARIABLE}, else {DEFAULT_SOCKET})",
    )
    made.add_argument(
        "--json", action="store_true", default=False if default else argparse.SUPPRESS, help="for machines"
    )


@contextmanager
def connected(given: str) -> Iterator[grpc.Channel]:
    """Yield a channel; a refusal of the daemon becomes the error it stands for.

    Args:
        given: gRPC address, or the path of a socket.

    Raises:
        ConfigError: no address.
        FedlearnError: with the code that the daemon named.
        TransportFailed: nobody answers at the address.
    """
    address = _address(given)
    if ":" not in address.strip(":"):
        raise ConfigError(f"--device={given}: no address; name a socket, e.g. {DEFAULT_SOCKET}.")
    with grpc.insecure_channel(address, _OPTIONS) as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise as_error(error, given) from None


def _address(given: str) -> str:
    return f"unix:{given}" if given.startswith("/") else given


def as_error(error: grpc.RpcError, given: str) -> FedlearnError:
    """Return our error for a failed call to the address ``given``."""
    address = _address(given)
    code, details = error.code(), error.details() or ""
    coded = _CODED.fullmatch(details)
    if coded is not None:
        return _named(coded[1], coded[2])
    if code is grpc.StatusCode.UNAVAILABLE:
        return TransportFailed(f"--device {address}: {_why_unreachable(address)}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TransportFailed(f"--device {address}: no answer in time; is the phone busy? Try again.")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in details:
        return MessageTooLarge("request: larger than the runtime takes; send less at a time.")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return TransportFailed(f"--device {address}: what answers there is no fedlearn runtime of this version.")
    return TransportFailed(f"--device {address}: the call failed ({code.name}); is this the runtime's socket?")


def _named(code: str, message: str) -> FedlearnError:
    """Return the error of our own tree that the daemon named."""
    kinds = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}
    kind = kinds.get(code, FedlearnError)
    reason, _, detail = message.partition(": ")
    if kind is TaskRefused and reason in set(Refusal):
        return TaskRefused(Refusal(reason), detail)
    try:
        found: FedlearnError = kind(message)
    except TypeError:  # one that takes its message apart
        found = FedlearnError(message)
    return found


def _why_unreachable(address: str) -> str:
    """Say what stands between us and a socket, by trying it."""
    if not address.startswith("unix:"):
        return "nobody answers; is the runtime serving there?"
    serve = "is `fedlearn-device serve` running, with this socket in its settings?"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address.removeprefix("unix:").replace("//", "/", 1))
        except FileNotFoundError:
            return f"no socket lies there; {serve}"
        except PermissionError:
            return "this user may not reach it; the folder of the socket must be open to callers (mode 0755)."
        except OSError:
            return f"nobody serves it; {serve}"
    return "closed the connection: too many of this user at once, or it is stopping; try again."


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


def table(rows: Sequence[Mapping[str, object]], right: Collection[str] = ()) -> str:
    """Return rows of equal keys as a plain table; ``right`` columns to the right, one of wide characters last."""
    from tabulate import tabulate  # noqa: PLC0415 - only where a table is printed

    return tabulate(
        [list(row.values()) for row in rows],
        headers=list(rows[0]),
        tablefmt="simple",
        disable_numparse=True,
        colalign=["right" if name in right else "left" for name in rows[0]],
    )


def moment(milliseconds: int) -> str:
    """Return a time of the contract in UTC to the minute, or "" for none."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M") if milliseconds else ""
