"""A resident node: a process on SuperLink's Fleet API that hosts parts of a population and answers for them. ::

    activate -> (pull -> answer -> push) for ever -> deactivate

It lives as long as its machine. What it may run is what is installed: no app is ever asked for. A SuperLink that is
silent is tried again soon, one that refuses slowly, and both say why in the log and in ``status.json``.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from flwr.app import Message, RecordDict

from fedlearn.errors import FedlearnError, SuperLinkRefused, SuperLinkUnreachable
from fedlearn_server.flower import failure_reply
from fedlearn_server.metrics import NodeMetrics, error_code
from fedlearn_server.node_pace import Pace, Rhythm
from fedlearn_server.node_state import NodeDirectory, NodeState
from fedlearn_server.node_stop import Stop

logger = logging.getLogger(__name__)


class Fleet(Protocol):
    """What a node needs of SuperLink (``fedlearn_server.flower.FleetLink``)."""

    def activate(self, known_as: int | None) -> int:
        """Go online."""
        ...

    def deactivate(self) -> None:
        """Go offline."""
        ...

    def heartbeat(self) -> None:
        """Stay online."""
        ...

    def pull(self) -> Message | None:
        """Return the next message."""
        ...

    def push(self, reply: Message) -> bool:
        """Send a reply; False: nobody wants it any more."""
        ...


class Node:
    """One node.

    Args:
        link: to SuperLink.
        answering: makes a question's answer; what it raises becomes an error reply.
        directory: the node's own.
        metrics: counts.
        stop: when it is wished, the question in hand is answered and the node leaves.
        pace: how often.
    """

    def __init__(
        self,
        link: Fleet,
        answering: Callable[[RecordDict], RecordDict],
        directory: NodeDirectory,
        metrics: NodeMetrics,
        *,
        stop: Stop,
        pace: Pace | None = None,
    ) -> None:
        self._link = link
        self._answering = answering
        self._directory = directory
        self._metrics = metrics
        self._stop = stop
        self._pace = pace or Pace()
        self._presence = threading.Lock()  # a heartbeat between deactivation and activation would undo the first
        self._active = False
        self._silent = False
        self._unsent: Message | None = None

    def run(self) -> None:
        """Work until the end is wished; whatever SuperLink does, go on."""
        failures = 0
        with self._heartbeats():
            while not self._stop.wished:
                try:
                    self._connect()
                    failures = 0
                    self._serve()
                except SuperLinkUnreachable as error:
                    failures += 1
                    self._silent = True
                    self._offline(error, min(self._pace.retry, self._pace.shortest * 2.0**failures))
                except Exception as error:  # noqa: BLE001 - refused, or a bug: what can be done is to begin anew, slowly
                    self._active = False
                    self._offline(error, self._pace.refused)
            self._push_last()
        self.leave()

    def leave(self) -> None:
        """Go offline and say so; SuperLink then answers for this node at once."""
        with self._presence:
            if self._active:
                self._active = False
                try:
                    self._link.deactivate()
                except FedlearnError as error:
                    logger.info("could not say good-bye: %s", error.code)
        self._metrics.online(False)
        self._directory.say(NodeState.STOPPED)

    def problem(self) -> str | None:
        """Return why the node is not at work, or None (``fedlearn_server.observe.Health``)."""
        status = self._directory.status
        return None if status.state is NodeState.ONLINE else f"{status.state}: {status.reason}".rstrip(": ")

    def _connect(self) -> None:
        if not self._active:
            with self._presence:
                self._directory.remember(
                    self._link.activate(self._directory.status.node_id or self._directory.known_id())
                )
                self._active = True
        elif self._silent:
            self._link.heartbeat()  # SuperLink may have taken the node for gone
        self._silent = False

    def _serve(self) -> None:
        """Answer until the end is wished, or the link fails."""
        rhythm = Rhythm(self._pace, time.monotonic())
        while True:
            self._push()
            if self._stop.wished:
                return
            asked = time.monotonic()
            message = self._link.pull()
            pulled = time.monotonic()
            self._online()
            if message is None:
                self._stop.wait(rhythm.empty(pulled - asked, pulled))
            else:
                self._unsent = self._answer(message)
                rhythm.question(pulled, time.monotonic())

    def _answer(self, message: Message) -> Message:
        started = time.monotonic()
        problem: Exception | None = None
        try:
            reply = Message(self._answering(message.content), reply_to=message)
        except Exception as error:  # noqa: BLE001 - whatever a question does, the node goes on
            problem = error
            reply = failure_reply(message, error)
            said = type(error).__name__  # its words may quote data
            logger.warning("a question ended in a failure: %s %s", said, error_code(error), extra=_labels(message))
        else:
            logger.info("answered", extra=_labels(message))
        self._metrics.answered(time.monotonic() - started, problem)
        self._directory.count()
        return reply

    def _push(self) -> None:
        """Push the answer in hand; it stays in hand only where SuperLink is silent."""
        reply = self._unsent
        if reply is None:
            return
        if time.time() > reply.metadata.created_at + reply.metadata.ttl:
            logger.warning("an answer came too late", extra=_labels(reply))
        else:
            try:
                if not self._link.push(reply):
                    logger.info("an answer is not wanted: its run is over", extra=_labels(reply))
            except SuperLinkRefused as error:
                logger.warning("an answer is refused: %s", error.code, extra=_labels(reply))
        self._unsent = None

    def _push_last(self) -> None:
        """Push the answer in hand, if SuperLink went away with it unsent; whoever wished the end sets the bound."""
        while self._unsent is not None:
            try:
                self._push()
            except SuperLinkUnreachable:
                time.sleep(self._pace.longest)

    def _online(self) -> None:
        if not self._stop.wished:
            self._directory.say(NodeState.ONLINE)
            self._metrics.online(True)

    def _offline(self, error: Exception, wait: float) -> None:
        self._metrics.link_failed(error)
        self._metrics.online(False)
        known = isinstance(error, FedlearnError)
        said = f"{error_code(error)} {error}" if known else f"{type(error).__name__}: a bug in this node"
        self._directory.say(NodeState.CONNECTING, said)
        self._stop.wait(wait * random.uniform(0.5, 1.0))  # noqa: S311 - many nodes must not come back at once

    @contextmanager
    def _heartbeats(self) -> Iterator[None]:
        done = threading.Event()
        thread = threading.Thread(target=self._beat, args=(done,), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _beat(self, done: threading.Event) -> None:
        """Stay online while a question is worked on; what fails here, the next pull meets too."""
        while not done.is_set():
            if self._stop.wait(self._pace.heartbeat):
                self._directory.say(NodeState.DRAINING)
                done.wait(self._pace.heartbeat)
            with self._presence:
                if not self._active or done.is_set():
                    continue
                try:
                    self._link.heartbeat()
                except Exception as error:  # noqa: BLE001 - without heartbeats the node would count as gone
                    self._metrics.link_failed(error)
                    logger.debug("heartbeat: %s", error_code(error))


def _labels(message: Message) -> dict[str, str]:
    """What a log line says of a message: which run and step, never what is in it."""
    return {"run_id": str(message.metadata.run_id), "step": message.metadata.group_id}
