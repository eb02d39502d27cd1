"""Token buckets: a burst, then a rate, for each key by itself, in bounded memory; and what a peer is counted as."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedlearn.errors import OutOfRange
from fedlearn_server.gateway.limits import Buckets, address_of, limited_as


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Time:
    return Time()


def test_a_burst_then_the_rate(clock: Time) -> None:
    buckets = Buckets(0.5, 3, clock=clock)
    assert [buckets.take("a") for _ in range(5)] == [True, True, True, False, False]
    clock.now += 1.999
    assert not buckets.take("a")
    clock.now += 0.001
    assert [buckets.take("a") for _ in range(2)] == [True, False]
    clock.now += 1e9
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False], "no more than the burst is saved"


def test_each_key_by_itself(clock: Time) -> None:
    buckets = Buckets(1.0, 1, clock=clock)
    assert [buckets.take(key) for key in (b"a", b"b", b"a", b"b")] == [True, True, False, False]


def test_refusals_cost_nothing(clock: Time) -> None:
    buckets = Buckets(1.0, 1, clock=clock)
    assert buckets.take("a")
    for _ in range(10):
        clock.now += 0.09
        assert not buckets.take("a")
    clock.now += 0.11
    assert buckets.take("a"), "asking in vain does not postpone"


def test_a_clock_that_goes_back_gives_nothing(clock: Time) -> None:
    buckets = Buckets(1.0, 1, clock=clock)
    assert buckets.take("a")
    clock.now -= 50.0
    assert not buckets.take("a")
    clock.now += 1.0
    assert buckets.take("a")


def test_memory_is_bounded_and_the_busy_stay(clock: Time) -> None:
    buckets = Buckets(0.001, 2, clock=clock, most=10)
    buckets.take("busy")
    for stranger in range(1_000):
        buckets.take(stranger)
        if stranger == 5:
            assert buckets.take("busy")
    assert len(buckets) == 10
    for stranger in range(9):
        buckets.take(("again", stranger))
    assert buckets.take("busy"), "it was forgotten, long unused"


def test_an_endless_rate_limits_nothing(clock: Time) -> None:
    buckets = Buckets(math.inf, 1, clock=clock)
    clock.now += 1.0
    assert all(buckets.take("a") for _ in range(100))


def test_threads_share_it() -> None:
    buckets = Buckets(1e-9, 100)
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: buckets.take("a"), range(1_000))) == 100


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 1), (-1.0, 1), (math.nan, 1), (1.0, 0)], ids=range(4))
def test_ranges(rate: float, burst: int) -> None:
    with pytest.raises(OutOfRange):
        Buckets(rate, burst)


@pytest.mark.parametrize(
    ("peer", "address", "counted"),
    [
        ("ipv4:192.0.2.7:51000", "192.0.2.7", "192.0.2.7"),
        ("ipv6:%5B2001:db8::7%5D:51000", "2001:db8::7", "2001:db8::/64"),
        ("ipv6:[2001:db8::ffff:7]:51000", "2001:db8::ffff:7", "2001:db8::/64"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:1", "::ffff:192.0.2.7", "192.0.2.7"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::1", "fe80::/64"),
        ("unix:/run/gateway.sock", "unix:/run/gateway.sock", "unix:/run/gateway.sock"),
        ("", "", ""),
        ("ipv4:", "", ""),
    ],
    ids=range(8),
)
def test_peers(peer: str, address: str, counted: str) -> None:
    assert address_of(peer) == address
    assert limited_as(address_of(peer)) == counted
