"""A small bilingual catalogue and shorthand for sessions, for the tests of fedlearn.features."""

from __future__ import annotations

from fedlearn.catalogue import Catalogue, Item
from fedlearn.features import FEATURES, CatalogueIndex, Query, make_query, match_all
from fedlearn.signals import Choice, Direction, Message, Session

ITEMS = (
    Item(
        "restaurant",
        "老王火锅",
        {"dish": ("麻辣火锅", "mala hotpot", "毛肚"), "cuisine": ("川菜", "Sichuan"), "facility": ("wifi", "停车位")},
        price=120.0,
        rating=4.6,
        nearby=("attraction:青山公园",),
    ),
    Item(
        "restaurant",
        "便宜坊烤鸭",
        {"dish": ("经典烤鸭", "roast duck", "鸭汤"), "cuisine": ("京菜", "Beijing"), "facility": ("包间",)},
        price=200.0,
        rating=4.2,
        nearby=("attraction:旧城博物馆", "restaurant:素心斋"),
    ),
    Item(
        "restaurant",
        "Luigi",
        {"dish": ("margherita pizza", "tiramisu"), "cuisine": ("意餐", "Italian"), "facility": ("outdoor seating",)},
        price=80.0,
        rating=4.8,
    ),
    Item("restaurant", "素心斋", {"dish": ("豆腐煲", "tofu pot"), "cuisine": ("素食", "vegetarian")}, price=0.0),
    Item("restaurant", "无名小店", {}, rating=3.5),
)
CONTEXT = (
    Item("attraction", "青山公园", {"theme": ("园林",)}, price=0.0, duration="1小时 - 2小时"),
    Item(
        "attraction", "旧城博物馆", {"theme": ("历史",)}, price=60.0, duration="3小时", nearby=("restaurant:老王火锅",)
    ),
    Item("book", "川菜入门", {"cuisine": ("川菜", "Sichuan")}),
)
TOWN = Catalogue("town", "restaurant", ITEMS, CONTEXT)
INDEX = CatalogueIndex.build(TOWN)
COLUMN = {spec.name: i for i, spec in enumerate(FEATURES)}


def said(*texts: str, earlier: tuple[str, ...] = ()) -> Session:
    """A session in which the owner wrote these messages and chose these items before."""
    messages = tuple(Message(text, Direction.OUTGOING, i) for i, text in enumerate(texts))
    choices = tuple(Choice(key, key.split(":")[0], i - len(earlier)) for i, key in enumerate(earlier))
    return Session(messages, choices, 0, "g")


def query(*texts: str, earlier: tuple[str, ...] = ()) -> Query:
    """The Query of ``said``."""
    return make_query(said(*texts, earlier=earlier), INDEX)


def column(name: str, *texts: str, earlier: tuple[str, ...] = ()) -> list[float]:
    """One feature of every restaurant of the town, rounded."""
    return [round(float(v), 4) for v in match_all(query(*texts, earlier=earlier), INDEX)[:, COLUMN[name]]]


def values(found: Query) -> dict[str, int]:
    """Mentioned value -> polarity."""
    names = {i: value for value, i in INDEX.values.ids.items()}
    return {names[int(i)]: int(polarity) for i, polarity, _ in found.values}
