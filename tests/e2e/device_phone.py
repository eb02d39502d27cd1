"""A phone for end-to-end tests: the daemon in a process of its own, and apps as other users in processes of theirs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from fedlearn.proto import device_pb2 as pb

HERE = Path(__file__).parent
UIDS = {
    "org.city.chat": (21001, "app"),
    "org.city.reading": (21002, "app"),
    "org.city.shopping": (21003, "app"),
    "org.city.maps": (21004, "app"),
    "org.city.surface": (21005, "surface"),
    "org.city.settings": (21006, "settings"),
    "org.city.system": (21007, "system"),
}
STRANGER = 21999


class Refused(Exception):
    """A status that is not OK."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details


class App:
    """A process of another user that calls the daemon."""

    def __init__(self, uid: int, address: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "device_app.py"), str(uid), address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, method: str, request: Message | bytes = b"", reply: type[Message] | None = None) -> Any:
        """Call ``Service/Method``; return the reply, or raise ``Refused``."""
        return self.read(method, self.send("call", method, request), reply)

    def measure(self, method: str, requests: Sequence[Message]) -> list[float]:
        """Return the seconds of each call."""
        return json.loads(self.send("measure", method, *requests))["seconds"]

    def codes(self, method: str, requests: Sequence[Message | bytes]) -> dict[str, int]:
        """Return how often each status came back."""
        return dict(json.loads(self.send("codes", method, *requests))["codes"])

    def send(self, verb: str, method: str, *requests: Message | bytes) -> str:
        """Send one line to the process and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        raw = [one if isinstance(one, bytes) else one.SerializeToString() for one in requests]
        line = json.dumps([verb, f"/fedlearn.device.v1.{method}", [one.hex() for one in raw]])
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    @staticmethod
    def read(method: str, line: str, reply: type[Message] | None) -> Any:
        """Return what an answer of the process holds."""
        answer = json.loads(line)
        if answer["code"] != "OK":
            raise Refused(answer["code"], answer["details"])
        kind = getattr(pb, f"{method.partition('/')[2]}Reply") if reply is None else reply
        return kind.FromString(bytes.fromhex(answer["reply"]))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


class Phone:
    """Settings, a running daemon, and apps by their ids."""

    def __init__(self, folder: Path, root_keys: Sequence[str], settings: Mapping[str, object] | None = None) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.socket = folder / "s"
        self._apps: dict[str, App] = {}
        self._daemon: subprocess.Popen[str] | None = None
        callers = folder / "callers.toml"
        callers.write_text("".join(f'[{uid}]\napp = "{app}"\nrole = "{role}"\n' for app, (uid, role) in UIDS.items()))
        table: dict[str, object] = {
            "directory": str(self.state),
            "socket": str(self.socket),
            "callers": str(callers),
            "root_keys": list(root_keys),
            "recommend_rate": 10_000.0,
            "recommend_burst": 10_000,
            "train": False,
            **(settings or {}),
        }
        self.settings = folder / "settings.toml"
        self.settings.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in table.items()))

    def start(self) -> float:
        """Start the daemon; return the seconds until it serves."""
        began = time.monotonic()
        with (self.folder / "stderr").open("a") as errors:
            self._daemon = subprocess.Popen(
                [sys.executable, str(HERE / "device_daemon.py"), str(self.settings)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        while not self.socket.exists():
            if self._daemon.poll() is not None or time.monotonic() - began > 60:
                raise AssertionError((self.folder / "stderr").read_text())
            time.sleep(0.002)
        return time.monotonic() - began

    @property
    def pid(self) -> int:
        """Of the daemon."""
        assert self._daemon is not None
        return self._daemon.pid

    def stop(self) -> dict[str, Any]:
        """Tell the daemon to stop; return what it says about itself."""
        assert self._daemon is not None
        self._daemon.terminate()
        out, _ = self._daemon.communicate(timeout=60)
        assert self._daemon.returncode == 0, (self.folder / "stderr").read_text()
        self._daemon = None
        return dict(json.loads(out))

    def kill(self) -> None:
        """kill -9."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.communicate(timeout=60)
        self._daemon = None

    def app(self, name: str, uid: int | None = None) -> App:
        """Return the process of an app, started at its first use."""
        if name not in self._apps:
            self._apps[name] = App(UIDS[name][0] if uid is None else uid, f"unix:{self.socket}")
        return self._apps[name]

    def close(self) -> None:
        """End everything."""
        for app in self._apps.values():
            app.close()
        if self._daemon is not None:
            self.kill()


@contextlib.contextmanager
def phone(
    root_keys: Sequence[str], settings: Mapping[str, object] | None = None, state: Path | None = None
) -> Iterator[Phone]:
    """A phone in a folder that other users can enter; with a copy of another phone's ``state``, if one is given."""
    with tempfile.TemporaryDirectory(prefix="fedlearn-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        made = Phone(folder, root_keys, settings)
        if state is not None:
            shutil.copytree(state, made.state)
        try:
            yield made
        finally:
            made.close()


def is_root() -> bool:
    """Whether apps can be started as other users."""
    return os.geteuid() == 0


__all__ = ["STRANGER", "UIDS", "App", "Phone", "Refused", "is_root", "phone"]
