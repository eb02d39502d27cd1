"""Which device keys are known, and what they did in the last days. Functions of one transaction each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection, insert, select, update

from fedlearn.device.credential import Credential
from fedlearn.device.requests import Denial
from fedlearn_server.gateway.tables import Use, check_ins, devices, tokens

CHECK_INS_KEPT_S: Final = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Device:
    """An enrolled device.

    Args:
        key: its Ed25519 key, 32 bytes.
        population: id in the policy.
        enrolled: seconds since the Unix epoch.
        revoked: likewise, or None.
    """

    key: bytes = field(repr=False)
    population: str
    enrolled: float
    revoked: float | None


def enrol(connection: Connection, credential: Credential, device: bytes, now: float) -> Denial | None:
    """Make a device known by a credential that is good and was used by no other key."""
    found = connection.execute(select(devices).where(devices.c.device == device)).one_or_none()
    if found is not None:
        if found.revoked is not None:
            return Denial.REVOKED
        return None if found.population == credential.population else Denial.POPULATION
    used = connection.execute(select(devices.c.device).where(devices.c.serial == credential.serial)).one_or_none()
    if used is not None:
        return Denial.CREDENTIAL
    row = {"device": device, "population": credential.population, "serial": credential.serial, "enrolled": now}
    connection.execute(insert(devices), row)
    return None


def denied(connection: Connection, device: bytes, population: str | None = None) -> Denial | None:
    """Return why a device may not take part, in any population or in this one."""
    found = connection.execute(
        select(devices.c.population, devices.c.revoked).where(devices.c.device == device)
    ).one_or_none()
    if found is None:
        return Denial.UNKNOWN
    if found.revoked is not None:
        return Denial.REVOKED
    return None if population in {None, found.population} else Denial.POPULATION


def revoke(connection: Connection, device: bytes, now: float) -> bool:
    """Revoke a device and the tasks it has in hand; False: it is not known, or was revoked before."""
    changed = connection.execute(
        update(devices).where(devices.c.device == device, devices.c.revoked.is_(None)).values(revoked=now)
    )
    in_hand = (tokens.c.device == device, tokens.c.use == Use.OPEN)
    connection.execute(update(tokens).where(*in_hand).values(use=Use.REJECTED, issued=None, expires=None))
    return changed.rowcount == 1


def all_devices(connection: Connection) -> Sequence[Device]:
    """Return every device that was enrolled, in the order of their keys."""
    shown = select(devices.c.device, devices.c.population, devices.c.enrolled, devices.c.revoked)
    return tuple(Device(*row) for row in connection.execute(shown.order_by(devices.c.device)))


def note_check_ins(connection: Connection, noted: Sequence[Mapping[str, object]]) -> None:
    """Note who asked from where, for abuse; forgotten after ``CHECK_INS_KEPT_S``."""
    connection.execute(insert(check_ins), noted)
