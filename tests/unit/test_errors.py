"""Codes are unique, documented one by one, and drawn in the tree as the classes stand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn import errors
from fedlearn.cli import exit_status
from fedlearn.errors import FedlearnError

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"


def tree(kind: type[FedlearnError] = FedlearnError) -> Iterator[type[FedlearnError]]:
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from tree(child)


ALL = tuple(tree())
# a subclass in another module is a detail of that module: it has its parent's code and entry
LEAVES = tuple(kind for kind in ALL if not any(child in ALL for child in kind.__subclasses__()))


def drawn() -> list[tuple[int, str, str]]:
    """(depth, name, code) of every class in the docstring's drawing, in order."""
    lines = re.findall(r"^    ((?:\|  |   )*)[|']- (\w+) +(FL\d{3})", errors.__doc__ or "", re.M)
    return [(len(indent) // 3 + 1, name, code) for indent, name, code in lines]


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in ALL]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"FL\d{3}", code) for code in codes)


def test_every_leaf_has_an_entry_and_the_reverse() -> None:
    text = PAGE.read_text(encoding="utf-8")
    entries = dict(re.findall(r"^### (FL\d{3}) (\w+)$", text, re.M))
    assert len(entries) == len(re.findall(r"^### ", text, re.M)), "an entry that is no code, or a code twice"
    assert entries == {kind.code: kind.__name__ for kind in LEAVES}


def test_every_entry_says_what_to_do() -> None:
    parts = re.split(r"^### ", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]
    assert all("**Do:**" in part for part in parts)


def test_docstring_draws_the_classes() -> None:
    def depth(kind: type[FedlearnError]) -> int:
        return sum(1 for base in kind.__mro__[1:] if issubclass(base, FedlearnError))

    assert [(name, code) for _, name, code in drawn()] == [(kind.__name__, kind.code) for kind in ALL]
    assert [level for level, _, _ in drawn()] == [depth(kind) for kind in ALL]


def test_children_share_their_parents_hundred() -> None:
    for kind in ALL:
        for child in kind.__subclasses__():
            assert child.code[:3] == kind.code[:3]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("FL101", 2),
        ("FL103", 2),
        ("FL203", 2),
        ("FL301", 1),
        ("FL501", 3),
        ("FL601", 3),
        ("FL701", 2),
        ("FL703", 1),
        ("FL704", 130),
    ],
)
def test_exit_status_follows_the_code(code: str, status: int) -> None:
    kind = next(kind for kind in ALL if kind.code == code)
    assert exit_status(kind("why")) == status


def test_a_rejection_carries_its_reason() -> None:
    error = errors.ContributionRejected(errors.Reason.OVER_NORM, "norm 3 over 1")
    assert error.reason is errors.Reason.OVER_NORM
    assert "over_norm" in str(error)
