"""The tables of a gateway's state. No row holds an address, or the time of an upload, beside a contribution.

A check-in and a participation both name the device, so whoever reads the whole state can join them by it.

A task's row says which device it was given to, because participations are counted; it keeps the SHA-256 of what was
uploaded for it, so that the same bytes are answered the same way again. A contribution carries a random nonce, hence
its hash says nothing of its vector. What is summed up lies in ``sums`` alone, until it is wiped.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA: Final = 1
"""Version of these tables; a database of another one is refused."""


class Stage(StrEnum):
    """Where a collection is: open -> closed -> answered, or open -> abandoned."""

    OPEN = "open"
    CLOSED = "closed"  # enough phones, the sum is not answered yet
    ANSWERED = "answered"
    ABANDONED = "abandoned"  # its sum was wiped unseen


class Use(StrEnum):
    """What became of a token."""

    OPEN = "open"
    ACCEPTED = "accepted"
    REJECTED = "rejected"


metadata: Final = MetaData()
_ID: Final = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only what it calls INTEGER

about = Table("gateway_about", metadata, Column("version", Integer, primary_key=True))

devices = Table(
    "gateway_devices",
    metadata,
    Column("device", LargeBinary, primary_key=True),
    Column("population", Text, nullable=False),
    Column("serial", LargeBinary, nullable=False, unique=True),
    Column("enrolled", Double, nullable=False),
    Column("revoked", Double),
    sqlite_with_rowid=False,
)

nonces = Table(
    "gateway_nonces",
    metadata,
    Column("device", LargeBinary, primary_key=True),
    Column("nonce", LargeBinary, primary_key=True),
    Column("expires", Double, nullable=False, index=True),
    sqlite_with_rowid=False,
)

objects = Table(
    "gateway_objects",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("data", LargeBinary, nullable=False),
    Column("of_step", Boolean, nullable=False),  # a step's weights: they go when no open collection needs them
)

collections = Table(
    "gateway_collections",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("run_id", Text, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("attempt", BigInteger, nullable=False),
    Column("part", Integer, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("parts", Integer, nullable=False),
    Column("population", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("terms", Text, nullable=False),
    Column("target", BigInteger, nullable=False),
    Column("minimum", BigInteger, nullable=False),
    Column("most", BigInteger, nullable=False),
    Column("opened", Double, nullable=False),
    Column("deadline", Double, nullable=False),
    Column("weights_digest", Text, nullable=False),
    Column("dimension", BigInteger, nullable=False),
    Column("l2_clip_norm", Double, nullable=False),
    Column("grid_step", Double, nullable=False),
    Column("shuffle_seed", BigInteger, nullable=False),
    Column("task_digest", LargeBinary, nullable=False),
    Column("checkpoint", LargeBinary, nullable=False),
    Column("stage", Text, nullable=False, index=True),
    Column("accepted", BigInteger, nullable=False),
    UniqueConstraint("run_id", "step", "part", "tries"),
)

sums = Table(
    "gateway_sums",
    metadata,
    Column("collection", ForeignKey(collections.c.id), primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

answers = Table(
    "gateway_answers",
    metadata,
    Column("collection", ForeignKey(collections.c.id), primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

tokens = Table(
    "gateway_tokens",
    metadata,
    Column("token", LargeBinary, primary_key=True),
    Column("device", ForeignKey(devices.c.device), nullable=False),
    Column("collection", ForeignKey(collections.c.id), nullable=False),
    Column("task_digest", LargeBinary, nullable=False),
    Column("issued", Double),  # times go when the token is used
    Column("expires", Double),
    Column("use", Text, nullable=False),
    Column("content", LargeBinary),  # SHA-256 of what was uploaded
    Column("reason", Text),
    Index("gateway_tokens_of", "collection", "use"),
    Index("gateway_tokens_by", "device", "use"),
    sqlite_with_rowid=False,
)

participations = Table(
    "gateway_participations",
    metadata,
    Column("device", ForeignKey(devices.c.device), primary_key=True),
    Column("run_id", Text, primary_key=True),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

check_ins = Table(
    "gateway_check_ins",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("device", LargeBinary, nullable=False),
    Column("address", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("at", Double, nullable=False, index=True),
)
