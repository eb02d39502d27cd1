"""How an implementation of the device contract must behave, part by part."""

from __future__ import annotations

from collections.abc import Iterator

from fedlearn_client.conformance import consenting as consent
from fedlearn_client.conformance import installing, recommending, roles, signalling, training, withdrawing
from fedlearn_client.conformance.cases import Case
from fedlearn_client.conformance.phone import Phone


def cases(phone: Phone) -> Iterator[Case]:
    """Yield every case. The first ones want a target that was never used; the others clean up before themselves."""
    yield from installing.first(phone)
    yield from recommending.fresh(phone)
    yield from roles.cases(phone)
    yield from signalling.cases(phone)
    yield from consent.cases(phone)
    yield from withdrawing.cases(phone)
    yield from recommending.cases(phone)
    yield from training.cases(phone)
    yield from installing.last(phone)
