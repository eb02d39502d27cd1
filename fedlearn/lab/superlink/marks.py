"""Small files in a training's directory by which its submitter and its ServerApp know of each other. ::

    TRAINING/submission.json   the one submission that may be at work; written by the submitter, before it submits
    TRAINING/.serverapp        locked by the ServerApp at work; says who that is
    TRAINING/failure.json      why a submission's ServerApp ended without a model

A ServerApp that finds another submission named, or none, ends without a word: it was given up on, however late it
starts. So nothing has to be known about a submission that was lost on its way.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from fedlearn.errors import FedlearnError, RunDirectoryInUse, RunError, SuperLinkUnreachable
from fedlearn.files import sync_directory, write_durably

SUBMISSION_FILE = "submission.json"
SERVERAPP_FILE = ".serverapp"
FAILURE_FILE = "failure.json"
RETRY_S = 0.1
LONGEST_MESSAGE = 4_000

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Submission:
    """The one submission of a training that may be at work.

    Args:
        submission: its random name; the order has it too.
        order: digest of what was ordered.
        address: of the SuperLink.
        flower_run: Flower's id of the run; None while it is being submitted.
    """

    submission: str
    order: str
    address: str
    flower_run: int | None


@dataclass(frozen=True, slots=True)
class AtWork:
    """The ServerApp that holds a training, or held it last.

    Args:
        pid: of its process, on its machine.
        flower_run: Flower's id of its run.
        submission: which submission it serves.
        metrics_port: where it shows metrics on loopback; None before it does.
    """

    pid: int
    flower_run: int
    submission: str
    metrics_port: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a ServerApp ended.

    Args:
        submission: whose.
        code: of a fedlearn error, else "".
        kind: name of the exception's class.
        message: its words.
    """

    submission: str
    code: str
    kind: str
    message: str

    @staticmethod
    def of(problem: Exception, submission: str) -> Failure:
        """Return what is kept of an exception."""
        code = problem.code if isinstance(problem, FedlearnError) else ""
        return Failure(submission, code, type(problem).__name__, str(problem)[:LONGEST_MESSAGE])

    @property
    def is_transient(self) -> bool:
        """Whether another ServerApp may well go on: it lost its SuperLink, not its way."""
        return self.code == SuperLinkUnreachable.code

    def error(self) -> FedlearnError:
        """Return the error that the submitter raises: of the same class, if the code is known and has one."""
        known = _by_code().get(self.code)
        if known is not None:
            return known(self.message)
        return RunError(f"the ServerApp ended: {' '.join(filter(None, (self.code, self.kind)))}: {self.message}")


class Presence:
    """The lock of a training, held."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def say(self, who: AtWork) -> None:
        """Write who holds it."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(asdict(who)))
        self._file.flush()


@contextmanager
def held(directory: Path, wait_s: float) -> Iterator[Presence]:
    """Be the one ServerApp at work on a training.

    Args:
        directory: of the training.
        wait_s: seconds to wait for another one, whose SuperLink is gone, to end.

    Raises:
        RunDirectoryInUse: it did not end.
    """
    end = time.monotonic() + wait_s
    with (directory / SERVERAPP_FILE).open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise RunDirectoryInUse(
                        f"{directory}: another ServerApp is at work on it, and did not end in {wait_s:g} s."
                    ) from error
            time.sleep(RETRY_S)
        yield Presence(file)


def is_held(directory: Path) -> bool:
    """Whether a ServerApp is at work on a training; its death, however it dies, ends that."""
    try:
        with (directory / SERVERAPP_FILE).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read_at_work(directory: Path) -> AtWork | None:
    """Return who holds a training, or held it last; None if that is not known, or just being written."""
    return _read(directory / SERVERAPP_FILE, AtWork)


def read_submission(directory: Path) -> Submission | None:
    """Return the submission that may be at work, or None."""
    return _read(directory / SUBMISSION_FILE, Submission)


def write_submission(directory: Path, submission: Submission) -> None:
    """Let this submission be at work from now on, and no other."""
    _write(directory / SUBMISSION_FILE, asdict(submission))


def forget_submission(directory: Path) -> None:
    """Let no submission be at work that is not yet."""
    (directory / SUBMISSION_FILE).unlink(missing_ok=True)
    sync_directory(directory)


def read_failure(directory: Path) -> Failure | None:
    """Return why a ServerApp ended last, or None."""
    return _read(directory / FAILURE_FILE, Failure)


def write_failure(directory: Path, failure: Failure) -> None:
    """Keep why a ServerApp ends."""
    _write(directory / FAILURE_FILE, asdict(failure))


def forget_failure(directory: Path) -> None:
    """Remove what an earlier ServerApp left."""
    (directory / FAILURE_FILE).unlink(missing_ok=True)


def _write(path: Path, content: dict[str, Any]) -> None:
    write_durably(path, (json.dumps(content, indent=1) + "\n").encode())


def _read(path: Path, kind: type[M]) -> M | None:
    try:
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None  # absent, or being written: whoever needs it looks again


def _by_code() -> dict[str, type[FedlearnError]]:
    """Return code -> class of every error that is made of its words alone."""
    found: dict[str, type[FedlearnError]] = {}
    left: list[type[FedlearnError]] = [FedlearnError]
    while left:
        kind = left.pop()
        left.extend(kind.__subclasses__())
        if not any("__init__" in vars(base) for base in kind.__mro__ if issubclass(base, FedlearnError)):
            found[kind.code] = kind
    return found
