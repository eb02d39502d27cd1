"""A signed policy, roster or status in which anything was changed is refused, always by an error of ours."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from fedlearn.errors import PolicyInvalid, SignatureRefused, StatusRefused
from fedlearn.policy.roster import open_roster
from fedlearn.policy.status import open_status
from fedlearn.policy.verify import verify_policy

_path = Path(__file__).parents[1] / "unit" / "policy_papers.py"
_spec = importlib.util.spec_from_file_location("policy_papers", _path)
assert _spec is not None
assert _spec.loader is not None
p: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = p
_spec.loader.exec_module(p)

MUTATIONS = 100


def accept_policy(data: bytes) -> object:
    return verify_policy(data, p.roster_envelope(), p.ROOTS, p.NOW)


def accept_roster(data: bytes) -> object:
    return open_roster(data, p.ROOTS, p.NOW)


def accept_status(data: bytes) -> object:
    return open_status(data, p.ROSTER, p.NOW, 0)


PAPERS = [(p.policy_envelope, accept_policy), (p.roster_envelope, accept_roster), (p.status_envelope, accept_status)]


def run(made: Any, accept: Any, count: int, seed: int) -> None:
    """Tamper ``count`` times; every one must be refused."""
    envelope = made()
    accept(envelope)  # control: untouched, it is accepted
    chance = random.Random(seed)
    for number in range(count):
        data = p.tampered(envelope, chance)
        assert data != envelope, number
        with pytest.raises((SignatureRefused, PolicyInvalid, StatusRefused)):
            accept(data)


@pytest.mark.parametrize(("made", "accept"), PAPERS, ids=["policy", "roster", "status"])
def test_nothing_tampered_with_is_accepted(made: Any, accept: Any) -> None:
    run(made, accept, MUTATIONS, 1)


def test_a_verifier_that_looks_at_no_signature_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the check, tampering gets through, so that the test above can fail."""
    monkeypatch.setattr("fedlearn.policy.dsse._holds", lambda envelope, key, what: True)
    with pytest.raises(pytest.fail.Exception):
        run(p.status_envelope, accept_status, MUTATIONS, 1)
