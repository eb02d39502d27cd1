"""``fedlearn-device recommend``: a ranking, as the calling app gets it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedlearn.errors import ConfigError
from fedlearn.proto import device_pb2 as pb
from fedlearn.proto.device_pb2_grpc import RecommendStub
from fedlearn_client.commands.connection import TIMEOUT_S, connected, parser, show, table


def main(arguments: Sequence[str]) -> int:
    """Show a ranking, or say which of its items was chosen."""
    made = parser("recommend", "A ranking, as the calling app gets it.")
    made.add_argument("purpose")
    made.add_argument("--count", type=int, default=10)
    made.add_argument("--choose", metavar="ITEM", help="then say that the owner chose this one of them")
    given = made.parse_args(arguments)
    if not 1 <= given.count <= 100:
        raise ConfigError(f"--count={given.count}: must be in 1..100.")
    with connected(given.device) as channel:
        recommend = RecommendStub(channel)
        reply = recommend.Get(pb.GetRequest(purpose=given.purpose, count=given.count), timeout=TIMEOUT_S)
        show(reply, given.json, lambda: _lines(reply))
        if given.choose is not None:
            chosen = pb.FeedbackRequest(ranking_id=reply.ranking_id, item=given.choose)
            recommend.Feedback(chosen, timeout=TIMEOUT_S)
    return 0


def _lines(reply: pb.GetReply) -> Iterator[str]:
    rows = [
        {"": place, "item": ranked.item, "score": f"{ranked.score:.3f}"} for place, ranked in enumerate(reply.items, 1)
    ]
    yield table(rows)
    for used in reply.used:
        yield f"used: {pb.DataType.Name(used.data_type).removeprefix('DATA_TYPE_').lower()} of {used.app}"
    if not reply.used:
        yield "used: nothing is said to this caller"
