"""``fedlearn export RUN``: signed task bundle and catalogue for phones; ``export approve``: one more signature."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from fedlearn.clock import system_clock
from fedlearn.device.archive import read_archive
from fedlearn.device.bundle import MOST_BUNDLE_BYTES, add_approval
from fedlearn.device.catalogue_bundle import CATALOGUE, add_catalogue_approval, build_catalogue_bundle
from fedlearn.errors import OutOfRange, SignatureRefused
from fedlearn.export.executorch import step_pte
from fedlearn.export.files import task_files
from fedlearn.export.plan import (
    MAX_EXAMPLES,
    PlanOptions,
    Trained,
    columns_of,
    require_catalogue_fits,
    require_exportable,
)
from fedlearn.export.signing import Approval, dev_approval, read_approval, require_bundle_file
from fedlearn.files import write_durably
from fedlearn.lab.exporting import trained_run
from fedlearn.ledger.signing import read_key, read_public
from fedlearn.policy.times import format_time, parse_time

DAYS: Final = 90
"""How long a bundle holds, unless policy or roster end sooner or --expires says otherwise."""

TASK_SUFFIX: Final = ".task.flb"
CATALOGUE_SUFFIX: Final = ".catalogue.flb"
PTE_SUFFIX: Final = ".step.pte"


def main(arguments: Sequence[str]) -> int:
    """Export a run, or add an approval; return the exit status."""
    if arguments and arguments[0] == "approve":
        return _approve(arguments[1:])
    given = _parser().parse_args(arguments)
    now = system_clock()
    trained = trained_run(given.run, given.training, given.name)
    require_exportable(trained)
    approval = _approval(given, now)
    expires = _expires(given.expires, approval, now)
    written: dict[str, bytes] = {}
    parts: dict[str, bytes] = {}
    if not given.catalogue_only:
        options = PlanOptions(
            given.purpose,
            given.recipient,
            given.serves,
            tuple(given.private),
            given.max_examples,
            given.max_catalogue_bytes,
        )
        _, parts = task_files(trained, approval.policy, options)
        task = approval.sign(parts, expires)
        approval.require_acceptable(task, now)
        written[f"{trained.name}{TASK_SUFFIX}"] = task
    else:
        require_catalogue_fits(
            trained.catalogue, given.max_catalogue_bytes or approval.policy.device.max_catalogue_bytes
        )
    written[f"{trained.name}{CATALOGUE_SUFFIX}"] = build_catalogue_bundle(
        trained.catalogue, version=given.catalogue_version or int(now), expires=expires, signers=approval.signers
    )
    if given.pte:
        written[f"{trained.name}{PTE_SUFFIX}"] = _pte(trained)
    _write(given.out, written)
    _show(given, written, parts, approval, expires)
    return 0


def _approve(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="fedlearn export approve", description="Add an approver's signature.")
    parser.add_argument("bundle", type=Path, help="task or catalogue bundle; replaced by one with the signature")
    parser.add_argument("--approver-key", type=Path, required=True, help="private key of an approver on the roster")
    given = parser.parse_args(arguments)
    data = require_bundle_file(given.bundle, MOST_BUNDLE_BYTES)
    key = read_key(given.approver_key)
    add = add_catalogue_approval if CATALOGUE in read_archive(data, MOST_BUNDLE_BYTES) else add_approval
    _write(given.bundle.parent, {given.bundle.name: add(data, key)})
    Console().print(f"{given.bundle}: signed by {key.public}.", markup=False, highlight=False, soft_wrap=True)
    return 0


def _approval(given: argparse.Namespace, now: float) -> Approval:
    if given.dev_keys is not None:
        if given.approver_key or given.roster or given.root:
            raise SignatureRefused(
                "--dev-keys: makes roster and keys itself; leave out --roster, --approver-key, --root."
            )
        return dev_approval(given.dev_keys, given.policy, now)
    if given.roster is None:
        raise SignatureRefused("--roster: name the roster that the root signed, or use --dev-keys for a demonstration.")
    root = "" if given.root is None else read_public(given.root)
    return read_approval(given.policy, given.roster, [read_key(path) for path in given.approver_key], root, now)


def _expires(asked: str | None, approval: Approval, now: float) -> float:
    """Return when the bundle expires: what was asked for, or ``DAYS`` from now, never after policy and roster."""
    latest = min(parse_time(approval.policy.expires, "policy.expires"), approval.roster.expires_at)
    expires = min(latest, now + DAYS * 86_400) if asked is None else parse_time(asked, "--expires")
    if not now < expires <= latest:
        raise OutOfRange(f"--expires {format_time(expires)}: must lie between now and {format_time(latest)}.")
    return expires


def _pte(trained: Trained) -> bytes:
    return step_pte(trained.model, columns_of(trained), trained.terms.batch_size, trained.terms.example_privacy)


def _write(directory: Path, files: dict[str, bytes]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_durably(directory / name, data)
    except OSError as error:
        raise OutOfRange(f"--out {directory}: cannot be written ({error.strerror or error}); name another.") from error


def _show(
    given: argparse.Namespace, written: dict[str, bytes], parts: dict[str, bytes], approval: Approval, expires: float
) -> None:
    table = Table("file", "bytes", title=str(given.out), title_justify="left")
    table.columns[1].justify = "right"
    for name, data in written.items():
        table.add_row(name, f"{len(data):,}")
        if name.endswith(TASK_SUFFIX):
            for part in sorted(parts):
                table.add_row(f"  {part}", f"{len(parts[part]):,}", style="dim")
    out = Console()
    out.print(table)
    lines = [f"Expires {format_time(expires)}. {len(approval.signers)} of {approval.roster.threshold} approvals."]
    if given.dev_keys is not None:
        lines.append(f"DEMONSTRATION KEYS, one person holds them all: root {approval.root}, in {given.dev_keys}.")
    elif not approval.is_enough:
        lines.append(
            "Not enough: each other approver adds one with `fedlearn export approve BUNDLE --approver-key KEY`."
        )
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedlearn export",
        description="Write a signed task bundle and a signed catalogue bundle for phones from a finished run. "
        "`fedlearn export approve BUNDLE --approver-key KEY` adds a signature.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run directory, trained with a mechanism that bounds participation")
    add("--policy", type=Path, required=True, help="policy file, signed here, or an envelope that approvers signed")
    add("--out", type=Path, required=True, metavar="DIR")
    add("--roster", type=Path, help="roster, signed by the root (fedlearn policy roster)")
    add("--approver-key", type=Path, action="append", default=[], metavar="KEY", help="private key; repeat")
    add("--root", metavar="KEY", help="root's .pub file: checks the bundle as a phone would")
    add("--dev-keys", type=Path, metavar="DIR", help="demonstration: make all keys and documents in DIR")
    add("--expires", metavar="YYYY-MM-DDTHH:MM:SSZ", help=f"of both bundles; {DAYS} days from now by default")
    add("--purpose", help="training purpose of the policy; its first by default")
    add("--recipient", help="operator of the policy; the purpose's first by default")
    add("--serves", help="recommend purpose that the weights serve, or ''; the policy's first by default")
    add("--private", action="append", default=[], metavar="NAME", help="parameter that stays on the phone; repeat")
    add("--training", metavar="NAME", help="foldF-seedS, where a run has several trainings")
    add("--name", help="of the plan and the files; the run's by default")
    add("--max-examples", type=int, default=MAX_EXAMPLES, help="newest examples that a phone trains on")
    add(
        "--catalogue-version", type=int, metavar="N", help="higher than that of the catalogue it replaces; the time now"
    )
    add(
        "--max-catalogue-bytes",
        type=int,
        metavar="N",
        help="that fit the plan; 5,000,000 or the policy's cap by default",
    )
    add("--catalogue-only", action="store_true", help="a new catalogue for a plan that was approved before")
    add("--pte", action="store_true", help="also write the step for ExecuTorch (extra executorch; untested)")
    return parser
