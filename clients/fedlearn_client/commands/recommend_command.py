"""``fedlearn-device recommend``: a ranking, as the calling app gets it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedlearn.proto import device_pb2 as pb
from fedlearn.proto.device_pb2_grpc import RecommendStub
from fedlearn_client import limits
from fedlearn_client.commands.arguments import whole
from fedlearn_client.commands.connection import TIMEOUT_S, connected, parser, show, table
from fedlearn_client.commands.words import data_type_word


def main(arguments: Sequence[str]) -> int:
    """Show a ranking, or say which of its items was chosen."""
    made = parser("recommend", "A ranking, as the calling app gets it.")
    made.add_argument("purpose", help="of kind recommend, as the policy names it")
    made.add_argument("--count", type=whole(1, limits.RANKED_ITEMS), default=limits.RANKED_ITEMS_DEFAULT)
    made.add_argument("--choose", metavar="ITEM", help="then say that the owner chose this one of them")
    given = made.parse_args(arguments)
    with connected(given.device) as channel:
        recommend = RecommendStub(channel)
        reply = recommend.Get(pb.GetRequest(purpose=given.purpose, count=given.count), timeout=TIMEOUT_S)
        show(reply, given.json, lambda: _lines(reply))
        if given.choose is not None:
            chosen = pb.FeedbackRequest(ranking_id=reply.ranking_id, item=given.choose)
            recommend.Feedback(chosen, timeout=TIMEOUT_S)
            if not given.json:
                print(f"told the runtime: {given.choose} was chosen")  # noqa: T201 - the command's own output
    return 0


def _lines(reply: pb.GetReply) -> Iterator[str]:
    if not reply.items:
        yield "nothing to rank"
        return
    yield table(
        [
            {"": place, "score": f"{ranked.score:.3f}", "item": ranked.item}
            for place, ranked in enumerate(reply.items, 1)
        ],
        right=("", "score"),
    )
    for used in reply.used:
        yield f"used: {data_type_word(used.data_type)} of {used.app}"
    if not reply.used:
        yield "used: nothing of the owner's, or this caller is not told (only the surface is)"
