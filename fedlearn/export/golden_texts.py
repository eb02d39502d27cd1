"""What the made-up owner of the golden vectors says, in the words of whatever catalogue there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedlearn.catalogue import Catalogue
from fedlearn.features.text import is_cjk, normalise

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Session:
    """One occasion: positions in the list of texts, oldest first, and earlier choices (item key, app).

    ``every_subset`` asks for what it gives when only some sources are granted, too.
    """

    texts: tuple[int, ...]
    earlier: tuple[tuple[str, str], ...]
    every_subset: bool = False


def spoken(catalogue: Catalogue) -> list[tuple[str, Spans]]:
    """Return texts with their foreign spans: wishes, negations, changes of mind, quotations, words about nothing."""
    chinese, english = _values(catalogue)
    a, b = chinese[:2]
    c, d = english[:2]
    name = next((item.name for item in (*catalogue.context, *catalogue.items)), "")
    quoted = f"「{a}」 不错，便宜点"
    return [
        ("", ()),
        ("哈哈 see you at 8, 13812345678", ()),
        (f"我想吃 {a}，人均１００－１５０元，4.5分以上", ()),
        (f"不要{b}，最好在{name}附近", ()),
        (f"算了，换成{b}，两个半小时以内", ()),
        (f"Any place for {c}? Under 30 dollars a head, rated 4.5 or above", ()),
        (f"I don’t want {c}, anything but {c}", ()),
        (f"actually, {d} instead, somewhere nearby and not too expensive", ()),
        (quoted, ((0, len(a) + 2),)),
        (f"> {c} {d}\n{a}", ((0, len(c) + len(d) + 3),)),
        ("找个景点 sightseeing", ()),
        ("推荐一家餐馆, restaurants please", ()),
        (f"{a}{a} {c}s, {name}, 免费 free entry", ()),
        (f"{a}就算了，{b}吧", ()),
    ]


def occasions(catalogue: Catalogue) -> Iterator[Session]:
    """Yield occasions over ``spoken``."""
    keys = [item.key for item in catalogue.items]
    others = [item.key for item in catalogue.context] or keys
    yield Session((), ())
    yield Session((2,), ())
    yield Session((0, 5, 1), ((others[0], "maps"),))
    yield Session((2, 3, 4), ((others[-1], "books"), (keys[0], "dining"), ("nowhere:1", "maps")), every_subset=True)
    yield Session((5, 6, 7), ((keys[-1], "dining"), (keys[-1], "dining")))
    yield Session((8, 9), ())
    yield Session((2, 10, 11, 12), ((others[0], "clips"),), every_subset=True)
    yield Session((12, 13), ((keys[1 % len(keys)], "shop"),))


def _values(catalogue: Catalogue) -> tuple[Sequence[str], Sequence[str]]:
    """Two values each in Chinese and in letters, of target items; whatever there is where a script is missing."""
    found = dict.fromkeys(
        value for item in catalogue.items for values in item.attributes.values() for value in values if normalise(value)
    )
    longest = sorted(found, key=lambda value: (-len(value), value))
    chinese = [value for value in longest if is_cjk(normalise(value)[0])]
    english = [value for value in longest if value.isascii()]
    spare = [*longest, "noodles", "curry"]
    return [*chinese, *spare][:2], [*english, *spare][:2]
