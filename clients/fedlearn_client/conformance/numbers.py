"""The numbers of a port, case by case, against vectors that numpy and torch made. Pure Python, no numpy."""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from fedlearn.device.bundle import INFER, PLAN, STEP, WEIGHTS
from fedlearn.device.catalogue_bundle import CATALOGUE
from fedlearn.device.plan_codec import plan_bytes, plan_from_bytes
from fedlearn.proto import conformance_pb2 as pb
from fedlearn.proto import device_pb2 as device
from fedlearn_client.conformance.cases import Case, Differs, NotServed, require
from fedlearn_client.conformance.lines import Line
from fedlearn_client.conformance.papers import fixture
from fedlearn_client.conformance.situations import Situation, situations

METHOD: Final = "/fedlearn.conformance.v1.Numerics/Answer"
TOLERANCE: Final = 1e-5
"""Of a coordinate of a delta and of a feature, absolute below 1 and relative above: what f32 sums in another order
differ by, with room; an error of meaning is a thousand times larger."""
RHO_TOLERANCE: Final = 1e-9
"""Relative: zCDP is a sum of a few thousand doubles."""

VECTORS: Final = "vectors.json"
_DIRECTIONS: Final = {"outgoing": device.DIRECTION_OUTGOING, "incoming": device.DIRECTION_INCOMING}

Vector = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Asks for numbers over one connection."""

    line: Line

    def cases(self) -> Iterator[Case]:
        """Yield every case."""
        vectors = json.loads(fixture(VECTORS))
        yield Case("query.index", "The catalogue gives the index with the same digest.",
                   partial(self._index, vectors["index_digest"]))  # fmt: skip
        kinds: tuple[tuple[str, Callable[[Vector], None]], ...] = (
            ("query", self._query),
            ("rows", self._rows),
            ("update", self._update),
            ("contribute", self._contribute),
            ("rank", self._rank),
        )
        for kind, check in kinds:
            for vector in vectors[kind]:
                yield Case(f"{kind}.{vector['id']}", vector["sentence"], partial(check, vector))
        for situation in situations():
            yield Case(f"guard.{situation.id}", situation.sentence, partial(self._verdict, situation))

    def _ask(self, case: pb.Case, body: str) -> Any:
        answer = self.line.call(METHOD, case.SerializeToString())
        if answer.code == "UNIMPLEMENTED":
            raise NotServed(f"{METHOD.rpartition('.')[2]} does not answer {case.WhichOneof('body')}")
        if answer.code == "UNAVAILABLE" and not answer.details.startswith("FL"):
            raise NotServed("nobody answers at the address of the numbers")
        require(answer.code == "OK", "an answer", f"{answer.code}: {answer.details}"[:300])
        reply = pb.Reply.FromString(answer.body)
        require(reply.WhichOneof("body") == body, f"a reply with {body}", f"one with {reply.WhichOneof('body')}")
        return getattr(reply, body)

    def _load(self, name: str = CATALOGUE) -> str:
        """Each case loads its catalogue anew, so that it stands by itself."""
        return str(self._ask(pb.Case(load_catalogue=fixture(name)), "index_digest"))

    def _index(self, digest: str) -> None:
        found = self._load()
        require(found == digest, digest, found)

    def _query(self, vector: Vector) -> None:
        self._load(vector.get("catalogue", CATALOGUE))
        reply = self._ask(pb.Case(make_query=occasion(vector)), "query")
        same_integers(reply.values, vector["query"])

    def _rows(self, vector: Vector) -> None:
        self._load(vector.get("catalogue", CATALOGUE))
        asked = pb.MatchRows(query=vector["query"], candidates=vector["candidates"])
        near(self._ask(pb.Case(match_rows=asked), "rows").values, floats(vector["rows"]))

    def _update(self, vector: Vector) -> None:
        plan = plan_from_bytes(fixture(PLAN))
        training = replace(plan.training, **vector["training"])
        asked = pb.LocalUpdate(
            plan=plan_bytes(replace(plan, training=training)),
            step=fixture(STEP),
            weights=fixture(WEIGHTS),
            columns=[
                pb.Column(name=name, dtype=one["dtype"], shape=one["shape"], data=base64.b64decode(one["data"]))
                for name, one in vector["columns"].items()
            ],
            shuffle_seed=vector["seed"],
            mechanism_step=vector["step"],
        )
        near(self._ask(pb.Case(local_update=asked), "delta").values, floats(vector["delta"]))

    def _contribute(self, vector: Vector) -> None:
        asked = pb.Contribute(
            delta=[float.fromhex(one) for one in vector["delta"]],
            l2_clip_norm=vector["clip"],
            grid_step=vector["grid_step"],
        )
        grid = self._ask(pb.Case(contribute=asked), "grid")
        if vector["grid"] is None:
            refused = grid.refusal == "not_finite" and not grid.values
            require(refused, "the refusal not_finite", grid.refusal or f"{len(grid.values)} integers")
            return
        require(not grid.refusal, "integers", f"the refusal {grid.refusal}")
        same_integers(grid.values, vector["grid"])

    def _rank(self, vector: Vector) -> None:
        self._load()
        weights = fixture(WEIGHTS) if vector["weights"] is None else base64.b64decode(vector["weights"]["data"])
        asked = pb.Rank(
            plan=fixture(PLAN),
            infer=fixture(INFER),
            weights=weights,
            occasion=occasion(vector),
            sources=vector["sources"],
            count=vector["count"],
        )
        found, expected = list(self._ask(pb.Case(rank=asked), "ranking").items), vector["ranking"]
        # a vector ends where rounding could turn the order round
        require(len(found) == vector["count"], f"{vector['count']} items", f"{len(found)}")
        for place, (one, right) in enumerate(zip(found, expected, strict=False)):
            require(one == right, f"{right} in place {place + 1}", one)

    def _verdict(self, situation: Situation) -> None:
        body = json.dumps(situation.body, sort_keys=True, ensure_ascii=False)
        found = self._ask(pb.Case(verdict=pb.Verdict(situation=body)), "verdict")
        require(found.verdict == situation.verdict, situation.verdict, found.verdict)
        room = RHO_TOLERANCE * max(situation.rho, 1.0)
        close = situation.least - room <= found.rho <= situation.rho + room
        require(close, f"rho {situation.rho!r}", repr(found.rho))


def occasion(vector: Vector) -> pb.MakeQuery:
    """Return what was said and chosen."""
    return pb.MakeQuery(
        messages=[
            device.MessageSignal(
                text=one["text"],
                direction=_DIRECTIONS[one["direction"]],
                foreign_spans=[device.Span(start=a, end=b) for a, b in one["foreign_spans"]],
            )
            for one in vector["messages"]
        ],
        earlier=[pb.Choice(item=item, app=app) for item, app in vector["earlier"]],
    )


def floats(body: Vector) -> Sequence[float]:
    """Return the f32 values of an array of the vectors."""
    values = array("f", base64.b64decode(body["data"]))
    if array("H", b"\x01\x00")[0] != 1:
        values.byteswap()
    return values


def same_integers(found: Sequence[int], expected: Sequence[int]) -> None:
    """Require equal integers."""
    require(len(found) == len(expected), f"{len(expected)} integers", f"{len(found)}")
    for place, (one, right) in enumerate(zip(found, expected, strict=True)):
        require(one == right, f"{right} in place {place}", str(one))


def near(found: Sequence[float], expected: Sequence[float]) -> None:
    """Require floats within ``TOLERANCE``; a NaN is near nothing."""
    require(len(found) == len(expected), f"{len(expected)} numbers", f"{len(found)}")
    for place, (one, right) in enumerate(zip(found, expected, strict=True)):
        if not abs(one - right) <= TOLERANCE * max(abs(right), 1.0):
            raise Differs(f"{right:.7g} in place {place}, up to {TOLERANCE:g}", f"{one:.7g}")
