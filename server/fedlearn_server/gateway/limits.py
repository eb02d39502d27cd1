"""How often one peer, and one device, may ask: token buckets in memory, of bounded number."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final
from urllib.parse import unquote

from fedlearn.errors import OutOfRange

MOST_BUCKETS: Final = 20_000
"""Kept at a time. The one that was used longest ago goes first: whoever fills the table only frees others."""
_IPV6_PREFIX: Final = 64


class Buckets:
    """One token bucket a key.

    A limit holds for one gateway process: behind N of them a device may ask N times as often.

    Args:
        rate: tokens a second, > 0; ``math.inf`` limits nothing.
        burst: at once, >= 1.
        clock: monotonic seconds.
        most: buckets kept, >= 1.

    Raises:
        OutOfRange: names the argument.
    """

    def __init__(
        self, rate: float, burst: int, *, clock: Callable[[], float] = time.monotonic, most: int = MOST_BUCKETS
    ) -> None:
        if not rate > 0.0:
            raise OutOfRange(f"rate={rate}: must be > 0 a second.")
        if burst < 1 or most < 1:
            raise OutOfRange(f"burst={burst}, most={most}: must be >= 1.")
        self._rate = rate
        self._burst = float(burst)
        self._clock = clock
        self._most = most
        self._lock = threading.Lock()
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many buckets are kept."""
        return len(self._left)

    def take(self, key: Hashable) -> bool:
        """Take one token of ``key``; return whether there was one."""
        with self._lock:
            now = self._clock()
            left, at = self._left.pop(key, (self._burst, now))
            left = min(self._burst, left + max(0.0, now - at) * self._rate)
            granted = left >= 1.0
            self._left[key] = (left - 1.0 if granted else left, now)
            if len(self._left) > self._most:
                self._left.popitem(last=False)
            return granted


def address_of(peer: str) -> str:
    """Return the address in a gRPC peer, without its port; what is no such peer, as it is.

    >>> address_of("ipv4:192.0.2.7:51000")
    '192.0.2.7'
    >>> address_of("ipv6:%5B2001:db8::7%5D:51000")
    '2001:db8::7'
    """
    kind, _, rest = peer.partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return peer
    host = unquote(rest).rpartition(":")[0]
    return host.removeprefix("[").removesuffix("]").partition("%")[0]


def limited_as(address: str) -> str:
    """Return what a limit counts an address as: an IPv6 address is its /64, all of which one subscriber has."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, _IPV6_PREFIX), strict=False))
