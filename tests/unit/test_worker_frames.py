"""Frames: whole or refused."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.errors import MalformedMessage, MessageTooLarge
from fedlearn_client.worker.frames import HEAD, MAX_FRAME_BYTES, frame, read_frame


@given(bodies=st.lists(st.binary(max_size=50), max_size=5), most=st.integers(1, 7))
def test_what_is_written_is_read_however_the_pipe_cuts_it(bodies: list[bytes], most: int) -> None:
    pipe = io.BytesIO(b"".join(map(frame, bodies)))
    for body in bodies:
        assert read_frame(lambda count: pipe.read(min(count, most))) == body
    assert read_frame(pipe.read) is None


@given(body=st.binary(max_size=40), data=st.data())
def test_a_pipe_that_ends_inside_a_frame(body: bytes, data: st.DataObject) -> None:
    whole = frame(body)
    pipe = io.BytesIO(whole[: data.draw(st.integers(1, len(whole) - 1))])
    with pytest.raises(MalformedMessage):
        read_frame(pipe.read)


def test_a_length_over_the_cap_is_refused_unread() -> None:
    pipe = io.BytesIO(HEAD.pack(MAX_FRAME_BYTES + 1) + b"x")
    with pytest.raises(MessageTooLarge):
        read_frame(pipe.read)
    assert pipe.tell() == HEAD.size
    with pytest.raises(MessageTooLarge):
        frame(bytes(MAX_FRAME_BYTES + 1))
