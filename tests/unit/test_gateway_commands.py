"""`fedlearn credentials` and `fedlearn devices`: what they make a gateway takes, whom they revoke it refuses."""

from __future__ import annotations

import json
import stat
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import gateway_door as doors
import gateway_fleet as fleets

from fedlearn.device.credential import open_credential
from fedlearn.device.requests import Denial
from fedlearn.errors import OutOfRange, PrivacyError
from fedlearn.ledger.signing import read_public
from fedlearn.proto import gateway_pb2 as pb
from fedlearn_server.gateway import command, credentials_command, devices_command


def test_issued_credentials_enrol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "issuer.key"
    assert credentials_command.main(["key", str(key)]) == 0
    public = read_public(str(tmp_path / "issuer.key.pub"))
    assert public in capsys.readouterr().out
    given = ["--key", str(key), "--population", fleets.POPULATION, "--out", str(tmp_path / "out"), "--days", "2"]
    assert credentials_command.main(["issue", *given, "--count", "3"]) == 0
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    found = open_credential(files[0].read_bytes(), [public], time.time())
    assert files[0].name == f"{found.serial.hex()}.credential"
    assert 1.9 * 86_400 < found.expires - time.time() <= 2 * 86_400
    desk = doors.Desk(tmp_path, issuers=(public,), clock=doors.Clock(time.time()))
    try:
        for number, path in enumerate(files, 1):
            phone = desk.phone(number, enrolled=False)
            reply = desk.ask(phone.enrolment(credential=path.read_bytes()))
            assert reply.outcome == pb.EnrolReply.OUTCOME_ENROLLED
    finally:
        desk.close()


@pytest.mark.parametrize(
    ("more", "field"),
    [
        (["--count", "0"], "--count"),
        (["--days", "0"], "--days"),
        (["--days", "nan"], "--days"),
        (["--population", ""], "credential.population"),
    ],
    ids=range(4),
)
def test_bad_orders_issue_nothing(tmp_path: Path, more: list[str], field: str) -> None:
    credentials_command.main(["key", str(tmp_path / "key")])
    given = ["--key", str(tmp_path / "key"), "--population", "city", "--out", str(tmp_path / "out"), *more]
    with pytest.raises(OutOfRange, match=field):
        credentials_command.main(["issue", *given])
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_key_is_not_replaced_and_not_shared(tmp_path: Path) -> None:
    key = tmp_path / "key"
    credentials_command.main(["key", str(key)])
    with pytest.raises(OutOfRange, match="exists"):
        credentials_command.main(["key", str(key)])
    key.chmod(0o644)
    with pytest.raises(PrivacyError):
        credentials_command.main(["issue", "--key", str(key), "--population", "city", "--out", str(tmp_path / "out")])


def test_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    desk = doors.Desk(tmp_path)
    try:
        first, second = desk.phone(1), desk.phone(2)
        store = ["--store", str(tmp_path / "gateway.db"), "--json"]

        def listed(*more: str) -> dict[str, object]:
            capsys.readouterr()
            assert devices_command.main(["list", *store, *more]) == 0
            return {row["key"]: row["revoked"] for row in json.loads(capsys.readouterr().out)}

        assert listed() == {first.device.hex(): None, second.device.hex(): None}
        assert listed("--population", "village") == {}
        for wrong in ("", first.device.hex()[:15], "ff" * 32):
            with pytest.raises(OutOfRange, match="KEY"):
                devices_command.main(["revoke", *store, wrong])
        assert devices_command.main(["revoke", *store, first.device.hex()[:16]]) == 0
        assert listed()[first.device.hex()]
        assert not listed()[second.device.hex()]
        assert desk.ask(first.check_in()).reason == Denial.REVOKED, "at its next request"
        assert desk.ask(second.check_in()).reason == Denial.NO_TASK
    finally:
        desk.close()


def test_no_state_is_made_by_a_typing_error(tmp_path: Path) -> None:
    with pytest.raises(OutOfRange, match=r"--store .*no such file"):
        devices_command.main(["list", "--store", str(tmp_path / "absent.db")])
    assert not list(tmp_path.iterdir())


def test_bad_settings_end_the_gateway_before_it_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text("listen = 7\n", encoding="utf-8")
    assert command.main(["--settings", str(path)]) == 2
    assert "error FL100: certificate: must be set." in capsys.readouterr().err
