"""The bench of nodes against model size measures what it says; its figures are not tested."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import psutil
import pytest
from rich.console import Console

from fedlearn.errors import OutOfRange
from fedlearn.lab.bench.device_figures import Machine
from fedlearn.lab.bench.scale import QUICK, Idle, ScaleBench, ScaleSizes, bottleneck, row_of
from fedlearn.lab.bench.scale_app import Sample, ScaleOrder, open_null, read_order, scale_job, take_sample, to_json
from fedlearn.lab.bench.scale_forecast import Assumptions, forecast
from fedlearn.lab.bench.scale_nodes import EMPTY_PULL, Calls, from_plain
from fedlearn.lab.bench.scale_table import show_scale
from fedlearn.lab.commands import bench as bench_command
from fedlearn.lab.commands.bench import main
from fedlearn_server.app import make_client_app, make_server_app
from fedlearn_server.grids.in_process import run_in_process
from fedlearn_server.round import RoundOutcome


def sample(wall: float, superlink: float = 0.0, serverapp: float = 0.0, nodes: float = 0.0) -> Sample:
    return Sample(wall, superlink, serverapp, nodes, 0.0, 100, 200, 600)


# the first round, of 9 s, is not timed
SAMPLES = [sample(0.0), sample(9.0, 5.0, 4.0, 3.0), sample(10.0, 5.9, 4.1, 3.2), sample(12.0, 7.4, 4.2, 3.3)]
CALLS = Calls(
    Counter({"PushObject": 18, "SendNodeHeartbeat": 5, EMPTY_PULL: 4}),
    Counter({"PushObject": 900, "SendNodeHeartbeat": 50}),
    Counter({"PushObject": 90}),
)


class TestArithmetic:
    def test_a_row_leaves_the_first_round_out(self) -> None:
        row = row_of("resident", 2, 1000, SAMPLES, CALLS)
        assert (row.rounds, row.seconds, row.least, row.most) == (2, 1.5, 1.0, 2.0)
        assert row.superlink.cpu_s == pytest.approx((7.4 - 5.0) / 4)
        assert row.superlink.cores == pytest.approx((7.4 - 5.0) / 3.0)
        assert row.serverapp.cpu_s == pytest.approx(0.2 / 4)
        assert row.hosts.memory == 300

    def test_traffic_is_of_all_rounds_and_waiting_is_apart(self) -> None:
        found = row_of("resident", 2, 1000, SAMPLES, CALLS).traffic
        assert found is not None
        assert (found.requests, found.sent, found.received, found.waiting) == (3.0, 150.0, 15.0, 1.5)

    @pytest.mark.parametrize(
        ("superlink", "serverapp", "hosts", "machine", "said"),
        [
            (0.9, 0.9, 0.1, (2.0, 2), "SuperLink: 90% of one core"),
            (0.7, 0.85, 0.1, (2.0, 2), "ServerApp: 85% of one core"),
            (0.7, 0.4, 0.6, (2.0, 2), "the machine: all 2 cores busy"),
            (0.5, 0.1, 0.1, (1.9, 2), "other programs: 1.2 of 2 cores; SuperLink had 50% of one"),
            (0.7, 0.4, 0.6, (2.0, 4), "waiting: SuperLink 70%, ServerApp 40% of one core"),
        ],
    )
    def test_the_bottleneck_is_named_by_figures(
        self, superlink: float, serverapp: float, hosts: float, machine: tuple[float, int], said: str
    ) -> None:
        assert bottleneck(superlink, serverapp, hosts, machine=machine[0], cores=machine[1]) == said

    def test_calls_are_added_and_taken_apart(self) -> None:
        more = Calls()
        more.tap("/flwr.proto.Fleet/PullMessages", b"1", b"")
        more.tap("/flwr.proto.Fleet/PullMessages", b"1", bytes(500))
        both = CALLS.plus(more)
        assert both.count[EMPTY_PULL] == 5
        assert both.minus(CALLS).count["PullMessages"] == 1
        assert from_plain(json.loads(json.dumps(both.to_plain()))) == both

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("nodes", (0,), "--nodes"),
            ("nodes", (), "--nodes"),
            ("model_bytes", (3,), "--bytes"),
            ("rounds", 0, "--rounds"),
        ],
    )
    def test_sizes_out_of_range_are_refused(self, name: str, value: object, said: str) -> None:
        with pytest.raises(OutOfRange, match=said):
            replace(QUICK, **{name: value})


class TestForecast:
    GIVEN = Assumptions(
        phones=1_000_000,
        phones_a_node=20_000,
        rounds_a_day=100.0,
        cohort=10_000,
        model_bytes=100_000,
        answer_bytes=200_000,
        node_round_s=0.1,
        idle_s=0.002,
    )

    def test_the_arithmetic(self) -> None:
        found = forecast(self.GIVEN)
        assert found.nodes == 50
        assert found.round_s == pytest.approx(5.0)
        assert found.rounds_a_day == pytest.approx(0.9 * 86_400 / 5.0)
        assert found.cores == pytest.approx((100 * 5.0 / 86_400 + 0.1) / 0.5)
        assert found.superlink_bytes == pytest.approx(100 * 50 * 300_000)
        assert found.phone_rounds_a_day == pytest.approx(1.0)
        assert found.phone_bytes == pytest.approx(200_000)
        assert found.gateway_bytes == pytest.approx(20_000 * 200_000)

    def test_nodes_that_fill_superlink_by_waiting_leave_no_round(self) -> None:
        assert forecast(replace(self.GIVEN, phones_a_node=1_000)).rounds_a_day == 0.0

    @pytest.mark.parametrize("name", ["phones", "phones_a_node", "cohort", "rounds_a_day", "node_round_s"])
    def test_nothing_of_something_is_refused(self, name: str) -> None:
        with pytest.raises(OutOfRange, match="must be > 0"):
            replace(self.GIVEN, **{name: 0})

    def test_a_cohort_above_the_population_is_refused(self) -> None:
        with pytest.raises(OutOfRange, match="at most the population"):
            replace(self.GIVEN, cohort=1_000_001)


def test_the_training_of_the_bench_is_a_whole_one(tmp_path) -> None:
    """Its contributions are accepted, of the size of the model, and the model stays."""
    order = ScaleOrder(str(tmp_path), weights=10, parts=3, rounds=2, seed=0, superlink=1, nodes=(2, 3))
    assert read_order(to_json(order)) == order
    seen: list[RoundOutcome] = []
    run_in_process(make_server_app(scale_job(order), seen.append), make_client_app(lambda: open_null), 3)
    assert [outcome.unprotected.cohort for outcome in seen] == [3, 3]
    assert [outcome.update_norm for outcome in seen] == [0.0, 0.0]


def test_a_sample_is_of_the_processes_it_names() -> None:
    own = psutil.Process()
    before = own.cpu_times()
    found = take_sample(own.pid, [own.pid, own.pid])
    assert found.superlink >= before.user + before.system
    assert found.nodes >= 2 * (before.user + before.system)
    assert found.superlink_bytes > 2**20


def test_the_tables_are_read_at_80_columns() -> None:
    machine = Machine(2, "x86_64", "Linux", "3.11.2", {"flwr": "1.41.0"}, (0.5, 1.25))
    row = replace(row_of("resident", 1000, 10_000_000, SAMPLES, CALLS), seconds=123.4, least=100.0, most=234.56)
    bench = ScaleBench("0.1.0 abc", machine, ScaleSizes(), 61.0, (row, row), (Idle(0, 0.1, 0.0),))
    shown = io.StringIO()
    show_scale(Console(file=shown, width=80), bench)
    said = shown.getvalue()
    assert max(map(len, said.splitlines())) <= 80
    assert "…" not in said
    for words in ("100.00-234.56", "10,000,000", "SuperLink", "ServerApp", "received", "waiting"):
        assert words in said
    assert f"resident, 1000 nodes, 10,000,000 B: {row.bottleneck}" in said
    assert "61 s on 2 cores (x86_64, Linux); load 0.5 before, 1.25 after;" in said
    assert "Machine(" not in said


@pytest.mark.parametrize(("terminal", "width"), [(True, 80), (False, 160)])
def test_a_file_has_no_width_to_fit_into(monkeypatch: pytest.MonkeyPatch, terminal: bool, width: int) -> None:
    made: list[Console] = []

    def console(**options: Any) -> Console:
        return Console(force_terminal=terminal, **{"width": 80, **options})

    monkeypatch.setattr(bench_command, "Console", console)
    monkeypatch.setattr("fedlearn.lab.bench.scale.bench_scale", lambda *_: None)
    monkeypatch.setattr("fedlearn.lab.bench.scale_table.show_scale", lambda console, _: made.append(console))
    assert main(["scale", "--quick"]) == 0
    assert [console.width for console in made] == [width]


def test_the_stock_path_is_compared_with_as_many_resident_nodes() -> None:
    ours, other = row_of("resident", 3, 1000, SAMPLES, CALLS), row_of("resident", 4, 1000, SAMPLES[:3], CALLS)
    stock = replace(row_of("stock", 3, 1000, SAMPLES, None), seconds=30.0)
    bench = ScaleBench("", None, ScaleSizes(), 1.0, (other, ours, stock), (Idle(0, 0.1, 0.0),))
    assert bench.stock_ratio == pytest.approx(20.0)


def test_the_command_refuses_a_list_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["scale", "--nodes", "1,x"])
    assert "--nodes" in capsys.readouterr().err
