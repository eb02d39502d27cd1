"""``fedlearn policy``: write, check, show and sign a policy; make rosters and statuses; verify an envelope."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

from rich.console import Console

from fedlearn.clock import system_clock
from fedlearn.errors import OutOfRange, PolicyInvalid, SignatureRefused
from fedlearn.files import write_durably
from fedlearn.policy.canonical import parse_strict
from fedlearn.policy.document import Policy
from fedlearn.policy.dsse import (
    MAX_BYTES,
    POLICY_TYPE,
    ROSTER_TYPE,
    STATUS_TYPE,
    add_signature,
    sign_envelope,
    signed_by,
    unverified_payload,
)
from fedlearn.policy.lint import Level, errors_of, lint
from fedlearn.policy.load import load_policy, policy_bytes, policy_digest, policy_from_json, policy_to_json
from fedlearn.policy.roster import Roster, roster_bytes
from fedlearn.policy.show import policy_words
from fedlearn.policy.status import EVERYTHING, Status, open_status, require_live, status_bytes
from fedlearn.policy.times import format_time
from fedlearn.policy.verify import verify_policy

ENVELOPE_SUFFIX: Final = ".dsse.json"


def main(arguments: Sequence[str]) -> int:
    """Run one sub-command and return its exit status."""
    parsed = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = parsed.command
    return command(parsed)


def _lint(given: argparse.Namespace) -> int:
    policy = load_policy(given.file)
    previous = None if given.previous is None else load_policy(given.previous)
    findings = lint(policy, system_clock(), previous)
    if given.json:
        rows = [{"level": finding.level.value, "message": finding.message} for finding in findings]
        _write_json({"name": policy.name, "digest": policy_digest(policy), "findings": rows})
    else:
        for finding in findings:
            _say(f"{finding.level}: {finding.message}")
        counts = [sum(finding.level is level for finding in findings) for level in Level]
        _say(f"{given.file}: {counts[0]} errors, {counts[1]} warnings. Digest {policy_digest(policy)}")
    bad = findings if given.strict else errors_of(findings)
    return 1 if bad else 0


def _show(given: argparse.Namespace) -> int:
    policy, keys = _policy_in(given.file)
    if given.json:
        _write_json(policy_to_json(policy))
        return 0
    console = Console()
    for part in policy_words(policy):
        console.print(part, highlight=False)
    if keys is not None:
        _say("Carries signatures under these keys, UNCHECKED here (fedlearn policy verify checks them):")
        for key in keys:
            _say(f"  {key}")
    return 0


def _template(given: argparse.Namespace) -> int:
    text = files("fedlearn.policy").joinpath("template.yaml").read_bytes()
    if given.out is None:
        sys.stdout.write(text.decode("utf-8"))
        return 0
    if given.out.exists():
        raise OutOfRange(f"--out {given.out}: exists; name a new file.")
    _write(given.out, text)
    return 0


def _sign(given: argparse.Namespace) -> int:
    from fedlearn.ledger.signing import read_key  # noqa: PLC0415  # loads scipy

    policy = load_policy(given.file)
    if wrong := errors_of(lint(policy, system_clock())):
        raise PolicyInvalid(f"{given.file}: not signed. {' '.join(wrong)}")
    out: Path = given.into or given.file.with_name(given.file.stem + ENVELOPE_SUFFIX)
    key = read_key(given.key)
    if out.exists():
        kind, payload = unverified_payload(_read(out))
        if (kind, payload) != (POLICY_TYPE, policy_bytes(policy)):
            raise SignatureRefused(f"{out}: holds another document than {given.file}; name another file with --into.")
        _write(out, add_signature(_read(out), key))
    else:
        _write(out, sign_envelope(POLICY_TYPE, policy_bytes(policy), [key]))
    _say(f"{out}: {len(signed_by(_read(out)))} signatures. Digest {policy_digest(policy)}")
    return 0


def _roster(given: argparse.Namespace) -> int:
    from fedlearn.ledger.signing import read_key, read_public  # noqa: PLC0415  # loads scipy

    roster = Roster(
        given.version,
        given.expires,
        given.threshold,
        tuple(read_public(key) for key in given.approver),
        tuple(read_public(key) for key in given.status_key),
    )
    _write(given.out, sign_envelope(ROSTER_TYPE, roster_bytes(roster), [read_key(given.key)]))
    _say(f"{given.out}: version {roster.version}, {roster.threshold} of {len(roster.approvers)} approvers.")
    return 0


def _status(given: argparse.Namespace) -> int:
    from fedlearn.ledger.signing import read_key  # noqa: PLC0415  # loads scipy

    stopped = tuple(EVERYTHING if digest == "all" else digest for digest in given.stop)
    status = Status(given.version, format_time(system_clock()), stopped, tuple(given.revoke))
    _write(given.out, sign_envelope(STATUS_TYPE, status_bytes(status), [read_key(given.key)]))
    _say(f"{given.out}: version {status.version}, issued {status.issued}, holds for 24 hours.")
    return 0


def _verify(given: argparse.Namespace) -> int:
    from fedlearn.ledger.signing import read_public  # noqa: PLC0415  # loads scipy

    now = system_clock()
    roots = [read_public(key) for key in given.root]
    verified = verify_policy(_read(given.file), _read(given.roster), roots, now, seen_roster=given.seen_roster)
    live = "not checked"
    if given.status is not None:
        status = open_status(_read(given.status), verified.roster, now, given.seen_status)
        require_live(status, [verified.digest], now)
        live = f"version {status.version} of {status.issued}"
    if given.json:
        _write_json({"name": verified.policy.name, "digest": verified.digest, "status": live})
        return 0
    _say(
        f"{given.file}: policy {verified.policy.name}, version {verified.policy.version}, is approved by "
        f"{verified.roster.threshold} of {len(verified.roster.approvers)} on roster {verified.roster.version}."
    )
    _say(f"Digest {verified.digest}. Status: {live}.")
    return 0


def _policy_in(path: Path) -> tuple[Policy, tuple[str, ...] | None]:
    """Return the policy of a file or an envelope, and the key ids an envelope carries."""
    data = _read(path)
    if path.suffix == ".json":
        body = parse_strict(data, MAX_BYTES, path.name)
        if isinstance(body, dict) and "payloadType" in body:
            kind, payload = unverified_payload(data)
            if kind != POLICY_TYPE:
                raise PolicyInvalid(f"{path}: an envelope of {kind[:60]}, not of a policy.")
            return policy_from_json(parse_strict(payload, MAX_BYTES, path.name)), signed_by(data)
    return load_policy(path), None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PolicyInvalid(f"{path}: cannot be read ({error.strerror or error}); name a file.") from error


def _write(path: Path, data: bytes) -> None:
    try:
        write_durably(path, data)
    except OSError as error:
        raise OutOfRange(f"{path}: cannot be written ({error.strerror or error}); name another file.") from error


def _write_json(body: object) -> None:
    sys.stdout.write(json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedlearn policy", description="Write, check, show and sign the rules of a population."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=summary, description=summary)
        found.set_defaults(command=command)
        return found

    lint_parser = add("lint", _lint, "what a reviewer would flag; status 1 if there is an error")
    lint_parser.add_argument("file", type=Path, help="policy in YAML or JSON")
    lint_parser.add_argument("--previous", type=Path, help="the version before: words must not change under one number")
    lint_parser.add_argument("--strict", action="store_true", help="status 1 for warnings too")
    lint_parser.add_argument("--json", action="store_true")
    show = add("show", _show, "the policy in plain words, with its digest")
    show.add_argument("file", type=Path, help="policy, or an envelope that holds one")
    show.add_argument("--json", action="store_true")
    add("template", _template, "a policy to fill in").add_argument("--out", type=Path)
    sign = add("sign", _sign, "sign a policy that lints without error")
    sign.add_argument("file", type=Path)
    sign.add_argument("--key", type=Path, required=True, help="an approver's private key (fedlearn ledger keygen)")
    sign.add_argument("--into", type=Path, help="envelope to write, or to add the signature to")
    roster = add("roster", _roster, "make a roster of signers and sign it with the root key")
    roster.add_argument("--version", type=int, required=True, help="higher than the last")
    roster.add_argument("--expires", required=True, metavar="YYYY-MM-DDTHH:MM:SSZ")
    roster.add_argument("--threshold", type=int, required=True, help="approvers that must sign")
    roster.add_argument("--approver", action="append", required=True, metavar="KEY", help=".pub file; repeat")
    roster.add_argument("--status-key", action="append", required=True, metavar="KEY", help=".pub file; repeat")
    roster.add_argument("--key", type=Path, required=True, help="the root's private key")
    roster.add_argument("--out", type=Path, required=True)
    status = add("status", _status, "make a status and sign it; it holds for 24 hours")
    status.add_argument("--version", type=int, required=True, help="higher than the last")
    status.add_argument("--stop", action="append", default=[], metavar="DIGEST", help="rests for now; all: everything")
    status.add_argument("--revoke", action="append", default=[], metavar="DIGEST", help="may never be used again")
    status.add_argument("--key", type=Path, required=True, help="a status key of the roster")
    status.add_argument("--out", type=Path, required=True)
    verify = add("verify", _verify, "whether a signed policy holds now, as a phone decides it")
    verify.add_argument("file", type=Path, help="envelope")
    verify.add_argument("--roster", type=Path, required=True)
    verify.add_argument("--root", action="append", required=True, metavar="KEY", help="root's .pub file; repeat")
    verify.add_argument("--status", type=Path)
    verify.add_argument("--seen-roster", type=int, default=0, metavar="VERSION")
    verify.add_argument("--seen-status", type=int, default=0, metavar="VERSION")
    verify.add_argument("--json", action="store_true")
    return parser
