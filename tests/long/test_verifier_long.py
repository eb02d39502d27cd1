"""The verifier at full size: long records, large trees, and many more spends against fedlearn's accountants."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.long

TESTS = Path(__file__).parents[1]


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


golden = load("verifier_golden", TESTS / "golden" / "test_verifier_epsilon.py")
r = load("ledger_record", TESTS / "unit" / "ledger_record.py")
v = golden.v


@pytest.mark.parametrize(
    ("n", "gap", "k", "published"),
    # Gboard's es-ES of 2022 (google-research/federated, dp_ftrl): squared sensitivity 79 with 313 steps between
    [(2000, 313, 6, 79), (2048, 99, 21, None), (2048, 399, 6, None)],
)
def test_trees(n: int, gap: int, k: int, published: int | None) -> None:
    from fedlearn.privacy.factorization import Tree
    from fedlearn.privacy.sensitivity import squared_sensitivity

    found = v.tree_sensitivity(n, gap + 1, k)
    assert published in (None, found)
    assert found == pytest.approx(squared_sensitivity(Tree(), n, gap + 1, k), rel=1e-12)


@pytest.mark.parametrize("n", [21, 24, 27])
def test_trees_against_every_pattern(n: int) -> None:
    for b in (2, 3, 5, 8):
        for k in range(1, min(5, -(-n // b)) + 1):
            assert v.tree_sensitivity(n, b, k) == golden.brute_tree(n, b, k), (n, b, k)


@pytest.mark.parametrize("kind", sorted(golden.MAKERS))
def test_epsilon_equals_fedlearns(kind: str) -> None:
    golden.compare(kind, 25, (1e-3, 1e-5, 1e-8))


def test_ten_thousand_entries(tmp_path: Path) -> None:
    draft = r.training(3333)
    path = draft.write(tmp_path / "export.jsonl")
    v.verify(path)  # the one accounting
    begin = time.perf_counter()
    (facts,) = v.verify(path)["records"]
    seconds = time.perf_counter() - begin
    assert facts["entries"] == 10_002
    print(f"{facts['entries']} entries in {seconds:.2f} s")
