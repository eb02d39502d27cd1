"""Plans, tasks, archives and catalogues: whatever can be written reads back the same, and has one spelling."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fedlearn.catalogue import Catalogue, Item
from fedlearn.device.archive import read_archive, write_archive
from fedlearn.device.catalogue_file import catalogue_bytes, catalogue_from_bytes
from fedlearn.device.mechanism import MechanismTerms
from fedlearn.device.plan import ColumnSpec, ParameterSpec, Scope
from fedlearn.device.plan_codec import plan_bytes, plan_from_bytes
from fedlearn.device.task_codec import open_task, sign_task, task_bytes, task_from_bytes, with_digest
from fedlearn.errors import BundleRefused, TrustError
from fedlearn.privacy.factorization import INDEPENDENT, Blt, Toeplitz, Tree

_spec = importlib.util.spec_from_file_location("device_town", Path(__file__).parents[1] / "unit" / "device_town.py")
town = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town)

TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=20)
FRACTION = st.floats(1e-6, 1.0, exclude_max=True, allow_subnormal=False)
FACTORIZATIONS = st.one_of(
    st.just(("independent", INDEPENDENT)),
    st.just(("gaussian", INDEPENDENT)),
    st.just(("tree", Tree())),
    st.lists(FRACTION, min_size=1, max_size=8).map(
        lambda values: ("banded", Toeplitz((1.0, *sorted(values, reverse=True))))
    ),
    st.lists(FRACTION, min_size=1, max_size=4, unique=True).map(
        lambda decays: ("blt", Blt(tuple(decays), tuple(0.2 for _ in decays)))
    ),
)


@st.composite
def mechanisms(draw: Any) -> MechanismTerms:
    kind, factorization = draw(FACTORIZATIONS)
    clip = draw(st.floats(1e-6, 1e6))
    largest = math.frexp(clip)[1] - 1  # 2^largest <= clip
    return MechanismTerms(
        kind=kind,
        factorization=factorization,
        noise_multiplier=draw(st.floats(1e-9, 1e6)),
        l2_clip_norm=clip,
        grid_step=2.0 ** (largest - draw(st.integers(0, 60))),
        steps=draw(st.integers(9, 2**31 - 1)),
        min_separation=draw(st.integers(1, 2**31 - 1)),
        max_participations=draw(st.integers(1, 2**31 - 1)),
    )


@st.composite
def plans(draw: Any) -> Any:
    names = sorted(draw(st.sets(TEXT, min_size=1, max_size=4)))
    shapes = st.lists(st.integers(1, 9), max_size=4).map(tuple)
    scopes = [Scope.SHARED, *(draw(st.sampled_from(Scope)) for _ in names[1:])]
    options = draw(st.dictionaries(TEXT, st.integers(0, 2**31 - 1), max_size=3))
    columns = sorted(draw(st.sets(TEXT, min_size=1, max_size=3)))
    return town.small_plan(
        name=draw(TEXT),
        serves=draw(st.just("") | TEXT),
        example_options=tuple(sorted(options.items())),
        parameters=tuple(ParameterSpec(name, draw(shapes), scope) for name, scope in zip(names, scopes, strict=True)),
        columns=tuple(ColumnSpec(name, draw(st.sampled_from(("<f4", "<i8"))), draw(shapes)) for name in columns),
        mechanism=draw(mechanisms()),
    )


@given(plans())
def test_plans(plan: Any) -> None:
    data = plan_bytes(plan)
    assert plan_from_bytes(data) == plan
    assert plan_bytes(plan_from_bytes(data)) == data


@given(mechanisms(), st.data())
def test_tasks(mechanism: MechanismTerms, data: Any) -> None:
    issued = data.draw(st.integers(1, 4_000_000_000_000))
    task = with_digest(
        replace(
            town.task(),
            run_id=data.draw(TEXT),
            step=data.draw(st.integers(0, mechanism.steps - 1)),
            attempt=data.draw(st.integers(0, 2**31 - 1)),
            token=data.draw(st.binary(min_size=16, max_size=16)),
            issued=issued / 1000,
            expires=(issued + data.draw(st.integers(1, 10**9))) / 1000,
            round_size=data.draw(st.integers(1, 2**40)),
            shuffle_seed=data.draw(st.integers(-(2**63), 2**63 - 1)),
            mechanism=mechanism,
        )
    )
    assert task.issued == issued / 1000
    assert task_from_bytes(task_bytes(task)) == task
    assert open_task(sign_task(task, town.operator_key()), town.operator_key().public) == task


NAMES = st.from_regex(r"[a-z0-9][a-z0-9_.]{0,20}", fullmatch=True)


@given(st.dictionaries(NAMES, st.binary(max_size=60), min_size=1, max_size=8))
def test_archives(files: dict[str, bytes]) -> None:
    data = write_archive(files)
    found = read_archive(data, len(data))
    assert found == files
    assert list(found) == sorted(files)


@given(st.dictionaries(NAMES, st.binary(max_size=30), min_size=1, max_size=4), st.data())
def test_no_edit_of_an_archive_is_read(files: dict[str, bytes], data: Any) -> None:
    archive = write_archive(files)
    start = data.draw(st.integers(0, len(archive)))
    stop = data.draw(st.integers(start, min(len(archive), start + 40)))
    edited = archive[:start] + data.draw(st.binary(max_size=40)) + archive[stop:]
    try:
        found = read_archive(edited, 10**6)
    except BundleRefused:
        return
    assert write_archive(found) == edited  # another archive, and a whole one


@given(st.binary(max_size=300))
def test_no_bytes_crash_a_reader(data: bytes) -> None:
    for read in (
        lambda: read_archive(data, 200),
        lambda: plan_from_bytes(data),
        lambda: catalogue_from_bytes(data, 200),
    ):
        try:
            read()
        except TrustError:
            continue


WORDS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=3).map(tuple)
ITEMS = st.builds(
    Item,
    domain=st.just("d"),
    name=TEXT,
    attributes=st.dictionaries(TEXT, WORDS, max_size=3),
    price=st.none() | st.integers(0, 10**9) | st.floats(0, 1e12),
    rating=st.none() | st.integers(0, 5) | st.floats(0, 5),
    duration=st.just("") | TEXT,
    nearby=st.lists(TEXT, max_size=3).map(tuple),
)


@given(TEXT, st.lists(ITEMS, min_size=1, max_size=5, unique_by=lambda item: item.name), st.integers(0, 4))
def test_catalogues(name: str, items: list[Item], split: int) -> None:
    context = tuple(replace(item, domain="e") for item in items[1:][:split])
    catalogue = Catalogue(name, "d", tuple(items), context)
    data = catalogue_bytes(catalogue)
    found = catalogue_from_bytes(data, len(data))
    assert found == catalogue
    assert found.digest == catalogue.digest
