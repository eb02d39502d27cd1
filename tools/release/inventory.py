"""What is in a wheel or an image: a CycloneDX SBOM, a list of licences and their texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedlearn.errors import MissingDependency, TrustError

TOOL_S: Final = 300
SPEC: Final = "1.6"


@dataclass(frozen=True, slots=True)
class Subject:
    """What an inventory is of.

    Args:
        name: e.g. ``fedlearn-server``.
        version: of it.
        kind: CycloneDX's: ``library`` or ``container``.
        sha256: its digest, hex.
    """

    name: str
    version: str
    kind: str
    sha256: str


def write_inventory(
    subject: Subject, python: Path, stem: Path, epoch: int, extra: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write ``STEM.cdx.json``, ``STEM.licences.md`` and ``STEM.licences.txt``.

    Args:
        subject: what they are of.
        python: of an environment with the metadata of its packages, and no others.
        stem: where.
        epoch: the time to put into the SBOM.
        extra: components beside the environment's.

    Raises:
        TrustError: the SBOM does not follow CycloneDX's schema, or a tool failed.
        MissingDependency: the tools are not installed.
    """
    made = json.loads(_run("cyclonedx-py", "environment", "--sv", SPEC, "--output-reproducible", str(python), at=epoch))
    made["metadata"]["component"] = {
        "type": subject.kind,
        "bom-ref": "subject",
        "name": subject.name,
        "version": subject.version,
        "hashes": [{"alg": "SHA-256", "content": subject.sha256}],
    }
    made["components"] = [*made["components"], *extra]
    text = json.dumps(made, indent=1, sort_keys=True) + "\n"
    _require_valid(text, subject.name)
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_name(f"{stem.name}.cdx.json").write_text(text, encoding="utf-8")
    list_, texts = ("--format=markdown", "--with-urls"), ("--format=plain-vertical", "--with-license-file")
    common = ("--with-system", f"--python={python}", "--order=name")
    for suffix, options in (("md", list_), ("txt", (*texts, "--no-license-path", "--with-notice-file"))):
        listed = _run("pip-licenses", *common, *options, at=epoch)
        stem.with_name(f"{stem.name}.licences.{suffix}").write_text(listed, encoding="utf-8")


def debian_components(status: str) -> list[dict[str, Any]]:
    """Return the packages of a Debian image, from its /var/lib/dpkg/status, as CycloneDX components."""
    found = []
    for paragraph in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status") == "install ok installed":
            name, version = fields["Package"], fields["Version"]
            purl = f"pkg:deb/debian/{_quoted(name)}@{_quoted(version)}?arch={fields['Architecture']}"
            found.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return found


def _quoted(text: str) -> str:
    """As package URLs have it: ':' stays, '+' and '~' do not look like anything else."""
    return text.replace("%", "%25").replace("+", "%2B")


def _require_valid(text: str, name: str) -> None:
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415  # of the extra "release"
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        raise TrustError(f"{name}: its SBOM does not follow CycloneDX {SPEC}: {problem}")


def _run(tool: str, *arguments: str, at: int) -> str:
    program = Path(sys.executable).parent / tool
    if not program.exists():
        raise MissingDependency(f"{tool} is not installed: pip install -c constraints.txt -e .[release]")
    done = subprocess.run(
        [str(program), *arguments],
        env={**os.environ, "SOURCE_DATE_EPOCH": str(at), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
        timeout=TOOL_S,
    )
    if done.returncode:
        raise TrustError(f"{tool} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
