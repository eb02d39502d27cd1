"""The reverse proxy before SuperLink: an nginx configuration that lets nodes through, and nothing else."""

from __future__ import annotations

import string
from dataclasses import dataclass
from importlib.resources import files
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from fedlearn.errors import OutOfRange
from fedlearn.wire import MAX_MESSAGE_BYTES

__all__ = ["NODE_PATHS", "STOCK_PATHS", "ProxySettings", "render_proxy"]

TEMPLATE: Final = "proxy.conf.template"
FLEET: Final = "/v1/fleet"
NODE_PATHS: Final = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "pull-object",
    "confirm-message-received",
    "push-messages",
    "push-object",
)
"""What a resident node calls. Not ``register-node`` and ``unregister-node``: who is a node, the operator decides."""
STOCK_PATHS: Final = ("get-run", "get-fab")
"""What Flower's own SuperNode calls besides: it fetches the code that it runs."""
NODE_HEADERS: Final = (
    "flwr-public-key",
    "flwr-timestamp",
    "flwr-signature",
    "flwr-package-name",
    "flwr-package-version",
    "flwr-component-name",
)
"""A node's signature and version."""
CALLS_A_NODE: Final = 30
"""A second. A waiting node pulls at most twenty times a second."""
BURST_A_NODE: Final = 100
CONNECTIONS_A_NODE: Final = 4
TREE_LIMIT: Final = "4m"
"""A push-messages body: identifiers of objects, no content."""
UNQUOTABLE: Final = frozenset("\"'\\$;{}")
MAX_NODES: Final = 10_000
BODY_MB: Final = 64
"""Room for 8 million weights. Less than the wire's cap, on purpose: SuperLink, which alone checks signatures, sees a
call when its body is whole; until then nginx keeps this many bytes a connection for whoever sends them."""
MAX_BODY_MB: Final = MAX_MESSAGE_BYTES // 2**20 + 1
"""The wire's cap, and what Flower puts around a message: no node sends more."""


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """One proxy.

    Args:
        listen: ``IP:PORT`` where nodes connect, e.g. ``0.0.0.0:9443`` or ``[::]:9443``.
        upstream: SuperLink's ``HOST:PORT``, on a private address.
        upstream_name: a DNS name in SuperLink's certificate; nginx does not check IP addresses in one.
        ca: the authority that SuperLink's certificate must come from.
        certificate: the proxy's own, with the names that nodes use.
        key: of that certificate.
        work: for the process id and for bodies on their way; best on a tmpfs.
        log: a directory for access.log and error.log.
        stock_supernodes: also open what Flower's own SuperNode needs.
        max_body_mb: largest object that a node may push, MiB in [1, 257]: an update, 8 bytes a weight.
        nodes_per_address: nodes that may share an address, in [1, 10000]; rates and connections follow from it.
        user: whom nginx's workers run as if root starts it; None: never started by root.

    Raises:
        OutOfRange: a value that has no place in an nginx configuration.
    """

    listen: str
    upstream: str
    ca: Path
    certificate: Path
    key: Path
    work: Path
    log: Path
    upstream_name: str = "localhost"
    stock_supernodes: bool = False
    max_body_mb: int = BODY_MB
    nodes_per_address: int = 16
    user: str | None = None

    def __post_init__(self) -> None:
        _require_listen(self.listen)
        _split("upstream", self.upstream)
        for name in ("ca", "certificate", "key", "work", "log"):
            _require_path(name, getattr(self, name))
        for name in ("upstream_name", "user"):
            value = getattr(self, name)
            if value is not None and (not value or not set(value) <= set(string.ascii_letters + string.digits + "._-")):
                raise OutOfRange(f"{name}={value!r}: letters, digits, '.', '_' and '-' only.")
        _require_between("max_body_mb", self.max_body_mb, MAX_BODY_MB)
        _require_between("nodes_per_address", self.nodes_per_address, MAX_NODES)

    @property
    def paths(self) -> tuple[str, ...]:
        """The open paths, in full."""
        names = NODE_PATHS + (STOCK_PATHS if self.stock_supernodes else ())
        return tuple(f"{FLEET}/{name}" for name in names)


class _Template(string.Template):
    delimiter = "%"  # nginx's own variables begin with a dollar sign


def render_proxy(settings: ProxySettings) -> str:
    """Return the configuration: a whole file, for an nginx of its own."""
    template = _Template(files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"))
    nodes = settings.nodes_per_address
    return template.substitute(
        count=len(settings.paths),
        user="" if settings.user is None else f"user {settings.user};\n",
        work=settings.work,
        log=settings.log,
        rate=CALLS_A_NODE * nodes,
        burst=BURST_A_NODE * nodes,
        connections=CONNECTIONS_A_NODE * nodes,
        nodes=nodes,
        upstream=settings.upstream,
        upstream_name=settings.upstream_name,
        listen=settings.listen,
        certificate=settings.certificate,
        key=settings.key,
        ca=settings.ca,
        calls="".join(f"        {path} {path};\n" for path in settings.paths),
        locations="".join(_location(path, settings) for path in settings.paths),
        headers="".join(f"        proxy_set_header {name} $http_{name.replace('-', '_')};\n" for name in NODE_HEADERS),
    )


def _location(path: str, settings: ProxySettings) -> str:
    limits = {"push-messages": TREE_LIMIT, "push-object": f"{settings.max_body_mb}m"}
    name = path.rpartition("/")[2]
    lines = [f"location = {path} {{"]
    if name in limits:
        lines.append(f"    client_max_body_size {limits[name]};")
    if name == "activate-node":  # a key that is not known costs SuperLink a search
        lines.append(f"    limit_req zone=activations burst={4 * settings.nodes_per_address} nodelay;")
        lines.append(f"    limit_req zone=calls burst={BURST_A_NODE * settings.nodes_per_address} nodelay;")
    lines += [f"    proxy_pass https://superlink{path};", "}"]
    return "".join(f"        {line}\n" for line in lines)


def _require_listen(value: str) -> None:
    host, _ = _split("listen", value)
    try:
        address: IPv4Address | IPv6Address = ip_address(host.strip("[]"))
    except ValueError as error:
        raise OutOfRange(f"listen={value!r}: not IP:PORT, e.g. 0.0.0.0:9443 or [::]:9443.") from error
    if (address.version == 6) != host.startswith("["):
        raise OutOfRange(f"listen={value!r}: an IPv6 address stands in brackets, e.g. [::]:9443.")


def _split(name: str, value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    usable = set(host) <= set(string.ascii_letters + string.digits + ".-:[]")
    if not host or not usable or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise OutOfRange(f"{name}={value!r}: not HOST:PORT with a port in [1, 65535].")
    return host, int(port)


def _require_path(name: str, path: Path) -> None:
    text = str(path)
    if not path.is_absolute():
        raise OutOfRange(f"{name}={text!r}: nginx needs an absolute path.")
    if not text.isprintable() or UNQUOTABLE & set(text):
        raise OutOfRange(f"{name}={text!r}: a path with a character that nginx gives a meaning; choose another place.")


def _require_between(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise OutOfRange(f"{name}={value}: must be in [1, {most}].")
