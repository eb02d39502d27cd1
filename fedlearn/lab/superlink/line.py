"""The submitter's line to SuperLink: which one it is, and a connection that outlives a SuperLink that was killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from fedlearn.errors import DeploymentRefused, FedlearnError, OutOfRange, SuperLinkRefused, SuperLinkUnreachable
from fedlearn.lab.config import RuntimeConfig

# Flower reports usage to its vendor unless told not to before it is first imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

from fedlearn_server.deployment import default_directory, opened
from fedlearn_server.deployment.operator import open_control
from fedlearn_server.flower import ControlLink, read_operator_token

T = TypeVar("T")

ONLINE = "online"
NODES_S = 5.0
"""Seconds without a round until SuperLink is asked whether any node is online, and between such questions."""


class Calls(Protocol):
    """A line to SuperLink: ``Line``, or a test's."""

    @property
    def address(self) -> str:
        """Of SuperLink."""
        ...

    @property
    def remedy(self) -> str:
        """What to do if it does not answer."""
        ...

    @property
    def nodes_remedy(self) -> str:
        """What to do if no node is there."""
        ...

    def call(self, ask: Callable[[ControlLink], T]) -> T:
        """Return the answer to one call; raise SuperLinkUnreachable if there is none."""
        ...


class Line:
    """Calls SuperLink's control API.

    Args:
        runtime: says which SuperLink, by ``address``, ``ca`` and ``token``; else it is the one of ``fedlearn up``.
    """

    def __init__(self, runtime: RuntimeConfig) -> None:
        self._runtime = runtime
        self._link: ControlLink | None = None
        self._had_one = False

    @property
    def remedy(self) -> str:
        """What to do about a SuperLink that does not answer."""
        if self._runtime.address is None:
            return "`fedlearn up` starts it again."
        return "start it again, or correct runtime.address."

    @property
    def nodes_remedy(self) -> str:
        """What to do about a SuperLink without nodes."""
        if self._runtime.address is not None:
            return "register one there and start it (docs/operations.md)."
        # fewer than it has would be removed, with their keys
        count = "" if opened(default_directory()).nodes else " --nodes 3"
        gateways = "" if self._runtime.fleet is None else " --gateways FILE"
        return f"`fedlearn up{count}{gateways}` starts some."

    @property
    def address(self) -> str:
        """``host:port`` of SuperLink."""
        address = self._runtime.address
        return opened(default_directory()).address if address is None else address

    def call(self, ask: Callable[[ControlLink], T]) -> T:
        """Return the answer to one call.

        Raises:
            SuperLinkUnreachable: there is none, to be tried again.
            SuperLinkRefused: what was asked is refused.
            DeploymentRefused, OutOfRange: there never was such a SuperLink.
        """
        try:
            if self._link is None:
                self._link = self._opened()
                self._had_one = True
            return ask(self._link)
        except SuperLinkUnreachable:
            self.close()  # after a new start it may be at another port
            raise

    def check(self) -> None:
        """Refuse, with what to do, if no SuperLink answers or nobody may be its node; one may yet come online."""
        try:
            nodes = self.call(lambda link: link.nodes())
        except SuperLinkUnreachable as error:
            raise SuperLinkUnreachable(f"{error} {self.remedy}") from error
        finally:
            self.close()
        if not nodes:
            raise DeploymentRefused(
                f"SuperLink at {self.address} has no node, so that nobody would train; {self.nodes_remedy}"
            )

    def close(self) -> None:
        """Close the connection; the next call opens one."""
        if self._link is not None:
            with suppress(FedlearnError):
                self._link.close()
            self._link = None

    def _opened(self) -> ControlLink:
        try:
            return _open(self._runtime)
        except DeploymentRefused as error:
            if self._had_one:
                raise SuperLinkUnreachable(str(error)) from error
            raise


def _open(runtime: RuntimeConfig) -> ControlLink:
    if runtime.address is None or runtime.ca is None:
        return open_control(opened(default_directory()))
    ca = Path(runtime.ca)
    try:
        ca.read_bytes()
    except OSError as error:
        raise OutOfRange(
            f"runtime.ca={ca}: cannot be read ({error.strerror}); name the ca.crt of SuperLink at {runtime.address}."
        ) from error
    try:
        token = None if runtime.token is None else read_operator_token(Path(runtime.token))
    except SuperLinkRefused as error:
        raise OutOfRange(f"runtime.token={error}") from error
    try:
        return ControlLink(runtime.address, ca, token)
    except SuperLinkRefused as error:
        raise OutOfRange(f"runtime.ca={error}") from error


class NodeWatch:
    """Says when a training waits because no node is online.

    Args:
        line: to SuperLink.
        say: told once each time that the last node has gone.
        clock: monotonic seconds.
    """

    def __init__(self, line: Calls, say: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._line = line
        self._say = say
        self._clock = clock
        self._said = False
        self.moved()

    def moved(self) -> None:
        """There was a round: somebody is at work."""
        self._next = self._clock() + NODES_S

    def look(self) -> None:
        """Ask SuperLink, if it is time to; a SuperLink that does not answer is another's business."""
        if self._clock() < self._next:
            return
        self.moved()
        with suppress(FedlearnError):
            found = self._line.call(lambda link: link.nodes())
            is_alone = all(node.status != ONLINE for node in found)
            if is_alone and not self._said:
                self._say(f"waiting: no node is online; {self._line.nodes_remedy}")
            self._said = is_alone
