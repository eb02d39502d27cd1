"""``fedlearn-device install``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedlearn.errors import ConfigError
from fedlearn.proto import device_pb2 as pb
from fedlearn.proto.device_pb2_grpc import RuntimeStub
from fedlearn_client.commands.connection import TIMEOUT_S, connected, parser, show


def main(arguments: Sequence[str]) -> int:
    """Install a bundle or a status; the daemon checks every signature itself."""
    made = parser("install", "Install a signed task or catalogue bundle, or a newer signed status.")
    made.add_argument("file", type=Path, help="*.task.flb, *.catalogue.flb, or a status envelope (*.json)")
    given = made.parse_args(arguments)
    try:
        data = given.file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{given.file}: cannot be read ({error.strerror}); name a file.") from error
    with connected(given.device) as channel:
        runtime = RuntimeStub(channel)
        if given.file.suffix == ".json":
            status = runtime.UpdateStatus(pb.UpdateStatusRequest(envelope=data), timeout=TIMEOUT_S)
            show(status, given.json, lambda: iter([f"status version {status.version}"]))
            return 0
        catalogue = given.file.name.endswith(".catalogue.flb")
        request = pb.InstallRequest(catalogue_bundle=data) if catalogue else pb.InstallRequest(task_bundle=data)
        reply = runtime.Install(request, timeout=TIMEOUT_S)
    show(reply, given.json, lambda: iter([f"installed {reply.digest}"]))
    return 0
