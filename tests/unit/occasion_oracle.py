"""The rule of occasions, slowly: every row against every occasion, no windows, no index, no paging."""

from __future__ import annotations

from dataclasses import dataclass

from fedlearn_client.hooks import EarlierChoice, Occasion

DAY_S = 86_400.0


@dataclass(frozen=True)
class Row:
    """One pushed signal: ``row`` is its place in the store, ``kind`` is "message" or "choice"."""

    row: int
    time: float
    app: str
    kind: str
    body: bytes


def _known(rows: list[Row], at: Row | None, time: float, domain: str) -> tuple[list[Row], list[Row]]:
    ordered = sorted(rows, key=lambda one: (one.time, one.row))
    earlier_here = [
        one
        for one in ordered
        if one.kind == "choice"
        and one.body.decode().split(":")[0] == domain
        and (one.time < time or (at is not None and one.time == time and one.row < at.row))
    ]
    said = []
    for one in ordered:
        if one.kind != "message" or not one.time < time or not one.time > time - DAY_S:
            continue
        if all(one.time > choice.time for choice in earlier_here):
            said.append(one)
    choices = [one for one in ordered if one.kind == "choice" and one.time < time]
    return said[-200:], choices[-50:]


def training(rows: list[Row], domain: str, now: float, limit: int) -> list[Occasion]:
    """Return the newest ``limit`` training occasions, oldest first."""
    found = []
    for at in sorted(rows, key=lambda one: (one.time, one.row)):
        if at.kind == "choice" and at.body.decode().split(":")[0] == domain and at.time < now:
            said, choices = _known(rows, at, at.time, domain)
            found.append(_occasion(said, choices, at.body.decode()))
    return found[-limit:] if limit else []


def present(rows: list[Row], domain: str, now: float) -> Occasion:
    """Return what is known now."""
    said, choices = _known(rows, None, now, domain)
    return _occasion(said, choices, "")


def _occasion(said: list[Row], choices: list[Row], chosen: str) -> Occasion:
    return Occasion(
        said=tuple(one.body for one in said),
        earlier=tuple(EarlierChoice(one.body.decode(), one.app) for one in choices),
        chosen=chosen,
    )
