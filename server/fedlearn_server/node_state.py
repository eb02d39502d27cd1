"""What a resident node keeps on disk: its lock, the id SuperLink gave it, and what an operator reads about it.

Nothing here is secret, and nothing is needed to go on but the id: a full disk stops no work.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

from fedlearn.errors import DeploymentRefused
from fedlearn.files import write_durably

LOCK_FILE = ".node"
IDENTITY_FILE = "node.json"
STATUS_FILE = "status.json"

logger = logging.getLogger(__name__)


class NodeState(StrEnum):
    """What a node is doing."""

    CONNECTING = "connecting"
    ONLINE = "online"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What ``status.json`` says.

    Args:
        state: what the node is doing.
        reason: why it is not online, or "".
        since: ISO time of the last change of state.
        node_id: Flower's id, once it is known.
        answered: questions answered since the process began, error replies included.
        metrics_port: where /metrics, /healthz and /readyz are.
    """

    state: NodeState = NodeState.CONNECTING
    reason: str = ""
    since: str = ""
    node_id: int | None = None
    answered: int = 0
    metrics_port: int = 0


class NodeDirectory:
    """The state directory of one node process.

    Args:
        path: is made if need be, for its owner only.

    Raises:
        DeploymentRefused: it cannot be made, or another process runs the node.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.status = NodeStatus(since=_now())
        self._stale = False
        self._speaking = threading.Lock()
        self._lock = self._locked()
        self._write()

    def known_id(self) -> int | None:
        """Return the id of the last activation, if it can be read; without it, a killed node waits to be let in."""
        try:
            found: Any = json.loads((self.path / IDENTITY_FILE).read_text(encoding="utf-8"))["node_id"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning(
                "%s cannot be read; a node that was killed is let in again after some seconds", IDENTITY_FILE
            )
            return None
        return found if isinstance(found, int) else None

    def remember(self, node_id: int) -> None:
        """Keep the id that SuperLink knows this node by."""
        if self.known_id() != node_id:
            self._try(lambda: write_durably(self.path / IDENTITY_FILE, json.dumps({"node_id": node_id}).encode()))
        self._change(node_id=node_id)

    def say(self, state: NodeState, reason: str = "") -> None:
        """Tell the operator what the node is doing; log it if that is news."""
        if (state, reason) == (self.status.state, self.status.reason) and not self._stale:
            return
        if (state, reason) != (self.status.state, self.status.reason):
            logger.log(logging.WARNING if reason else logging.INFO, "%s%s", state, f": {reason}" if reason else "")
        since = self.status.since if state is self.status.state else _now()
        self._change(state=state, reason=reason, since=since)

    def count(self) -> None:
        """One more question is answered."""
        self._change(answered=self.status.answered + 1)

    def listen(self, metrics_port: int) -> None:
        """Say where the metrics are served."""
        self._change(metrics_port=metrics_port)

    def close(self) -> None:
        """Let another process run the node."""
        self._lock.close()

    def _change(self, **fields: Any) -> None:
        with self._speaking:  # the heartbeat thread says when the node drains
            self.status = replace(self.status, **fields)
            self._write()

    def _write(self) -> None:
        said = self.status
        plain = {
            "pid": os.getpid(),
            "state": said.state,
            "reason": said.reason,
            "since": said.since,
            "metrics_port": said.metrics_port,
            "node_id": said.node_id,
            "answered": said.answered,
        }
        self._try(lambda: _replace(self.path / STATUS_FILE, json.dumps(plain)))

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self._stale:
                logger.warning("the state directory cannot be written (%s); the work goes on", error.strerror)
            self._stale = True
        else:
            self._stale = False

    def _locked(self) -> TextIO:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = (self.path / LOCK_FILE).open("a", encoding="utf-8")
        except OSError as error:
            raise DeploymentRefused(
                f"--state {self.path}: cannot be used ({error.strerror}); choose another."
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise DeploymentRefused(
                f"--state {self.path}: another process runs this node; a second one needs a key and a state of its own."
            ) from error
        return file


def _replace(path: Path, text: str) -> None:
    """Replace a file that readers see whole; it need not outlive a power cut."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
