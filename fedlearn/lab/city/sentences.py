"""The city's sentences: what its people write, in Chinese and English.

The words depend on the content alone (never on tastes, or on what is chosen afterwards), so a session's words carry
exactly the information of its ``Content``; ``people.content_probability`` is the whole likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedlearn.lab.city.people import Content, Hint, Want
from fedlearn.lab.city.places import DISHES
from fedlearn.lab.city.tables import (
    CUISINES,
    FACILITIES,
    FLOORS,
    GROUPS,
    HOMOPHONES,
    NICKNAMES,
    PRICE_EDGES,
    TYPES,
    Term,
)
from fedlearn.signals import Direction, Message

TYPO_PROB = 0.1
NICKNAME_PROB = 0.12
CHANGE_PROB = 0.12
SPLIT_PROB = 0.15
SMALL_TALK_PROB = 0.3
INCOMING_PROB = 0.6
QUOTE_PROB = 0.08


@dataclass(frozen=True, slots=True)
class Grammar:
    """Templates of one language; ``{}`` takes the filler."""

    want: tuple[str, ...]
    avoid: tuple[str, ...]
    change: tuple[str, ...]
    facility: tuple[str, ...]
    kind: tuple[str, ...]
    band: tuple[str, ...]
    band_low: tuple[str, ...]
    band_high: tuple[str, ...]
    cheap: tuple[str, ...]
    fancy: tuple[str, ...]
    floor: tuple[str, ...]
    near: tuple[str, ...]
    anything: tuple[str, ...]
    small_talk: tuple[str, ...]
    friend: tuple[str, ...]
    friend_talk: tuple[str, ...]
    quote: tuple[str, ...]
    joint: str


ZH = Grammar(
    want=("想吃{}", "今天来点{}吧", "有没有{}呀", "我馋{}了", "帮我找{}", "要不吃{}"),
    avoid=("不要{}", "别是{}就行", "不想吃{}", "除了{}都可以"),
    change=("算了,还是吃{}吧", "不了,改成{}", "等等,换{}好了", "哎还是{}吧"),
    facility=("最好有{}", "要有{}", "得有{}"),
    kind=("找家{}", "想去{}", "{}那种"),
    band=("人均{}-{}元", "人均{}到{}块", "{}-{}元左右"),
    band_low=("{}元以下", "人均{}块以内", "不超过{}元"),
    band_high=("人均{}元以上", "{}块以上"),
    cheap=("别太贵", "便宜点的", "省着点花"),
    fancy=("吃顿好的", "贵点也行", "要上档次"),
    floor=("评分{}分以上", "{}分以上的", "至少{}分"),
    near=("附近", "离这儿近点", "就在周边"),
    anything=("找个地方吃饭", "随便吃点", "有什么推荐吗", "去哪吃好呢"),
    small_talk=(
        "今天好累啊",
        "哈哈哈好的",
        "刚下班",
        "外面下雨了",
        "周末终于到了",
        "你到哪了",
        "嗯嗯",
        "我等会儿给你打电话",
    ),
    friend=("要不吃{}?", "我昨天刚吃了{},超赞", "{}怎么样", "我想吃{}!", "听说{}很火"),
    friend_talk=("好呀", "都听你的", "你定吧", "我快到了", "哈哈", "行"),
    quote=("你说的「{}」我看到了", "他发的是「{}」"),
    joint=",",
)
EN = Grammar(
    want=("I feel like {}", "let's get {} today", "craving {}", "any place for {}?", "find me {}", "how about {}"),
    avoid=("not {}", "no {} please", "anything but {}", "don't want {}"),
    change=("never mind, let's have {}", "actually, {} instead", "scratch that, {} it is", "hmm, rather {}"),
    facility=("with {}", "it needs {}", "must have {}"),
    kind=("at a {}", "some {} would be great", "in a {}"),
    band=("{}-{} yuan per head", "between {} and {} yuan", "{} to {} each"),
    band_low=("under {} dollars", "below {} yuan", "less than {} per head"),
    band_high=("over {} yuan", "more than {} dollars"),
    cheap=("nothing pricey", "on a shoestring", "keep it affordable"),
    fancy=("let's splurge", "somewhere posh", "money is no object"),
    floor=("rated {} or above", "at least {} stars", "rating above {}"),
    near=("nearby", "close to here", "around here"),
    anything=("find somewhere to eat", "let's grab a bite", "where should we go", "any ideas for tonight"),
    small_talk=(
        "long day today",
        "haha ok",
        "just got off work",
        "it is raining",
        "finally the weekend",
        "on my way",
        "mm hm",
    ),
    friend=("what about {}?", "I had {} yesterday, so good", "{} maybe?", "I want {}!", "heard {} is all the rage"),
    friend_talk=("sure", "up to you", "you pick", "almost there", "lol", "fine by me"),
    quote=('saw your "{}" message', 'she sent "{}"'),
    joint=", ",
)


class Speaker:
    """One person writing in one language.

    Args:
        rng: draws the words, and nothing else.
        chinese: writes Chinese, else English.
    """

    def __init__(self, rng: np.random.Generator, chinese: bool) -> None:
        self._rng = rng
        self._chinese = chinese
        self._grammar = ZH if chinese else EN
        self._uniforms: list[float] = []

    def dialogue(self, content: Content) -> tuple[Message, ...]:
        """Return the messages of a session, oldest first: every field of ``content`` is said by the owner once."""
        grammar, lines = self._grammar, []
        if self._chance(SMALL_TALK_PROB):
            lines.append((self._any(grammar.small_talk), True))
        if content.intent.want is Want.OPEN or not self._chance(CHANGE_PROB):
            main = [self._want(content)]
        else:
            lines.append((self._any(grammar.want).format(self._other_dish(content.intent.dish)), True))
            main = [self._any(grammar.change).format(self._object(content))]
        if self._chance(INCOMING_PROB):
            lines.append((self._any(grammar.friend).format(self._say(DISHES[self._below(len(DISHES))][1])), False))
        first, second = self._halves(main, self._details(content))
        lines.append((grammar.joint.join(first), True))
        if self._chance(INCOMING_PROB / 2):
            lines.append((self._any(grammar.friend_talk), False))
        if second:
            lines.append((grammar.joint.join(second), True))
        return self._messages(lines)

    def _halves(self, main: list[str], details: list[str]) -> tuple[list[str], list[str]]:
        """Say everything at once, or in two messages: the dish first, or the details first."""
        if not details or not self._chance(SPLIT_PROB):
            return main + details, []
        cut = self._below(len(details))
        if cut and self._chance(0.5):
            return details[:cut], main + details[cut:]
        return main + details[:cut], details[cut:]

    def _messages(self, lines: list[tuple[str, bool]]) -> tuple[Message, ...]:
        messages, time = [], 0
        for text, mine in lines:
            time += 5 + self._below(60)
            direction = Direction.OUTGOING if mine else Direction.INCOMING
            messages.append(Message(self._typo(text) if mine else text, direction, time))
        if self._chance(QUOTE_PROB):
            messages.insert(0, self._quoting())
        return tuple(messages)

    def _quoting(self) -> Message:
        inner = self._any(self._grammar.friend).format(self._say(DISHES[self._below(len(DISHES))][1]))
        text = self._any(self._grammar.quote).format(inner)
        start = text.index(inner)
        return Message(text, Direction.OUTGOING, 1, ((start, start + len(inner)),))

    def _want(self, content: Content) -> str:
        if content.intent.want is Want.OPEN:
            return self._any(self._grammar.anything)
        return self._any(self._grammar.want).format(self._object(content))

    def _object(self, content: Content) -> str:
        if content.intent.want is Want.DISH:
            term = DISHES[content.intent.dish][1]
            if term.zh in NICKNAMES and self._chance(NICKNAME_PROB):
                return self._say(NICKNAMES[term.zh])
            return self._say(term)
        if content.group >= 0:
            group = GROUPS[content.group]
            return self._any(group.zh if self._chinese else group.en)
        name = self._say(CUISINES[content.intent.cuisine].name)
        return name if self._chinese else f"{name} food"

    def _details(self, content: Content) -> list[str]:
        intent, grammar = content.intent, self._grammar
        details = []
        if intent.facility >= 0:
            details.append(self._any(grammar.facility).format(self._say(FACILITIES[intent.facility])))
        if intent.kind >= 0:
            details.append(self._any(grammar.kind).format(self._say(TYPES[intent.kind])))
        if content.bands != (-1,):
            details.append(self._price(content))
        if intent.floor >= 0:
            details.append(self._any(grammar.floor).format(FLOORS[intent.floor]))
        if intent.avoid >= 0:
            details.append(self._any(grammar.avoid).format(self._say(CUISINES[intent.avoid].name)))
        if intent.near:
            details.append(self._any(grammar.near))
        return details

    def _price(self, content: Content) -> str:
        grammar, band = self._grammar, content.intent.band
        if content.hint is not Hint.EXACT:
            return self._any(grammar.cheap if content.hint is Hint.CHEAP else grammar.fancy)
        if band == 0:
            return self._any(grammar.band_low).format(PRICE_EDGES[1])
        if band == len(PRICE_EDGES) - 1:
            return self._any(grammar.band_high).format(PRICE_EDGES[-1])
        return self._any(grammar.band).format(PRICE_EDGES[band], PRICE_EDGES[band + 1])

    def _other_dish(self, dish: int) -> str:
        other = self._below(len(DISHES) - 1)
        return self._say(DISHES[other + (other >= dish >= 0)][1])

    def _typo(self, text: str) -> str:
        """Mistype one character now and then: a homophone in Chinese, two letters swapped in English."""
        at = self._below(len(text) - 1)
        if not self._chance(TYPO_PROB):
            return text
        if self._chinese:
            return text[:at] + HOMOPHONES.get(text[at], text[at]) + text[at + 1 :]
        a, b = text[at], text[at + 1]
        return text[:at] + b + a + text[at + 2 :] if a.isalpha() and b.isalpha() else text

    def _say(self, term: Term) -> str:
        return term.zh if self._chinese else term.en

    def _any(self, options: tuple[str, ...]) -> str:
        return options[self._below(len(options))]

    def _below(self, bound: int) -> int:
        return int(self._uniform() * bound)

    def _chance(self, probability: float) -> bool:
        return self._uniform() < probability

    def _uniform(self) -> float:
        if not self._uniforms:
            self._uniforms = self._rng.random(128).tolist()
        return self._uniforms.pop()
