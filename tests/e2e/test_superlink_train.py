"""`fedlearn train runtime=superlink` without a SuperLink is refused early, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedlearn.errors import DeploymentRefused, FedlearnError, OutOfRange, SuperLinkUnreachable

if TYPE_CHECKING:
    from small_city import SmallCity


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("", DeploymentRefused, "`fedlearn up` makes one"),
        ("runtime.address='127.0.0.1:1' runtime.ca=CA", SuperLinkUnreachable, "does not answer"),
        ("runtime.address='127.0.0.1:1' runtime.ca=nowhere.crt", OutOfRange, r"runtime\.ca=nowhere\.crt"),
    ],
    ids=["no deployment", "nobody listens", "no authority"],
)
def test_no_superlink_is_refused_before_any_work(  # noqa: PLR0917 - fixtures
    small_city: SmallCity,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    error: type[FedlearnError],
    words: str,
) -> None:
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "state"))
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority())
    with pytest.raises(error, match=words):
        small_city.train(tmp_path / "run", "runtime=superlink", *override.replace("CA", str(ca)).split())
    assert not (tmp_path / "run").exists()


def authority() -> bytes:
    import certifi

    return Path(certifi.where()).read_bytes()
