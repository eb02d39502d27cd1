"""``python -I -m fedlearn_client.conformance.caller UID ADDRESS``: becomes another user and calls what it is told.

Lines of JSON: ``[method, request in hexadecimal, count]`` in, ``[code, details, reply in hexadecimal]`` out; a count
above 0 reads a stream, a line a message.
"""

from __future__ import annotations

import json
import os
import sys

from fedlearn_client.conformance.lines import Answer, Direct


def main(arguments: list[str]) -> int:
    """Answer until the input ends."""
    uid, address = int(arguments[0]), arguments[1]
    # made here, connected at the first call: what is imported for it may not be readable to another user
    line = Direct(address)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    for text in sys.stdin:
        method, request, count = json.loads(text)
        data = bytes.fromhex(request)
        answers = line.watch(method, data, count) if count else iter([line.call(method, data)])
        for answer in answers:
            _write(answer)
    line.close()
    return 0


def _write(answer: Answer) -> None:
    sys.stdout.write(json.dumps([answer.code, answer.details, answer.body.hex()]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
