"""What a gateway forgets by itself. Participations stay: the bounds on them hold for as long as a run has a name."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, delete, select

from fedlearn_server.gateway.enrolment import CHECK_INS_KEPT_S
from fedlearn_server.gateway.tables import Stage, answers, check_ins, collections, nonces, objects, sums, tokens

ENDED_KEPT_S: Final = 86_400.0
"""How long after its deadline a collection is kept: for phones that send again, and nodes that are asked again."""


def tidy(connection: Connection, now: float) -> None:
    """Delete check-ins after 7 days, nonces that no request can repeat, weights that nobody trains on, and, a day after
    their deadline, collections with their tokens, sums and answers: a run that still wanted them opens new ones."""
    connection.execute(delete(check_ins).where(check_ins.c.at < now - CHECK_INS_KEPT_S))
    connection.execute(delete(nonces).where(nonces.c.expires < now))
    ended = select(collections.c.id).where(collections.c.deadline < now - ENDED_KEPT_S)
    for table in (tokens, sums, answers):
        connection.execute(delete(table).where(table.c.collection.in_(ended)))
    connection.execute(delete(collections).where(collections.c.id.in_(ended)))
    in_use = connection.scalars(select(collections.c.weights_digest).where(collections.c.stage == Stage.OPEN))
    needed = {bytes.fromhex(digest) for digest in in_use}
    connection.execute(delete(objects).where(objects.c.of_step, objects.c.digest.not_in(needed)))
