"""A catalogue and sentences that touch every rule of docs/features.md, one rule or two a session.

The kit's own town is made for rankings. Here words overlap, plurals differ, values are shared, and nothing is useful.
"""

from __future__ import annotations

from fedlearn.catalogue import Catalogue, Item
from fedlearn.signals import Choice, Direction, Message, Session

_R = "restaurant"
_HOTELS = ("hotel:Grand Hotel", "hotel:山 庄")


def _item(name: str, price: float | None, rating: float | None, duration: str, **attributes: tuple[str, ...]) -> Item:
    nearby = attributes.pop("nearby", ())
    return Item(_R, name, attributes, price, rating, duration, nearby)


RULES = Catalogue(
    "rules",
    _R,
    (
        _item(
            "Noodle Museum", 80.0, 4.5, "2-3小时", dish=("roast duck", "cherries"), facility=("private room", "wifi")
        ),
        _item("小馆 1", 1620.0, 4.4, "half a day", dish=("duck soup", "烤鸭", "peaches"), facility=("包间",)),
        _item(
            "小馆 2", 100.0, None, "90 minutes", dish=("duck", "麻辣火锅"), cuisine=("川菜", "成都菜"), nearby=_HOTELS
        ),
        _item("小馆 3", 100.0, 3.0, "一整天", dish=("麻辣", "火锅", "glass noodles"), cuisine=("川菜", "粤菜")),
        _item("小馆 4", None, 5.0, "", dish=("straßen soup", "tea", "hummus"), facility=("停车位", "outdoor seating")),
        _item("Café Étoile", 0.0, 4.0, "1小时", dish=("house of the good soup", "table42"), tag=("tea", "late hours")),
        _item(
            "小馆 6", 35.5, 3.8, "两个半小时", cuisine=("hotel bar", "outdoor seating"), dish=("rice bus", "peach pie")
        ),
        _item("小馆 7", 250.0, 4.9, "3 hours to 4 hours", dish=("tomatoes", "sandwiches", "bar"), cuisine=("川菜",)),
        _item("小馆 8", 12.0, 2.5, "不限", facility=("wifi", "duck"), dish=("烤鸭",), cuisine=("粤菜", "Ｔａｐａｓ")),
    ),
    (
        Item("hotel", "Grand Hotel", price=500.0, nearby=(f"{_R}:小馆 1", f"{_R}:小馆 2", f"{_R}:小馆 1")),
        Item("hotel", "山 庄", {"cuisine": ("川菜", "nowhere")}, 200.0, nearby=(f"{_R}:小馆 2",)),
        Item("book", "书一", {"cuisine": ("川菜", "粤菜"), "dish": ("烤鸭", "烤鸭")}),
        Item("book", "Green Tea Book", {"tag": ("tea",)}, price=200.0),
    ),
)

# id, sentence, the owner's messages oldest first (with spans: text and spans), earlier choices oldest first
Words = str | tuple[str, tuple[tuple[int, int], ...]]
SESSIONS: tuple[tuple[str, str, tuple[Words, ...], tuple[tuple[str, str], ...]], ...] = (
    (
        "plurals",
        "Plural endings are dropped on both sides.",
        ("a cherry and a tomato", "sandwich, peach", "duck soups"),
        (),
    ),
    ("no_plurals", "What only looks like a plural is left.", ("glas noodle", "a hummu with rice", "teas", "hour"), ()),
    (
        "stop_words",
        "Function words and words with digits are no terms.",
        ("the house is good", "of table42", "soup"),
        (),
    ),
    ("longest", "Leftmost first, longest there, no overlap.", ("roast duck soup", "麻辣火锅", "麻辣火"), ()),
    (
        "whole_words",
        "Alphabetic phrases stand as whole words.",
        ("steamed barbecue", "teasing"),
        (),
    ),
    ("plural_phrase", "A plural s may follow a phrase.", ("bars, teas", "tea壶"), ()),
    (
        "folding",
        "Compatibility forms fold before and after letter case.",
        ("ℌummus, ﬁne ＴＡＰＡＳ", "STRASSEN SOUP", "CAFÉ E\u0301TOILE"),
        (),
    ),
    ("joined", "A space beside a CJK character is none.", ("麻辣 火锅", "duck 烤 鸭", "停\u3000车位"), ()),
    (
        "lines",
        "No phrase crosses a line break of any kind.",
        ("麻辣\u2028火锅", "烤\x85鸭", "停车\u2029位", "烤\r鸭", "川\v菜"),
        (),
    ),
    (
        "spans",
        "Foreign spans in any order, side by side, one in another, empty.",
        (
            ("烤鸭川菜麻辣火锅", ((4, 6), (0, 2))),
            ("烤鸭麻辣川菜", ((0, 2), (2, 4))),
            ("a tea duck", ((2, 5), (3, 4))),
            ("烤鸭", ((1, 1),)),
        ),
        (),
    ),
    (
        "no_until",
        "A negation ends at a wish, or with its clause.",
        ("不要川菜想吃烤鸭", "不要麻辣,粤菜", "no duck. tea", "without wifi but tapas"),
        (),
    ),
    (
        "closers",
        "What closes a clause denies that clause.",
        ("想吃粤菜,麻辣火锅就算了", "tea! 烤鸭不要了", "川菜除外"),
        (),
    ),
    ("questions", "A question is no negation.", ("有没有川菜", "能不能要包间", "not only duck", "要不烤鸭"), ()),
    (
        "named",
        "Names are taken out first, and end a clause.",
        ("near the Noodle Museum", "不要Café Étoile川菜", "noodle"),
        (),
    ),
    ("number_words", "Chinese number words before a unit.", ("人均一百五十元以下",), ()),
    ("tenth", "A digit left over counts a tenth of the last unit.", ("一百五元以下",), ()),
    ("zero", "A zero between takes the place.", ("一百零五元以下",), ()),
    ("ten", "Ten may stand without a digit.", ("三十五元以上", "十二块以上"), ()),
    ("english_words", "English number words before a unit.", ("under twenty five dollars",), ()),
    (
        "hundred",
        "A hundred multiplies what stands before it.",
        ("two hundred and fifty dollars", "over two hundred dollars"),
        (),
    ),
    ("bare_hundred", "A hundred alone is one hundred.", ("under hundred dollars",), ()),
    ("fractions", "Half and whole days.", ("半天", "整天"), ()),
    ("half_hour", "Half an hour, and low without a unit.", ("half an hour to 2 hours",), ()),
    ("range", "The unit of a range is at its end.", ("2-3小时",), ()),
    ("turned_range", "High is at least low.", ("3小时到90分钟",), ()),
    ("last_price", "Of two prices the later counts.", ("人均100-150元,80元以下",), ()),
    ("first_price", "Also if another expression reads it.", ("200元以上,人均100-150元",), ()),
    ("floor", "A floor has no end.", ("200元以上",), ()),
    ("about", "About is a fifth to both sides.", ("100元左右",), ()),
    ("at_the_bound", "A price at its bound is inside.", ("1620元以上",), ()),
    (
        "other_units",
        "A number with another unit is no price.",
        ("under 30 minutes", "100米以内", "电话10012345678", "12:30"),
        (),
    ),
    ("cheap_then_dear", "Of two price levels the later counts.", ("便宜的,算了,高档的",), ()),
    ("dear_then_cheap", "Either way.", ("高档的,算了,便宜的",), ()),
    ("not_too_dear", "Not too expensive is cheap.", ("不要太贵一点的",), ()),
    ("rating_ceiling", "An upper bound of a rating is none.", ("4.5分以下", "rated 3 or below"), ()),
    ("over_five", "Nothing is rated over five.", ("评分5.5以上",), ()),
    ("two_ratings", "Of two ratings the later counts.", ("4.5分以上,3分以上",), ()),
    ("well_rated", "Well rated without a number is 4.5.", ("highly rated",), ()),
    ("free", "Free is not free of charge parking.", ("free", "免费停车"), ()),
    (
        "near_last",
        "Nearness, named and wished.",
        ("附近", "close to the Grand Hotel, 山庄"),
        ((f"{_R}:小馆 3", "b"), ("hotel:Grand Hotel", "a")),
    ),
    (
        "renewed",
        "A change of mind withdraws what was wished before, and not what was refused.",
        ("想吃烤鸭,要包间,不要粤菜", "算了,换川菜"),
        (),
    ),
    (
        "renewed_facility",
        "Facilities are a slot of their own, words in their names too.",
        ("包间 private room, 烤鸭", "换成停车位"),
        (),
    ),
    ("renewed_inside", "Within a message, too.", ("想吃烤鸭和包间,换成川菜,粤菜", "停车位"), ()),
    ("renewed_at_once", "What follows the cue without a gap is named after it.", ("烤鸭,换川菜",), ()),
    ("renewed_twice", "The last change of mind counts.", ("烤鸭,换川菜,换粤菜",), ()),
    (
        "instead",
        "What stands before instead takes the place.",
        ("tapas", "duck soup and tea instead, outdoor seating"),
        (),
    ),
    ("instead_of", "Instead of refuses.", ("tea instead of duck",), ()),
    ("refused_anew", "What is refused renews nothing.", ("川菜", "换成不要粤菜的"), ()),
    ("subject_value", "A value does not name a domain.", ("川菜", "hotel bar", "tea"), ()),
    (
        "subject_back",
        "The present wish begins where the talk came back.",
        ("餐厅要烤鸭", "酒店便宜点", "restaurant", "tea", "再看看粤菜"),
        (),
    ),
    (
        "subject_again",
        "A new wish for the target begins anew.",
        ("餐厅要烤鸭", "100元以下", "换家餐厅,川菜", "tea"),
        (),
    ),
    ("subject_alone", "A domain alone begins nothing anew.", ("餐厅要粤菜", "餐厅", "川菜"), ()),
    ("subject_other", "The last talk was about something else.", ("餐厅要烤鸭", "hotels with wifi", "tea"), ()),
    ("subject_unknown", "A domain that the catalogue does not have is none.", ("烤鸭", "sightseeing, 免费", "tea"), ()),
    ("subject_both", "The target beside another is the target.", ("tea", "a restaurant near a hotel, duck"), ()),
    (
        "silent",
        "What says nothing leaves no trace in ages.",
        ("烤鸭", "餐厅要粤菜", "哈哈", "ok", "餐厅", "餐厅 tea"),
        (),
    ),
    ("shared_value", "A value of several attributes has the lowest group.", ("tea, duck, outdoor seating, wifi",), ()),
    ("rejected", "Values refused, and words refused beside them.", ("不要川菜", "no soup, no peaches"), ()),
    ("rejected_words", "Words alone refused.", ("no soup",), ()),
    ("earlier", "Words and values of ages.", ("餐厅要烤鸭", "餐厅要烤鸭 soup", "餐厅要川菜 soup soup"), ()),
    (
        "tastes",
        "Tastes of choices, by rarity and attribute.",
        (),
        (
            ("book:书一", "书"),
            ("book:Green Tea Book", "b"),
            ("hotel:山 庄", "c"),
            (f"{_R}:小馆 3", "d"),
            (f"{_R}:小馆 3", "d"),
        ),
    ),
    (
        "own_taste",
        "Tastes in the target's own domain.",
        (),
        ((f"{_R}:小馆 6", "d"), (f"{_R}:小馆 8", "d"), ("hotel:Grand Hotel", "a")),
    ),
    ("counts", "Counts end at 255, over all messages of an age.", ("tea " * 200, "tea " * 200), ()),
)


def session_of(case: tuple[str, str, tuple[Words, ...], tuple[tuple[str, str], ...]]) -> Session:
    """Return a case as a session."""
    _, _, said, earlier = case
    whole = [(words, ()) if isinstance(words, str) else words for words in said]
    messages = tuple(Message(text, Direction.OUTGOING, at, spans) for at, (text, spans) in enumerate(whole))
    return Session(messages, tuple(Choice(key, app, at - 99) for at, (key, app) in enumerate(earlier)), 0, "rules")
