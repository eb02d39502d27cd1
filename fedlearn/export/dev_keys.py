"""Keys and signed documents for a demonstration on one machine: one person holds every key, so nobody is protected."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fedlearn.errors import OutOfRange
from fedlearn.files import write_durably
from fedlearn.ledger.signing import PUBLIC_SUFFIX, SigningKey, make_key_pair, read_key
from fedlearn.policy.document import Policy, RecipientKind
from fedlearn.policy.dsse import POLICY_TYPE, ROSTER_TYPE, STATUS_TYPE, sign_envelope
from fedlearn.policy.load import policy_bytes
from fedlearn.policy.roster import Roster, roster_bytes
from fedlearn.policy.status import Status, status_bytes
from fedlearn.policy.times import format_time

KEYS: Final = ("root", "approver-1", "approver-2", "status", "task")
STAMP: Final = "DEMONSTRATION-KEYS.txt"
SUFFIX: Final = "-dev"
ROSTER_FILE: Final = "roster.dsse.json"
STATUS_FILE: Final = "status.dsse.json"
POLICY_FILE: Final = "policy.dsse.json"

_YEAR_S: Final = 365 * 86_400
_WARNING: Final = """These keys are for a demonstration on one machine.

One directory holds the root, both approvers, the status key and the operator's task key, so signatures under them
prove nothing about who approved what. A real root key is made offline, and each approver makes a key of their own
(fedlearn ledger keygen). Never put root.key.pub into a phone that somebody uses. The policy signed here has the name
of yours with "-dev" behind it, and the operator's task_key is the one in this directory.
"""


@dataclass(frozen=True, slots=True)
class DevDocuments:
    """What a demonstration signs with, and what it signed.

    Args:
        policy: yours, renamed, with the task key of this directory.
        policy_envelope, roster_envelope: signed.
        approvers: both.
        root: public key, 64 hexadecimal digits.
    """

    policy: Policy
    policy_envelope: bytes
    roster_envelope: bytes
    approvers: tuple[SigningKey, SigningKey]
    root: str


def make_dev_documents(directory: Path, policy: Policy, now: float) -> DevDocuments:
    """Make keys that are not there yet, and sign policy, roster and status anew.

    Args:
        directory: holds keys and documents; made if absent.
        policy: to rehearse.
        now: seconds since the Unix epoch; versions of roster and status are made from it, so that they grow.

    Raises:
        OutOfRange: the directory cannot be written.
        PrivacyError: a key there is damaged, or others can read it.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(directory / STAMP, _WARNING.encode())
    except OSError as error:
        raise OutOfRange(f"--dev-keys {directory}: cannot be written ({error.strerror}); name another.") from error
    keys = {name: _key(directory / f"{name}.key") for name in KEYS}
    approvers = (keys["approver-1"], keys["approver-2"])
    renamed = _with_task_key(policy, keys["task"].public)
    roster = Roster(
        int(now), format_time(now + _YEAR_S), len(approvers), tuple(key.public for key in approvers),
        (keys["status"].public,),
    )  # fmt: skip
    made = DevDocuments(
        policy=renamed,
        policy_envelope=sign_envelope(POLICY_TYPE, policy_bytes(renamed), approvers),
        roster_envelope=sign_envelope(ROSTER_TYPE, roster_bytes(roster), [keys["root"]]),
        approvers=approvers,
        root=keys["root"].public,
    )
    write_durably(directory / POLICY_FILE, made.policy_envelope)
    write_durably(directory / ROSTER_FILE, made.roster_envelope)
    write_durably(directory / STATUS_FILE, dev_status(directory, now))
    return made


def dev_status(directory: Path, now: float, stopped: tuple[str, ...] = (), revoked: tuple[str, ...] = ()) -> bytes:
    """Return a status signed with the directory's status key; it holds for 24 hours."""
    status = Status(int(now), format_time(now), stopped, revoked)
    return sign_envelope(STATUS_TYPE, status_bytes(status), [read_key(directory / "status.key")])


def _key(path: Path) -> SigningKey:
    if not path.exists():
        path.with_name(path.name + PUBLIC_SUFFIX).unlink(missing_ok=True)
        make_key_pair(path)
    return read_key(path)


def _with_task_key(policy: Policy, task_key: str) -> Policy:
    recipients = tuple(
        replace(entry, task_key=task_key) if entry.kind is RecipientKind.OPERATOR else entry
        for entry in policy.recipients
    )
    return replace(policy, name=f"{policy.name}{SUFFIX}", recipients=recipients)
