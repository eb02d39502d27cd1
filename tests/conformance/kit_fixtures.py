"""Exports the fixtures of the conformance kit: ``python tests/conformance/kit_fixtures.py``. Needs torch and onnx.

``catalogue.json`` is the one file that was written by hand (40 made-up restaurants and 10 other places, in Chinese and
English); ``rules.json`` is the catalogue of ``kit_rules.py``, for one rule of the features at a time. Everything else
follows: graphs and golden vectors by ``fedlearn.export``, the kit's own vectors by numpy and torch, never by the worker
that they test. ``test_device_conformance.py`` runs this again and compares.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedlearn.catalogue import Catalogue
from fedlearn.clip import clip_l2
from fedlearn.device.bundle import GOLDEN, INFER, PLAN, STEP, WEIGHTS
from fedlearn.device.catalogue_file import catalogue_bytes, catalogue_from_bytes
from fedlearn.device.mechanism import MechanismTerms
from fedlearn.engine.schedule import LocalTraining, schedule
from fedlearn.engine.step import local_step
from fedlearn.errors import ContributionRejected
from fedlearn.export.files import task_files
from fedlearn.export.golden import array_json, certain_ranking
from fedlearn.export.plan import PlanOptions, Trained
from fedlearn.features import CatalogueIndex, Query, feature_mask, make_query, match, match_all
from fedlearn.models import MatchModel
from fedlearn.policy.canonical import canonical_bytes
from fedlearn.privacy.factorization import INDEPENDENT
from fedlearn.privacy.grid import grid_step, to_grid
from fedlearn.rng import simulation_rng
from fedlearn.signals import Choice, Direction, Message, Session
from fedlearn.terms import TrainingTerms
from fedlearn_client.conformance.papers import FIXTURES
from fedlearn_client.conformance.town import FEATURES, make_policy

_spec = importlib.util.spec_from_file_location("kit_rules", Path(__file__).with_name("kit_rules.py"))
assert _spec is not None
assert _spec.loader is not None
kit_rules = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kit_rules)

RULES = "rules.json"
NOBODYS_KEY = "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"  # of RFC 8032's all-zero seed
CLIP = 0.5
BATCH, CANDIDATES = 4, 6
NAMES = tuple(FEATURES)
TERMS = TrainingTerms(epochs=2, batch_size=BATCH, learning_rate=0.25, shuffle=True, candidates=CANDIDATES)
MECHANISM = MechanismTerms("independent", INDEPENDENT, 2.0, CLIP, grid_step(CLIP), 100, 10, 5)

OUT, IN = Direction.OUTGOING, Direction.INCOMING
Said = tuple[str, Direction, tuple[tuple[int, int], ...]]


def own(text: str, *spans: tuple[int, int]) -> Said:
    return text, OUT, spans


def theirs(text: str) -> Said:
    return text, IN, ()


# id, sentence, messages oldest first, earlier choices oldest first
SESSIONS: tuple[tuple[str, str, tuple[Said, ...], tuple[tuple[str, str], ...]], ...] = (
    ("empty", "Nothing was said and nothing chosen.", (), ()),
    ("empty_text", "An empty text and one of spaces say nothing.", (own(""), own(" \u3000\n ")), ()),
    ("chinese", "A wish in Chinese: n-grams of two and three.", (own("今晚想吃麻辣火锅，最好有停车位"),), ()),
    ("english", "A wish in English: stemmed words.", (own("any place for beef noodles with parking nearby?"),), ()),
    ("mixed", "Both scripts in one message.", (own("想吃sushi或者寿司, outdoor seating please"),), ()),
    ("one_kanji", "One CJK character alone is no term.", (own("火"), own("a b c")), ()),
    ("negation", "What is not wanted counts against.", (own("不要川菜，想吃烤鸭"), own("no dumplings please")), ()),
    (
        "negation_after",
        "A closer after the word negates it too.",
        (own("麻辣火锅就算了，寿司吧"), own("anything but mala hotpot")),
        (),
    ),
    (
        "change",
        "A change of mind takes the place of what was said before.",
        (own("想吃麻辣火锅"), own("算了，换成烤鸭，便宜点"), own("actually, dim sum instead")),
        (),
    ),
    ("incoming", "What others wrote is dropped.", (theirs("我们吃麻辣火锅吧"), own("好的"), theirs("sushi?")), ()),
    (
        "foreign",
        "A declared foreign span is cut before anything is read, and no word crosses the cut.",
        (own("「麻辣火锅」不错，便宜点", (0, 6)), own("麻辣烤鸭火锅", (2, 4)), own("sushi", (0, 5))),
        (),
    ),
    (
        "nfkc",
        "Full-width, ligatures, circled digits and composed letters fold to one form.",
        (own("ＷｉＦｉ，人均１００－１５０元"), own("ﬁne SUSHI cafe\u0301 ①②"), own("ＳＩＣＨＵＡＮ　ＦＯＯＤ")),
        (),
    ),
    (
        "quotes",
        "Curly quotes, dashes and line ends of every kind.",
        (own("I don’t want sushi – roast duck — ok?"), own("麻辣\r\n火锅\u2028烤鸭\x85寿司")),
        (),
    ),
    (
        "digits",
        "A number counts only with a unit or a cue; words with digits are no terms.",
        (own("电话13812345678, 8点见, table4two"), own("人均80元以下，4.5分以上"), own("under 30 dollars a head")),
        (),
    ),
    ("hours", "Durations, ranges and their units.", (own("逛两个半小时以内"), own("1-2 hours, 90分钟")), ()),
    ("free", "Free entry is a wish; free parking is not.", (own("免费的景点"), own("free parking, free entry")), ()),
    (
        "named",
        "An item that is named, and the wish to be near it.",
        (own("青山公园附近有什么好吃的"), own("close to River Walk")),
        (),
    ),
    (
        "subject",
        "The present wish begins where the talk last turned to the ranked domain.",
        (own("推荐一家川菜餐馆"), own("景点要免费的"), own("再找一家意餐餐馆")),
        (),
    ),
    (
        "choices",
        "Choices of several apps, one of them unknown to the catalogue, one twice.",
        (),
        (
            ("book:川菜入门", "kit.reading"),
            ("nowhere:1", "kit.reading"),
            ("restaurant:Kitchen 1", "kit.other"),
            ("attraction:River Walk", "kit.other"),
            ("restaurant:Kitchen 1", "kit.other"),
        ),
    ),
    (
        "both",
        "Messages and choices together.",
        (own("想吃川菜"), own("nearby, not too expensive, rated 4.5 or above")),
        (("attraction:青山公园", "kit.other"), ("book:日料入门", "kit.reading"), ("restaurant:饭店 2", "kit.reading")),
    ),
    ("long", "A repeated word is counted up to 255 times.", (own("麻辣火锅" * 300),), ()),
    ("emoji", "Symbols, joined emoji and characters outside the basic plane.", (own("👨‍👩‍👧 𠮷野家 sushi🍣!"),), ()),
)

# id, sentence, plan changes, examples, shuffle seed, mechanism step
UPDATES: tuple[tuple[str, str, dict[str, Any], int, int, int], ...] = (
    ("zero_examples", "A phone without examples changes nothing.", {}, 0, 7, 3),
    ("one_example", "One example: the rest of the batch is padding.", {}, 1, 7, 3),
    ("padding", "Five examples in batches of four: the last batch of each epoch is short.", {}, 5, 7, 3),
    ("full", "Eight examples fill two batches exactly.", {}, 8, 7, 0),
    ("other_step", "Another mechanism step, another order.", {}, 8, 7, 1),
    ("other_seed", "Another seed, another order.", {}, 8, 2**40 + 1, 0),
    ("epochs", "Five epochs, each in an order of its own.", {"epochs": 5}, 9, 7, 3),
    ("in_order", "No shuffle: the examples in their order.", {"shuffle": False}, 9, 7, 3),
    ("large_rate", "A large learning rate: the delta is not clipped here.", {"learning_rate": 4.0}, 9, 7, 3),
)

_BELOW = math.nextafter(0.5, 0.0)
# id, sentence, delta, clip norm
CONTRIBUTIONS: tuple[tuple[str, str, tuple[float, ...], float], ...] = (
    ("zero", "Zeros stay zeros.", (0.0, -0.0, 0.0), 0.5),
    ("below", "Below the clip norm nothing is scaled.", (0.1, -0.2, 0.0625), 0.5),
    ("above", "Above it the direction is kept.", (3.0, -4.0, 0.5), 0.5),
    ("exact", "A norm of exactly the clip norm stays within it, in exact arithmetic.", (0.3, 0.4), 0.5),
    ("just_above", "One unit in the last place too long.", (math.nextafter(0.5, 1.0), 0.0), 0.5),
    ("just_below", "One unit in the last place short.", (_BELOW, 0.0), 0.5),
    ("toward_zero", "Coordinates between two places of the grid go toward zero, on both sides.",
     tuple(k * grid_step(0.5) for k in (1.9, -1.9, 0.999, -0.999, 7.5, -7.5)), 0.5),
    ("subnormal", "Subnormal numbers vanish, and hurt nobody.", (5e-324, -2e-310, 1e-320), 0.5),
    ("tiny_above", "Their squares underflow, but the norm does not.", (3e-200, 4e-200), 1e-200),
    ("huge", "Squares that overflow are clipped all the same.", (1e200, -1e200, 1e199), 0.5),
    ("largest", "The largest number there is.", (1.7976931348623157e308, -1.7976931348623157e308), 0.5),
    ("nan", "NaN is refused.", (math.nan, 0.0), 0.5),
    ("infinite", "Infinity is refused.", (math.inf, 0.0), 0.5),
    ("minus_infinite", "Minus infinity is refused.", (0.0, -math.inf), 0.5),
    ("wide", "Many coordinates: the margin grows with their number.", tuple([0.03125] * 1000), 0.5),
)  # fmt: skip

# id, sentence, session, sources, weights by name (None: the bundle's), count
RANKINGS: tuple[tuple[str, str, str, tuple[str, ...], Mapping[str, float] | None, int], ...] = (
    ("nothing_known", "Without a wish the catalogue alone ranks.", "empty", ("catalogue",), None, 40),
    ("chat", "A wish moves what it names to the front.", "chinese", ("catalogue", "chat"), None, 40),
    ("choices", "What was chosen before ranks.", "choices", ("catalogue", "choices"), None, 40),
    ("both", "Both together.", "both", ("catalogue", "chat", "choices"), None, 40),
    ("chat_not_granted", "Without its source a wish changes no bit.", "both", ("catalogue", "choices"), None, 40),
    ("choices_not_granted", "Without their source choices change no bit.", "both", ("catalogue", "chat"), None, 40),
    ("no_source", "Without a source at all every score is the same.", "both", (), None, 40),
    ("all_equal", "Equal scores keep the order of the catalogue.", "both", ("catalogue", "chat"), {}, 40),
    ("ties", "Groups of equal scores, each in the order of the catalogue.", "chinese", ("chat",), {"dish": 1.0}, 40),
    ("ties_against", "A negative weight turns the groups round, and not the order inside them.", "chinese", ("chat",),
     {"dish": -1.0, "facility": -1.0}, 40),
    ("first_three", "As many as were asked for.", "english", ("catalogue", "chat"), None, 3),
)  # fmt: skip


def catalogue() -> Catalogue:
    return catalogue_from_bytes((FIXTURES / "catalogue.json").read_bytes(), 1 << 20)


def trained() -> Trained:
    """The match model with weights that prefer what was wished for, and cheap places without a wish."""
    weights = dict.fromkeys(NAMES, 1.0) | {
        "price_level": -0.5,
        "rejected": -2.0,
        "near_other": 0.75,
        "alike_own": 0.625,
    }
    return Trained(
        name="conformance",
        model=MatchModel(len(NAMES)),
        parameters={"weights": np.array(list(weights.values()), np.float32)},
        examples="match",
        example_options=(),
        features=NAMES,
        terms=TERMS,
        mechanism=MECHANISM,
        catalogue=catalogue(),
    )


def fixtures() -> dict[str, bytes]:
    """Every file but ``catalogue.json``."""
    made = trained()
    _, files = task_files(made, make_policy(1.0, NOBODYS_KEY), PlanOptions(max_examples=64))
    return {
        **{name: files[name] for name in (PLAN, STEP, INFER, WEIGHTS, GOLDEN)},
        RULES: catalogue_bytes(kit_rules.RULES),
        "vectors.json": vectors(made),
    }


def vectors(made: Trained) -> bytes:
    """The kit's own cases with the answers they must get."""
    index = CatalogueIndex.build(made.catalogue)
    queries = {case[0]: make_query(session_of(case), index) for case in SESSIONS}
    body = {
        "schema": "fedlearn.conformance/1",
        "index_digest": index.digest,
        "query": [
            {"id": case[0], "sentence": case[1], **occasion_json(case), "query": queries[case[0]].flat().tolist()}
            for case in SESSIONS
        ]
        + list(rule_queries()),
        "rows": [*rows(queries, index), *rule_rows()],
        "update": [update(case, made) for case in UPDATES],
        "contribute": [contribution(case) for case in CONTRIBUTIONS],
        "rank": [ranking(case, queries, made, index) for case in RANKINGS],
    }
    return canonical_bytes(body)


def session_of(case: Any) -> Session:
    _, _, messages, earlier = case
    said = tuple(Message(text, way, at, spans) for at, (text, way, spans) in enumerate(messages))
    return Session(said, tuple(Choice(key, app, at - 99) for at, (key, app) in enumerate(earlier)), 0, "kit")


def occasion_json(case: Any) -> dict[str, Any]:
    return {
        "messages": [
            {"text": text, "direction": way.value, "foreign_spans": [list(span) for span in spans]}
            for text, way, spans in case[2]
        ],
        "earlier": [list(choice) for choice in case[3]],
    }


def rows(queries: Mapping[str, Query], index: CatalogueIndex) -> Iterator[dict[str, Any]]:
    everything = tuple(range(index.n))
    for name, query in queries.items():
        wanted = everything if name in {"both", "named"} else (39, 0, 17, 0, 5)
        found = match(query, index, np.array(wanted, np.int64))
        yield {
            "id": name,
            "sentence": f"Match features of the Query of query.{name}.",
            "query": query.flat().tolist(),
            "candidates": list(wanted),
            "rows": array_json(found),
        }


def rule_queries() -> Iterator[dict[str, Any]]:
    """Queries of the catalogue of rules; ``catalogue`` says which one that is."""
    index = CatalogueIndex.build(kit_rules.RULES)
    for case in kit_rules.SESSIONS:
        session = kit_rules.session_of(case)
        messages = [(message.text, message.direction, message.foreign_spans) for message in session.messages]
        yield {
            "id": f"rule_{case[0]}",
            "sentence": case[1],
            "catalogue": RULES,
            **occasion_json((None, None, messages, [(choice.item, choice.app) for choice in session.earlier])),
            "query": make_query(session, index).flat().tolist(),
        }


def rule_rows() -> Iterator[dict[str, Any]]:
    index = CatalogueIndex.build(kit_rules.RULES)
    for case in kit_rules.SESSIONS:
        query = make_query(kit_rules.session_of(case), index)
        yield {
            "id": f"rule_{case[0]}",
            "sentence": f"Match features of the Query of query.rule_{case[0]}.",
            "catalogue": RULES,
            "query": query.flat().tolist(),
            "candidates": list(range(index.n)),
            "rows": array_json(match_all(query, index)),
        }


def update(case: Any, made: Trained) -> dict[str, Any]:
    name, sentence, changes, count, seed, step = case
    terms = replace(made.terms, **changes)
    local = LocalTraining(terms.epochs, terms.batch_size, terms.learning_rate, terms.shuffle)
    columns = columns_of(count)
    weights = {key: torch.from_numpy(np.array(value)) for key, value in made.parameters.items()}
    delta = {key: torch.zeros_like(value) for key, value in weights.items()}
    for batch in schedule(count, local, simulation_rng(seed, step, "", "shuffle")):
        mask = torch.from_numpy(batch >= 0).unsqueeze(0)
        picked = {key: torch.from_numpy(column[np.maximum(batch, 0)]).unsqueeze(0) for key, column in columns.items()}
        now = {key: (weights[key] + delta[key]).unsqueeze(0) for key in weights}
        change = local_step(made.model, terms.learning_rate)(now, picked, mask)
        delta = {key: delta[key] + change[key].squeeze(0) for key in delta}
    return {
        "id": name,
        "sentence": sentence,
        "training": changes,
        "seed": seed,
        "step": step,
        "columns": {key: array_json(column) for key, column in columns.items()},
        "delta": array_json(delta["weights"].numpy()),
    }


def columns_of(count: int) -> dict[str, NDArray[Any]]:
    """Examples that stand for no person; every number is exact in f32."""
    rng = np.random.Generator(np.random.Philox(key=np.array([11, count], np.uint64)))
    features = np.round(rng.uniform(-1, 1, (count, CANDIDATES, len(NAMES))) * 64) / 64
    label = rng.integers(0, CANDIDATES, count)
    # not alike: a constant would cancel, and who forgot it would pass
    logq = np.round(rng.uniform(-3, 0, (count, CANDIDATES)) * 64) / 64
    return {"features": features.astype(np.float32), "label": label, "logq": logq.astype(np.float32)}


def contribution(case: Any) -> dict[str, Any]:
    name, sentence, delta, clip = case
    step = grid_step(clip)
    found: dict[str, Any] = {
        "id": name,
        "sentence": sentence,
        "delta": array64_json(delta),
        "clip": clip,
        "grid_step": step,
        "grid": None,
    }
    try:
        clipped = clip_l2(np.array(delta, np.float64), clip)
    except ContributionRejected:
        return found
    return {**found, "grid": to_grid(clipped.values, step).tolist()}


def array64_json(values: Sequence[float]) -> list[str]:
    """Doubles as C99 writes them in hexadecimal: exact, NaN and infinity too."""
    return [float(value).hex() for value in values]


def ranking(case: Any, queries: Mapping[str, Query], made: Trained, index: CatalogueIndex) -> dict[str, Any]:
    name, sentence, session, sources, weights, count = case
    granted = feature_mask(sources)
    features = np.where(granted, match_all(queries[session], index), np.float32(0))
    given = made.parameters["weights"]
    if weights is not None:
        given = np.array([weights.get(feature, 0.0) for feature in NAMES], np.float32)
    scores = made.model.scores({"weights": given}, features)
    found = next(one for one in SESSIONS if one[0] == session)
    return {
        "id": name,
        "sentence": sentence,
        **occasion_json(found),
        "sources": list(sources),
        "weights": None if weights is None else array_json(given),
        "count": count,
        "ranking": certain_ranking(scores, list(index.keys))[:count],
    }


if __name__ == "__main__":
    for file, data in fixtures().items():
        (FIXTURES / file).write_bytes(data)
        sys.stdout.write(f"{len(data):8} {Path(file).name}\n")
