"""New TLS certificates for a deployment, under the same authority or a new one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from cryptography import x509

from fedlearn.errors import DeploymentRefused, SuperLinkRefused, SuperLinkUnreachable
from fedlearn_server.deployment import processes
from fedlearn_server.deployment.certificates import issue_server, make_authority, now_utc
from fedlearn_server.deployment.layout import locked
from fedlearn_server.deployment.nodes import Say, silent
from fedlearn_server.deployment.operator import open_control
from fedlearn_server.deployment.records import NOT_STARTED, Deployment, opened, saved
from fedlearn_server.deployment.superlink import stop_superlink
from fedlearn_server.deployment.up import in_words

PROXY: Final = "proxy"
"""Stem of the proxy's key and certificate, beside SuperLink's."""
DRAIN_S: Final = 28.0


def renew_certificates(directory: Path, *, new_ca: bool = False, say: Say = silent) -> Deployment:
    """Make SuperLink, and the proxy if there is one, a new key and certificate; stop SuperLink, `up` starts it with it.

    Args:
        directory: of the deployment.
        new_ca: also make a new authority. Nodes of this machine are stopped, `up` starts them with its certificate;
            nodes elsewhere need the new ca.crt before they are let in again.
        say: told what is going on.

    Raises:
        DeploymentRefused: a run is going, or the authority's key is not there.
    """
    with in_words(directory), locked(opened(directory).layout):
        deployment = opened(directory)
        _require_no_run(deployment, say)
        certificates = deployment.layout.certificates
        names = {stem: names_in(certificates / f"{stem}.crt") for stem in ("server", PROXY)}
        if new_ca:
            make_authority(certificates, now_utc())
            say(f"new authority: give every node elsewhere {deployment.ca}")
        for stem, named in names.items():
            if stem == "server" or named:
                issue_server(certificates, now_utc(), named, stem)
        stop_superlink(deployment.superlink)
        if new_ca:  # they trust the old one until they start anew
            processes.stop([node.process for node in deployment.nodes], DRAIN_S)
            deployment = replace(
                deployment, nodes=tuple(replace(node, process=NOT_STARTED) for node in deployment.nodes)
            )
        if names[PROXY]:
            say("the proxy has a new certificate: reload it")
        return saved(replace(deployment, superlink=NOT_STARTED))


def names_in(certificate: Path) -> tuple[str, ...]:
    """Return the names and addresses that a certificate is for; none if it cannot be read."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return ()
    return tuple(str(name.value) for name in names)


def _require_no_run(deployment: Deployment, say: Say) -> None:
    if not processes.is_running(deployment.superlink):
        return
    with suppress(SuperLinkUnreachable, SuperLinkRefused):  # as it will if its certificate has expired
        control = open_control(deployment)
        try:
            going = [str(run.run_id) for run in control.runs() if not run.is_over]
        finally:
            control.close()
        if going:
            raise DeploymentRefused(
                f"run {', '.join(going)} is going and SuperLink must be started anew; wait for the end, or stop it "
                "with `fedlearn down --stop-runs`: `fedlearn resume` goes on with it."
            )
        return
    say("SuperLink does not answer; it is started anew regardless")
