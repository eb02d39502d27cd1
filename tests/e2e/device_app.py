"""An app of another user: calls what it is told on its standard input. Not a test."""

from __future__ import annotations

import collections
import json
import os
import sys
import time

import grpc

uid, address = int(sys.argv[1]), sys.argv[2]
# connects at the first call; made here, since what is imported for it may not be readable to another user
channel = grpc.insecure_channel(address, [("grpc.max_send_message_length", 1 << 26)])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)


def one(method: str, request: bytes) -> dict[str, object]:
    """Call, and tell what came of it."""
    try:
        reply = channel.unary_unary(method)(request, timeout=120, wait_for_ready=True)
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details()}
    return {"code": "OK", "reply": reply.hex()}


def measured(method: str, requests: list[bytes]) -> dict[str, object]:
    """Call once a request, and tell how long each took."""
    call, seconds = channel.unary_unary(method), []
    for request in requests:
        began = time.perf_counter()
        call(request, timeout=120)
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds}


def watched(method: str, count: int) -> dict[str, object]:
    """Read ``count`` messages of a stream."""
    stream = channel.unary_stream(method)(b"", timeout=60)
    try:
        got = [next(stream).hex() for _ in range(count)]
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details()}
    stream.cancel()
    return {"code": "OK", "replies": got}


def codes(method: str, requests: list[bytes]) -> dict[str, object]:
    """Call once a request, and count what came of it."""
    counted = collections.Counter(one(method, request)["code"] for request in requests)
    return {"codes": counted}


for line in sys.stdin:
    verb, method, requests = json.loads(line)
    raw = [bytes.fromhex(request) for request in requests]
    if verb == "measure":
        answer = measured(method, raw)
    elif verb == "codes":
        answer = codes(method, raw)
    elif verb == "watch":
        answer = watched(method, int(raw[0]))
    else:
        answer = one(method, raw[0])
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
channel.close()
