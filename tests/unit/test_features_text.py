"""Normalisation, foreign spans and tokens: the part that other languages port."""

from __future__ import annotations

import pytest

from fedlearn.errors import OutOfRange
from fedlearn.features.text import BREAK, normalise, own_text, stem, terms


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        ("  Hello   WORLD ", "hello world"),
        ("ＷｉＦｉ　１２３", "wifi 123"),
        ("3小时 - 4小时", "3小时- 4小时"),
        ("我 想吃 pizza 和 面", "我想吃pizza和面"),
        ("don’t – really", "don't - really"),
        ("Straße ﬁne", "strasse fine"),
        ("a\r\n\n b", f"a{BREAK}b"),
        ("", ""),
    ],
)
def test_normalise_follows_the_table(raw: str, canonical: str) -> None:
    assert normalise(raw) == canonical
    assert normalise(canonical) == canonical


def test_foreign_span_becomes_one_break_whatever_it_held() -> None:
    assert own_text("我要「火锅」吧", ((2, 6),)) == f"我要{BREAK}吧"
    assert own_text("我要吧", ((2, 2),)) == f"我要{BREAK}吧"
    assert own_text("abcdef", ((1, 3), (2, 5))) == f"a{BREAK}f"


@pytest.mark.parametrize("span", [(-1, 2), (2, 1), (0, 4)])
def test_foreign_span_outside_the_text_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(OutOfRange, match="foreign_spans"):
        own_text("abc", (span,))


def test_terms_are_grams_of_cjk_runs_and_stemmed_words() -> None:
    assert list(terms("麻辣火锅")) == [("麻辣", 0), ("辣火", 1), ("火锅", 2), ("麻辣火", 0), ("辣火锅", 1)]
    assert [t for t, _ in terms("two spicy noodles for a party")] == ["two", "spicy", "noodle", "party"]


def test_numbers_stop_words_and_single_characters_are_no_terms() -> None:
    assert list(terms("面 24h 100 the 13812345678")) == []


@pytest.mark.parametrize(
    ("word", "root"),
    [
        ("dishes", "dish"),
        ("berries", "berry"),
        ("noodles", "noodle"),
        ("swiss", "swiss"),
        ("citrus", "citrus"),
        ("bus", "bus"),
    ],
)
def test_stem_drops_plural_endings(word: str, root: str) -> None:
    assert stem(word) == root
