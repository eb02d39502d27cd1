"""The page of a run: self-contained, escaped, the same bytes each time, and loud where nothing is guaranteed."""

import dataclasses
import importlib.util
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedlearn.report.compare import compare
from fedlearn.report.html import render_report, write_comparison, write_report

_path = Path(__file__).parents[1] / "unit" / "report_examples.py"
_spec = importlib.util.spec_from_file_location("report_examples", _path)
ex = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ex)

VOID = {"meta", "br"}
NAMESPACES = ('xmlns="http://www.w3.org/2000/svg"', 'xmlns:xlink="http://www.w3.org/1999/xlink"')


class Page(HTMLParser):
    """Text, tags and attributes of a page; fails on a tag that is not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.attributes, self.words = [], [], []
        self.tags = Counter()
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def private_run():
    return ex.summary()


@pytest.fixture(scope="module")
def html(private_run):
    return render_report(private_run, ex.rounds(private_run))


def test_the_page_loads_nothing(html, tmp_path, private_run):
    page = tmp_path / "compare.html"
    write_comparison(page, compare([ex.run_dir(tmp_path, "a", private_run)]))
    for text in (html, page.read_text(encoding="utf-8")):
        bare = text
        for namespace in NAMESPACES:
            bare = bare.replace(namespace, "")
        assert "://" not in bare
        assert "@import" not in bare
        parsed = Page(text)
        assert not parsed.tags.keys() & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
        names = {name for name, _ in parsed.attributes}
        assert not any(name.startswith("on") or name in {"src", "srcset"} for name in names)
        links = [value for name, value in parsed.attributes if name in {"href", "xlink:href"}]
        assert links
        assert all(link.startswith("#") for link in links)
        assert set(re.findall(r"url\((.)", text)) <= {"#"}


def test_ids_are_unique_and_references_resolve(html):
    ids = [value for name, value in Page(html).attributes if name == "id"]
    assert max(Counter(ids).values()) == 1
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', html)) <= set(ids)


def test_the_page_says_the_guarantee_and_who_vouches_for_it(html, private_run):
    text = Page(html).text
    privacy = private_run.privacy
    for sentence in (
        privacy.guarantee,
        "If all 5 models of this study were published: epsilon 9.23 at delta 1e-4 per device.",
        *privacy.assurances.proven,
        *privacy.assurances.enforced,
        *privacy.assurances.word,
        *privacy.trusted,
        *privacy.unprotected,
        "simulation, not a deployment",
        "q = 0.1, realised 0.1013 (not protected)",
        "80 written, 79 with a published model, 1 wasted and counted",
        private_run.command,
        private_run.digests.data,
        "Rejected contributions: 10 over norm.",
    ):
        assert sentence in text, sentence
    assert "NO PRIVACY GUARANTEE" not in text


def test_the_page_shows_every_row_and_interval(html, private_run):
    text = Page(html).text
    for model in private_run.models:
        assert model.name in text
        assert model.note in text
        for m in model.metrics:
            assert f"{m.mean:.3f}" in text
            assert f"{m.lo:.3f}–{m.hi:.3f}" in text
    assert html.count('class="control headline"') == 0
    assert html.count('class="federated headline"') == 1
    # Quality of each model, then evaluation, loss, cohort, epsilon, clipped, signal to noise.
    assert Page(html).tags["svg"] == 7


def test_the_same_records_give_the_same_bytes(tmp_path, private_run, html):
    write_report(tmp_path / "report.html", private_run, ex.rounds(private_run))
    assert (tmp_path / "report.html").read_bytes() == html.encode()


@pytest.mark.parametrize("devices", [60, 100_000])
def test_without_privacy_the_banner_is_loud(devices):
    run = ex.summary(ex.no_privacy(devices))
    page = Page(render_report(run, ex.rounds(run, 3)))
    assert ("role", "alert") in page.attributes
    assert page.text.index("NO PRIVACY GUARANTEE") < page.text.index("Chat to restaurant", 100)
    assert "Epsilon of one training" not in page.text
    assert ("compares methods; not a guarantee to publish" in page.text) == (devices < 1_000)


def test_a_check_that_failed_is_shown_at_the_top(private_run):
    bad = dataclasses.replace(private_run.lifts[1], lo=0.001)
    text = Page(render_report(dataclasses.replace(private_run, lifts=(bad,)), ())).text
    assert text.index("1 of 1 checks not as expected") < text.index("Result")
    assert "not as expected" in text[text.index("Checks and lifts") :]


def test_names_are_escaped_in_words_and_in_charts():
    evil = '<script>alert("1")</script> & $x_1$ 餐厅'
    run = ex.summary()
    models = tuple(dataclasses.replace(m, name=evil) if m.name == ex.HEADLINE else m for m in run.models)
    run = dataclasses.replace(
        run, models=models, headline=evil, gaps=(), task=evil, command=evil, data="</style><b>", run_id=evil
    )
    html = render_report(run, ex.rounds(run, 3))
    page = Page(html)
    assert "<script" not in html
    assert "<b>" not in html
    assert page.text.count(evil) >= 5


def test_a_run_without_rounds_or_metrics_still_has_a_page(private_run):
    rows = tuple(dataclasses.replace(m, metrics=()) for m in private_run.models)
    page = Page(render_report(dataclasses.replace(private_run, models=rows, lifts=(), gaps=()), ()))
    assert page.tags["svg"] == 0
    assert "nothing was measured" in page.text
    assert "Over the rounds" not in page.text


def test_a_diverged_training_still_has_a_page(private_run):
    rounds = [dataclasses.replace(r, loss=float("nan"), update_norm=float("inf")) for r in ex.rounds(private_run, 4)]
    Page(render_report(private_run, rounds))
    Page(render_report(private_run, [dataclasses.replace(r, loss=float("inf")) for r in rounds]))
    Page(render_report(private_run, [dataclasses.replace(r, loss=None, clipped_fraction=None) for r in rounds]))


def test_a_metric_that_is_no_number_leaves_the_chart_and_not_the_table(private_run):
    nan = float("nan")
    rows = tuple(
        dataclasses.replace(m, metrics=(dataclasses.replace(m.metrics[0], mean=nan, lo=nan, hi=nan),))
        for m in private_run.models
    )
    page = Page(render_report(dataclasses.replace(private_run, models=rows, gaps=()), ()))
    assert page.tags["svg"] == 0
    assert "HR@10 –" in page.text


@pytest.mark.parametrize("epsilons", [(), (float("inf"),), (2.98, 2.99, 3.0), (0.3,)])
def test_any_set_of_epsilons_can_be_plotted(tmp_path, epsilons):
    runs = [ex.run_dir(tmp_path, "none", ex.summary(ex.no_privacy()))]
    runs += [ex.run_dir(tmp_path, f"e{e:g}", ex.at_epsilon(e, 0.5)) for e in epsilons]
    write_comparison(tmp_path / "c.html", compare(runs))
    text = Page((tmp_path / "c.html").read_text(encoding="utf-8")).text
    assert "no privacy" in text
    assert f"{len(epsilons) * 2 + 1} model" in text
