"""What is submitted says all and carries no code; what was submitted by others, or is none, is refused."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from fedlearn.errors import CodeMismatch, FedlearnError, MalformedMessage, OutOfRange
from fedlearn.lab import compose
from fedlearn.lab.superlink.order import Order, bundle_files, make_order, read_order
from fedlearn.lab.training import without_privacy
from fedlearn_server.flower import build_bundle

ORDERED = ("experiment=city_quick", "runtime=superlink", "ledger.where=shared.sqlite", "run.dir=runs/one")


class FakeStudy:
    """As much of a study and a training as an order is made from."""

    def __init__(self, *overrides: str) -> None:
        self.config = compose([*ORDERED, *overrides])
        self.directory = Path("runs/one")
        self.run_id = "run-7"
        self.headline = False
        self.seed = -3
        self.split = type("Split", (), {"fold": 2})


@pytest.fixture
def order() -> Order:
    study = FakeStudy()
    training = FakeStudy()
    training.directory = study.directory / "controls" / "no-privacy-fold2-seed-3"
    return make_order(study, study, training)  # type: ignore[arg-type]


def test_an_order_comes_back_as_it_was(order: Order) -> None:
    submitted = dataclasses.replace(order, submission="abc")
    assert read_order(submitted.to_json()) == submitted
    assert (order.headline, order.fold, order.seed, order.run_id) == (False, 2, -3, "run-7")
    assert submitted.digest == order.digest != dataclasses.replace(order, seed=4).digest


def test_paths_are_absolute_and_decide_nothing(order: Order) -> None:
    here = Path.cwd()
    assert order.training_directory == here / "runs" / "one" / "controls" / "no-privacy-fold2-seed-3"
    assert order.config.run.dir == str(here / "runs" / "one")
    assert order.config.ledger.where == str(here / "shared.sqlite")
    assert order.config.digest == compose(list(ORDERED)).digest


def test_a_url_is_no_path_and_data_has_a_root() -> None:
    study = FakeStudy("ledger.where=postgresql://me@host/db", "data=crosswoz", "data.root=data/here")
    order = make_order(study, study, study)  # type: ignore[arg-type]
    assert order.training == "."
    assert order.config.ledger.where == "postgresql://me@host/db"
    assert order.config.data.root == str(Path("data/here").absolute())  # type: ignore[union-attr]


def spoilt(order: Order, **changes: object) -> str:
    return json.dumps({**json.loads(order.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("", MalformedMessage, "not an order"),
        ("[]", MalformedMessage, "not an order"),
        ("{}", MalformedMessage, "code"),
        ('{"code": "0123456789abcdef"}', CodeMismatch, "submitted by code 0123456789ab"),
    ],
)
def test_what_is_no_order_is_refused(text: str, error: type[FedlearnError], words: str) -> None:
    with pytest.raises(error, match=words):
        read_order(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"training": "../elsewhere"},
        {"training": "/etc"},
        {"directory": "runs/one"},
        {"fold": None},
        {"config": 5},
    ],
    ids=lambda changes: next(iter(changes)) + str(next(iter(changes.values()))),
)
def test_a_spoilt_order_is_refused(order: Order, changes: dict[str, object]) -> None:
    with pytest.raises(FedlearnError):
        read_order(spoilt(order, **changes))


def test_other_code_is_refused_before_its_config_is_read(order: Order) -> None:
    with pytest.raises(CodeMismatch, match="install the same version"):
        read_order(spoilt(order, code="f" * 64, config={"anything": "else"}))


def test_a_config_out_of_range_is_refused(order: Order) -> None:
    config = json.loads(order.to_json())["config"]
    config["cohort"]["rounds"] = 0
    with pytest.raises(OutOfRange, match=r"cohort\.rounds"):
        read_order(spoilt(order, config=config))


def test_the_bundle_holds_no_code() -> None:
    names = zipfile.ZipFile(BytesIO(build_bundle(bundle_files()))).namelist()
    assert [name for name in names if not name.startswith(".info")] == ["pyproject.toml"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("runtime.address=host:8000", r"runtime\.ca=null"),
        ("runtime.ca=ca.crt", r"runtime\.address=null: runtime\.ca=ca\.crt"),
        ("runtime.token=t", r"runtime\.address=null: runtime\.token=t"),
        ("runtime.resend_s=0", r"runtime\.resend_s=0"),
        ("runtime.resend_s=nan", r"runtime\.resend_s=nan"),
        ("runtime.minimum=0.9 runtime.enough=0.5", r"runtime\.minimum=0\.9, runtime\.enough=0\.5"),
        ("runtime.minimum=0", r"runtime\.minimum=0"),
        ("runtime.enough=1.5", r"runtime\.enough=1\.5"),
        ("runtime.attempts=0", r"runtime\.attempts=0"),
        ("runtime.shards=0", r"runtime\.shards=0"),
        ("runtime.deadline_s=-1", r"runtime\.deadline_s=-1"),
        ("runtime.ca=c runtime.address=https://host:8000", r"runtime\.address='https"),
        ("runtime.ca=c runtime.address=host", r"runtime\.address='host'"),
        ("runtime.ca=c runtime.address=host:70000", r"runtime\.address='host:70000'"),
    ],
)
def test_a_runtime_out_of_range_names_its_field(override: str, words: str) -> None:
    with pytest.raises(OutOfRange, match=words):
        compose(["experiment=city_quick", "runtime=superlink", *override.split()])


def test_the_control_is_trained_where_it_was_asked_for() -> None:
    config = without_privacy(compose(["experiment=city_quick", "runtime=superlink"]))
    assert (config.runtime.name, config.privacy.mode) == ("in_process", "none")


@pytest.mark.parametrize("address", ["host:8000", "127.0.0.1:1", "[::1]:65535"])
def test_an_address_with_its_authority(address: str) -> None:
    config = compose(["experiment=city_quick", "runtime=superlink", f"runtime.address='{address}'", "runtime.ca=c"])
    assert config.runtime.address == address
