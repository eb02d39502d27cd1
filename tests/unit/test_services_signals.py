"""Every field of a push is checked before anything happens; messages name fields and never what stood in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.errors import FedlearnError, SignalRefused
from fedlearn.policy.document import DataType
from fedlearn.proto import device_pb2 as pb
from fedlearn_client import limits
from fedlearn_client.services import checks
from fedlearn_client.services.signals import check_signals

NOW = 1_800_000_000.0
MS = round(NOW * 1000)
SECRET = "marmalade"


def message(**changes: object) -> pb.MessageSignal:
    return pb.MessageSignal(**{"text": SECRET, "direction": pb.DIRECTION_OUTGOING, **changes})


def said(name: str = "1", time_ms: int = MS, **changes: object) -> pb.Signal:
    return pb.Signal(id=name, time_ms=time_ms, message=message(**changes))


def chose(item: str) -> pb.Signal:
    return pb.Signal(id="1", time_ms=MS, choice=pb.ChoiceSignal(item=item))


def span(start: int, end: int) -> pb.Span:
    return pb.Span(start=start, end=end)


GOOD = [
    said(),
    said("x" * 64),
    said(time_ms=0),
    said(time_ms=MS + 300_000),
    said(text=""),
    said(text="é" * 8192),
    said(direction=pb.DIRECTION_INCOMING),
    said(foreign_spans=[span(0, 9), span(3, 4)]),
    said(text="😀", foreign_spans=[span(0, 1)]),
]
BAD = [
    (said(""), "id: must be"),
    (said("x" * 65), "id: must be"),
    (said("é" * 33), "id: must be"),
    (said(time_ms=-1), "time_ms"),
    (said(time_ms=MS + 300_001), "time_ms: more than 300 s ahead"),
    (said(time_ms=2**63 - 1), "time_ms"),
    (said(text="x" * 16385), "text: at most"),
    (said(text="é" * 8193), "text: at most"),
    (said(direction=pb.DIRECTION_UNSPECIFIED), "direction"),
    (said(direction=7), "direction"),
    (said(foreign_spans=[span(0, 10)]), r"foreign_spans\[0\]"),
    (said(foreign_spans=[span(0, 2), span(4, 4)]), r"foreign_spans\[1\]"),
    (said(foreign_spans=[span(5, 4)]), r"foreign_spans\[0\]"),
    (said(text="😀", foreign_spans=[span(0, 2)]), r"foreign_spans\[0\]"),
    (said(foreign_spans=[span(0, 1)] * 65), "foreign_spans: at most"),
    (pb.Signal(id="1", time_ms=MS), "must hold `message`"),
    (chose("restaurant:x"), "must hold `message`"),
]


@pytest.mark.parametrize("signal", GOOD)
def test_good_messages_pass(signal: pb.Signal) -> None:
    check_signals(pb.PushRequest(signals=[signal]), DataType.MESSAGE_CONTENT, NOW)


@pytest.mark.parametrize(("signal", "words"), BAD)
def test_bad_messages_are_refused_by_position_and_field(signal: pb.Signal, words: str) -> None:
    first = said("first")
    with pytest.raises(SignalRefused, match=rf"signals\[1\].*{words}") as refused:
        check_signals(pb.PushRequest(signals=[first, signal]), DataType.MESSAGE_CONTENT, NOW)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("item", ["", "restaurant", ":x", "restaurant:", "restaurant:" + "x" * 512])
def test_bad_choices_are_refused(item: str) -> None:
    check_signals(pb.PushRequest(signals=[chose("restaurant:x:y")]), DataType.CHOICE, NOW)
    with pytest.raises(SignalRefused, match=r"signals\[0\]\.choice\.item"):
        check_signals(pb.PushRequest(signals=[chose(item)]), DataType.CHOICE, NOW)
    with pytest.raises(SignalRefused, match="must hold `choice`"):
        check_signals(pb.PushRequest(signals=[said()]), DataType.CHOICE, NOW)


def test_an_id_twice_and_too_many_are_refused() -> None:
    with pytest.raises(SignalRefused, match=r"signals\[1\]\.id: stands twice"):
        check_signals(pb.PushRequest(signals=[said(), said()]), DataType.MESSAGE_CONTENT, NOW)
    many = [said(str(number)) for number in range(limits.SIGNALS_PER_PUSH + 1)]
    check_signals(pb.PushRequest(signals=many[:-1]), DataType.MESSAGE_CONTENT, NOW)
    with pytest.raises(SignalRefused, match="at most 500"):
        check_signals(pb.PushRequest(signals=many), DataType.MESSAGE_CONTENT, NOW)


@given(st.binary(max_size=400), st.sampled_from(list(DataType)))
def test_any_bytes_are_checked_or_refused_and_nothing_else(data: bytes, kind: DataType) -> None:
    try:
        request = pb.PushRequest.FromString(data)
    except Exception:  # noqa: BLE001 - the decoder's own
        return
    try:
        check_signals(request, kind, NOW)
    except SignalRefused:
        return
    assert all(one.WhichOneof("body") for one in request.signals)


def test_names_and_enums_have_their_bounds() -> None:
    assert checks.stream_name("a.b_c-9") == "a.b_c-9"
    for name in ("", "A", "a" * 65, "a b", "ä", "a\n"):
        with pytest.raises(SignalRefused, match="stream"):
            checks.stream_name(name)
    assert checks.data_type(1) is DataType.MESSAGE_CONTENT
    for number in (0, 3, -1, 2**31 - 1):
        with pytest.raises(SignalRefused, match="data_type"):
            checks.data_type(number)
    for name in ("", "x" * 129):
        with pytest.raises(SignalRefused, match="purpose"):
            checks.short_name(name, "purpose")
    assert (checks.rows_wanted(0), checks.rows_wanted(1000)) == (100, 1000)
    with pytest.raises(FedlearnError, match="limit"):
        checks.rows_wanted(1001)
