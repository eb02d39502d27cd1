"""Roster, status and the one verify function: who signed, since when, until when, and what was taken back."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedlearn.errors import PolicyInvalid, SignatureRefused, StatusRefused
from fedlearn.policy.document import PopulationKind
from fedlearn.policy.dsse import POLICY_TYPE, ROSTER_TYPE, STATUS_TYPE, sign_envelope
from fedlearn.policy.keys import PLACEHOLDER_KEY
from fedlearn.policy.load import policy_bytes, policy_digest, policy_to_json
from fedlearn.policy.roster import open_roster, roster_bytes
from fedlearn.policy.status import MAX_AGE_S, open_status, require_live, status_bytes
from fedlearn.policy.times import format_time
from fedlearn.policy.verify import verify_policy

_spec = importlib.util.spec_from_file_location("policy_papers", Path(__file__).with_name("policy_papers.py"))
assert _spec is not None
assert _spec.loader is not None
p: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = p
_spec.loader.exec_module(p)

NOW = p.NOW


def test_a_signed_policy_is_accepted() -> None:
    verified = verify_policy(p.policy_envelope(), p.roster_envelope(), p.ROOTS, NOW)
    assert (verified.policy, verified.digest, verified.roster) == (p.POLICY, policy_digest(p.POLICY), p.ROSTER)


def test_the_roster_decides_who_signs() -> None:
    for signers in ((p.ANNE,), (p.ANNE, p.STRANGER), (p.ROOT, p.STATUS_KEY)):
        with pytest.raises(SignatureRefused, match="policy: signed by"):
            verify_policy(p.policy_envelope(signers=signers), p.roster_envelope(), p.ROOTS, NOW)
    with pytest.raises(SignatureRefused, match="roster: signed by 0"):
        verify_policy(p.policy_envelope(), p.roster_envelope(signers=(p.ANNE,)), p.ROOTS, NOW)
    # a new root beside the old one: either may sign
    assert open_roster(p.roster_envelope(signers=(p.STRANGER,)), (p.ROOT.public, p.STRANGER.public), NOW) == p.ROSTER


def test_documents_do_not_stand_in_for_each_other() -> None:
    """A status key cannot make a roster, nor a roster pass for a policy, by signing bytes under another type."""
    for kind, payload, signers in (
        (ROSTER_TYPE, policy_bytes(p.POLICY), (p.ROOT,)),
        (ROSTER_TYPE, status_bytes(p.STATUS), (p.ROOT,)),
        (ROSTER_TYPE, b"{}", (p.ROOT,)),
    ):
        with pytest.raises(PolicyInvalid):
            open_roster(sign_envelope(kind, payload, signers), p.ROOTS, NOW)
    with pytest.raises(SignatureRefused, match="expected"):
        open_roster(sign_envelope(POLICY_TYPE, roster_bytes(p.ROSTER), (p.ROOT,)), p.ROOTS, NOW)
    with pytest.raises(PolicyInvalid):
        open_status(sign_envelope(STATUS_TYPE, roster_bytes(p.ROSTER), (p.STATUS_KEY,)), p.ROSTER, NOW, 0)


def test_a_roster_never_goes_back_and_expires() -> None:
    data = p.roster_envelope()
    assert open_roster(data, p.ROOTS, NOW, seen_version=5) == p.ROSTER
    with pytest.raises(SignatureRefused, match="version 6 was seen before"):
        verify_policy(p.policy_envelope(), data, p.ROOTS, NOW, seen_roster=6)
    for later in (p.ROSTER.expires_at, p.ROSTER.expires_at + 1, float("nan")):
        with pytest.raises(SignatureRefused, match="has passed"):
            open_roster(data, p.ROOTS, later)
        with pytest.raises(SignatureRefused, match="has passed"):
            open_status(p.status_envelope(), p.ROSTER, later, 0)
    assert open_roster(data, p.ROOTS, p.ROSTER.expires_at - 1) == p.ROSTER


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 0),
        ("expires", "tomorrow"),
        ("threshold", 0),
        ("threshold", 4),
        ("approvers", ()),
        ("approvers", (p.ANNE.public, p.ANNE.public, p.BEN.public)),
        ("approvers", (p.ANNE.public, p.BEN.public.upper(), p.CLARA.public)),
        ("approvers", (p.ANNE.public, p.BEN.public, PLACEHOLDER_KEY)),
        ("approvers", tuple(p.Key(n).public for n in range(1, 34))),
        ("status_keys", ()),
    ],
)
def test_a_roster_out_of_range_is_refused(field: str, value: Any) -> None:
    with pytest.raises(PolicyInvalid, match=rf"roster\.{field}"):
        replace(p.ROSTER, **{field: value})


def test_a_policy_that_expired_or_was_signed_in_another_form() -> None:
    late = replace(p.POLICY, expires=format_time(NOW))
    with pytest.raises(PolicyInvalid, match="expires="):
        verify_policy(p.policy_envelope(late), p.roster_envelope(), p.ROOTS, NOW)
    assert verify_policy(p.policy_envelope(late), p.roster_envelope(), p.ROOTS, NOW - 1).policy == late
    spaced = sign_envelope(POLICY_TYPE, json.dumps(policy_to_json(p.POLICY)).encode(), (p.ANNE, p.BEN))
    with pytest.raises(PolicyInvalid, match="canonical"):
        verify_policy(spaced, p.roster_envelope(), p.ROOTS, NOW)


def test_what_no_signature_can_allow() -> None:
    for collection in ("screen", "notification", "accessibility"):
        scraped = replace(p.POLICY, sources=(replace(p.POLICY.sources[0], collection=collection),))
        with pytest.raises(PolicyInvalid, match=rf"sources\[0\]\.collection={collection}"):
            verify_policy(p.policy_envelope(scraped), p.roster_envelope(), p.ROOTS, NOW)
    nobody = replace(p.POLICY.recipients[2], task_key=PLACEHOLDER_KEY)
    open_to_all = replace(p.POLICY, recipients=(*p.POLICY.recipients[:2], nobody))
    with pytest.raises(PolicyInvalid, match=r"recipients\[2\]\.task_key"):
        verify_policy(p.policy_envelope(open_to_all), p.roster_envelope(), p.ROOTS, NOW)
    simulated = replace(open_to_all, population=replace(p.POLICY.population, kind=PopulationKind.SIMULATED))
    assert verify_policy(p.policy_envelope(simulated), p.roster_envelope(), p.ROOTS, NOW).policy == simulated


def test_a_disputed_source_does_not_void_the_policy() -> None:
    """A phone maker marks it in a hurry; the consent engine never uses it."""
    disputed = replace(p.POLICY, sources=(replace(p.POLICY.sources[0], disputed=True), p.POLICY.sources[1]))
    assert verify_policy(p.policy_envelope(disputed), p.roster_envelope(), p.ROOTS, NOW).policy == disputed


def test_a_status_is_fresh_or_nothing() -> None:
    issued = p.STATUS.issued_at
    for now in (issued - 300, issued, issued + MAX_AGE_S):
        assert open_status(p.status_envelope(), p.ROSTER, now, 0) == p.STATUS
    for now, words in ((issued + MAX_AGE_S + 1, "24 hours"), (issued - 301, "ahead"), (float("-inf"), "ahead")):
        with pytest.raises(StatusRefused, match=words):
            open_status(p.status_envelope(), p.ROSTER, now, 0)
        with pytest.raises(StatusRefused, match=words):
            require_live(p.STATUS, [], now)
    with pytest.raises(StatusRefused):
        require_live(p.STATUS, [], float("nan"))


def test_a_status_version_only_grows() -> None:
    data = p.status_envelope()
    assert open_status(data, p.ROSTER, NOW, 9).digest == p.STATUS.digest
    assert open_status(data, p.ROSTER, NOW, 9, seen_digest=p.STATUS.digest) == p.STATUS
    with pytest.raises(StatusRefused, match="version 10 was seen"):
        open_status(data, p.ROSTER, NOW, 10)
    twin = replace(p.STATUS, revoked=())
    assert twin.digest != p.STATUS.digest
    with pytest.raises(StatusRefused, match="another content"):
        open_status(p.status_envelope(twin), p.ROSTER, NOW, 9, seen_digest=p.STATUS.digest)
    assert open_status(p.status_envelope(replace(twin, version=10)), p.ROSTER, NOW, 9, seen_digest=p.STATUS.digest)


def test_only_a_status_key_signs_a_status() -> None:
    for key in (p.ROOT, p.ANNE, p.STRANGER):
        with pytest.raises(SignatureRefused):
            open_status(p.status_envelope(signers=(key,)), p.ROSTER, NOW, 0)


def test_what_is_stopped_or_revoked_may_not_be_used() -> None:
    require_live(p.STATUS, ["c" * 64, "d" * 64], NOW)
    require_live(p.STATUS, [], NOW)
    for digest, words in (("a" * 64, "stopped"), ("b" * 64, "revoked")):
        with pytest.raises(StatusRefused, match=words):
            require_live(p.STATUS, ["c" * 64, digest], NOW)
    everything = replace(p.STATUS, stopped=("*",))
    for digests in ([], ["c" * 64]):
        with pytest.raises(StatusRefused, match="everything"):
            require_live(everything, digests, NOW)
    with pytest.raises(StatusRefused, match="none has arrived"):
        require_live(None, [], NOW)
    for wrong in ("", "A" * 64, "c" * 63, "*"):
        with pytest.raises(StatusRefused, match="not a SHA-256"):
            require_live(p.STATUS, [wrong], NOW)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 0),
        ("issued", "now"),
        ("stopped", ("A" * 64,)),
        ("stopped", ("a" * 64, "a" * 64)),
        ("revoked", ("*",)),
        ("revoked", ("b" * 65,)),
    ],
)
def test_a_status_out_of_range_is_refused(field: str, value: Any) -> None:
    with pytest.raises(PolicyInvalid, match=rf"status\.{field}"):
        replace(p.STATUS, **{field: value})


def test_phones_need_no_numpy_for_any_of_it() -> None:
    code = (
        "import sys, fedlearn.policy.verify, fedlearn.policy.status, fedlearn.policy.floors; "
        "print([name for name in ('numpy', 'yaml', 'rich', 'securesystemslib') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout == "[]\n"
