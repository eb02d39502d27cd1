"""The table's own judgement: what counts as equal, as a near miss, and what makes the command fail."""

from __future__ import annotations

import io
import json
import math
import sys

import pytest
from rich.console import Console

from fedlearn.errors import InvalidSpend, MissingDependency
from fedlearn.lab import crosscheck
from fedlearn.lab.bench import accounting
from fedlearn.lab.bench.accounting import DIFFERS, EQUAL, NEAR, reproduced, show_accounting
from fedlearn.lab.bench.conversions import (
    INTEGER_ORDERS,
    canonne_2020,
    converted,
    mironov_2017,
    sampled_curve,
    sampled_divergence,
)
from fedlearn.lab.bench.published import Claim, Run, claims
from fedlearn.lab.commands import bench
from fedlearn.privacy.dp_library import poisson_renyi
from fedlearn.privacy.events import MetricRelease, PoissonGaussian


def claim(published: str, figure: float, within: float = 0.0) -> Claim:
    return Claim("source", "configuration", "conversion", published, lambda: figure, within=within)


@pytest.mark.parametrize(
    ("published", "figure", "within", "agreement", "ours"),
    [
        ("2.92", 2.9249, 0.0, EQUAL, "2.92"),
        ("2.92", 2.9251, 0.0, DIFFERS, "2.925"),
        ("1.20", 1.198, 0.0, EQUAL, "1.20"),
        ("1.34", 1.3497, 0.011, NEAR, "1.350"),
        ("1.34", 1.3597, 0.011, DIFFERS, "1.360"),
        ("634", 633.9, 0.0, EQUAL, "634"),
        ("634", math.nan, 1.0, DIFFERS, "nan"),
    ],
)
def test_agreement_is_to_the_last_printed_digit(
    published: str, figure: float, within: float, agreement: str, ours: str
) -> None:
    row = accounting._row(claim(published, figure, within))
    assert (row.agreement, row.ours) == (agreement, ours)


def test_every_near_miss_is_explained_and_no_row_is_twice() -> None:
    found = list(claims())
    assert len(found) >= 50
    assert all(row.note for row in found if row.within)
    keys = [(row.source, row.configuration, row.conversion) for row in found]
    assert len(set(keys)) == len(keys)


def test_the_command_fails_if_a_row_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    good = Claim("source", "run", "conversion", "1.00", lambda: 1.0, Run([(MetricRelease(30.0), 1)], 1e-6))
    for rows, code in (([good], 0), ([good, claim("2.00", 1.0)], 1)):
        monkeypatch.setattr(accounting, "claims", lambda rows=rows: iter(rows))
        assert bench.main(["accounting", "--json"]) == code
        printed = json.loads(capsys.readouterr().out)
        assert [row["agreement"] == DIFFERS for row in printed] == [False, True][: len(rows)]
        assert bench.main(["accounting"]) == code
        assert ("DIFFERS" in capsys.readouterr().out) == bool(code)


def test_the_table_prints_its_notes() -> None:
    noted = Claim("source", "run", "conversion", "1.34", lambda: 1.3497, within=0.011, note="a reason")
    console = Console(record=True, width=200, file=io.StringIO())
    rows = [accounting._row(noted)]
    show_accounting(console, rows)
    assert "1. a reason" in console.export_text()
    assert reproduced(rows)


def test_quadrature_equals_the_library_at_whole_orders_and_is_below_it_between() -> None:
    for z, q in ((0.6, 0.001), (1.0, 0.01), (4.0, 0.3)):
        for order in (2.0, 5.0, 20.0, 32.0):
            ours = sampled_divergence(z, q, order)
            assert ours == pytest.approx(float(poisson_renyi(z, q, [order])[0]), rel=1e-9)
        assert sampled_divergence(z, q, 3.5) <= float(poisson_renyi(z, q, [3.5])[0]) * (1 + 1e-9)
    assert sampled_divergence(2.0, 1.0, 3.0) == pytest.approx(3 / 8, rel=1e-12)


def test_the_old_conversion_is_looser() -> None:
    curve = sampled_curve(1.0, 0.01, 1000, INTEGER_ORDERS)
    old = converted(curve, 1e-5, mironov_2017, INTEGER_ORDERS)
    assert converted(curve, 1e-5, canonne_2020, INTEGER_ORDERS) < old


def test_cross_check_takes_sampled_events_only() -> None:
    for spend in ([(MetricRelease(1.0), 1)], [(PoissonGaussian(1.0, 0.1), 0)]):
        with pytest.raises(InvalidSpend, match="Poisson-sampled"):
            crosscheck.opacus_prv(spend, 1e-5)  # type: ignore[arg-type]


def test_cross_check_without_opacus_prints_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(MissingDependency, match=r"pip install 'fedlearn\[lab\]'"):
        crosscheck.opacus_prv([(PoissonGaussian(1.0, 0.1), 1)], 1e-5)
