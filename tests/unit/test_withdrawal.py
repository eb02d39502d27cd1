"""Taken back is gone: from the disk, from the KeyStore, from what waits to leave; and history stays."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedlearn.errors import SignatureRefused, StoreFailed
from fedlearn.policy.canonical import canonical_bytes
from fedlearn_client.consent import Age
from fedlearn_client.receipts import Receipt, verify_receipt
from fedlearn_client.store.sealing import signal_context


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


world, image = _load("store_world"), _load("store_image")
NOW, CHAT, CHOICE, SOURCES, USES = world.NOW, world.CHAT, world.CHOICE, world.SOURCES, world.USES
RANK, MAPS, TRAIN = USES
CHAT_BODY = b"what the owner said about restaurants, derived"


def _fill(phone, count: int = 5) -> None:
    for app, _ in SOURCES:
        phone.stream(app)
    phone.grant_all()
    for app, _ in SOURCES:
        phone.push(app, [(f"{app}-{number}", NOW - 100 + number, CHAT_BODY + app.encode()) for number in range(count)])


@pytest.fixture
def phone(tmp_path: Path):
    phone = world.open_phone(tmp_path / "phone")
    _fill(phone)
    yield phone
    phone.close()


def _withdraw_all(phone, app: str) -> list[Receipt]:
    return [phone.withdrawals.withdraw(app, dict(SOURCES)[app], *use) for use in USES]


def _statement(phone, receipt: Receipt) -> dict:
    return verify_receipt(receipt, phone.keystore.public_key())


def _pending(phone) -> int:
    return phone.database.rows("SELECT count(*) FROM withdrawals WHERE finished IS NULL")[0][0]


# what goes and what stays


def test_data_stays_for_the_grants_that_are_left(phone) -> None:
    first, second, last = _withdraw_all(phone, "chat")[:3]
    assert [_statement(phone, one)["rows_destroyed"] for one in (first, second, last)] == [0, 0, 5]
    assert [len(_statement(phone, one)["keys"]) for one in (first, second, last)] == [0, 0, 1]
    assert phone.read("chat") == []
    assert len(phone.read("dining", "maps")) == 10
    assert phone.database.rows("SELECT count(*) FROM signals") == [(10,)]


def test_each_withdrawal_ends_its_use_at_once(phone) -> None:
    phone.withdrawals.withdraw("chat", CHAT, *RANK)
    assert "chat" not in {one.app for one in phone.consent.effective(*RANK)}
    assert "chat" in {one.app for one in phone.consent.effective(*MAPS)}
    assert phone.read("chat")


def test_consent_set_off_is_a_withdrawal(phone) -> None:
    receipt = phone.consent.set("chat", CHAT, *RANK, False, 0)
    assert _statement(phone, receipt)["kind"] == "withdrawn"


def test_off_twice_has_one_receipt(phone) -> None:
    assert phone.withdrawals.withdraw("chat", CHAT, *RANK) is not None
    assert phone.withdrawals.withdraw("chat", CHAT, *RANK) is None
    assert phone.withdrawals.withdraw("nobody", CHAT, *RANK) is None
    assert len(phone.receipts.all()) == 1


@pytest.mark.parametrize("void", ["restricted", "text", "expired", "no policy", "minor"])
def test_a_grant_that_has_no_effect_keeps_no_data(phone, void: str) -> None:
    """Two uses are left on, but nothing may use the data any longer."""
    if void == "restricted":
        phone.streams.restrict("chat", "main", ["train"])
        phone.withdrawals.withdraw("chat", CHAT, *MAPS)
    elif void == "text":
        phone.policy = world.make_policy(version=2)
    elif void == "expired":
        phone.clock.time = 2_100_000_000.0
    elif void == "no policy":
        phone.policy = None
    else:
        phone.facts.set("owner_age", b"minor")
        phone.consent.changed()
    receipt = phone.withdrawals.withdraw("chat", CHAT, *RANK)
    assert len(_statement(phone, receipt)["keys"]) == 1
    assert phone.database.rows(
        "SELECT count(*) FROM signals s JOIN streams t ON t.id = s.stream WHERE app = 'chat'"
    ) == [(0,)]


def test_the_off_switch_does_not_make_a_withdrawal_wider(phone) -> None:
    phone.consent.set_owner(Age.ADULT, True)
    phone.withdrawals.withdraw("chat", CHAT, *RANK)
    phone.consent.set_owner(Age.ADULT, False)
    assert len(phone.read("chat")) == 5


def test_regrant_begins_empty(phone) -> None:
    before = phone.consent.effective(*RANK)
    _withdraw_all(phone, "chat")
    phone.grant("chat", CHAT, *RANK)
    assert phone.read("chat") == []
    assert phone.consent.effective(*RANK) != before, "an upload from before could pass for one from after"
    phone.push("chat", [("chat-1", NOW - 1, b"said again")])
    assert phone.read("chat") == [b"said again"]


def test_uploads_and_own_parameters_of_the_use_go(phone) -> None:
    kept, prepared, sent = phone.upload("train", "another"), phone.upload(*TRAIN), phone.upload(*TRAIN)
    assert phone.egress.depart(sent)
    with phone.database.transaction() as connection:
        phone.private.save("plan", *TRAIN, b"mine", connection, basis="streams", expires=9e9)
        phone.private.save("other", "train", "another", b"others", connection, basis="streams", expires=9e9)
    alias = phone.database.rows("SELECT key_alias FROM private_parameters WHERE plan = 'plan'")[0][0]
    phone.withdrawals.withdraw("chat", CHAT, *RANK)
    assert phone.private.load("plan", "streams") == b"mine"
    receipt = phone.withdrawals.withdraw("chat", CHAT, *TRAIN)
    statement = _statement(phone, receipt)
    assert (statement["uploads_destroyed"], len(statement["keys"])) == (1, 2)  # of the parameters, of the uploads
    entries = {entry.id: (entry.state.value, entry.body) for entry in phone.egress.entries(10, True)}
    assert entries == {
        kept: ("prepared", b"contribution"),
        prepared: ("destroyed", None),
        sent: ("sent", None),
    }
    assert not phone.egress.depart(prepared)
    assert phone.private.load("plan", "streams") == b""
    assert phone.private.load("other", "streams") == b"others"
    with pytest.raises(StoreFailed, match="gone"):
        phone.keystore.unwrap(alias, b"anything")


def test_purge_is_for_all_uses_of_one_stream(phone) -> None:
    second = phone.stream("chat", name="second")
    phone.signals.add(second, [world.new_signal("a", NOW - 1, b"second")])
    upload = phone.upload(*TRAIN)
    receipt = phone.withdrawals.purge(phone.stream("chat"))
    statement = _statement(phone, receipt)
    assert statement["kind"] == "purged"
    assert (statement["rows_destroyed"], statement["uploads_destroyed"], statement["purpose"]) == (5, 1, "")
    assert phone.read("chat") == [b"second"]
    assert phone.egress.entries(1, True)[0].id == upload
    assert not phone.egress.depart(upload)
    assert phone.consent.effective(*RANK), "a purge takes no grant back"
    assert _statement(phone, phone.withdrawals.purge(phone.stream("chat")))["rows_destroyed"] == 0


@pytest.mark.parametrize("age", [Age.MINOR, Age.UNKNOWN])
def test_an_owner_who_is_no_adult_has_nothing_here(phone, age: Age) -> None:
    phone.upload(*TRAIN)
    with phone.database.transaction() as connection:
        phone.private.save("plan", "train", "another", b"mine", connection, basis="streams", expires=9e9)
    (receipt,) = phone.consent.set_owner(age, False)
    statement = _statement(phone, receipt)
    assert (statement["kind"], statement["rows_destroyed"], statement["uploads_destroyed"]) == ("owner", 15, 1)
    assert phone.database.rows("SELECT count(*) FROM signals") == [(0,)]
    assert phone.private.load("plan", "streams") == b""
    assert not any(one.on for one in phone.consent.switches())
    assert phone.consent.set_owner(age, True) == []


def test_disputed_data_goes_and_goes_once(phone) -> None:
    phone.policy = world.make_policy(disputed=["chat", "maps"])
    kinds = [_statement(phone, one) for one in phone.consent.policy_changed()]
    assert [(one["kind"], one["app"], one["rows_destroyed"]) for one in kinds] == [
        ("disputed", "chat", 5),
        ("disputed", "maps", 5),
    ]
    assert phone.database.rows("SELECT count(*) FROM signals") == [(5,)]
    assert phone.consent.policy_changed() == []


def test_changed_words_keep_the_rows_unused(phone) -> None:
    phone.policy = world.make_policy(version=2)
    assert phone.consent.policy_changed() == []
    assert not phone.consent.has_any(*RANK)
    assert len(phone.read("chat")) == 5
    phone.grant("chat", CHAT, *RANK)
    assert len(phone.read("chat")) == 5


def test_history_is_never_touched(phone) -> None:
    tables = ("participations", "tokens", "runs")
    with phone.database.transaction() as connection:
        for table in tables:
            # a row of anything: what the columns mean is not this test's matter
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            values = [b"\xab\xcd" if name in {"digest", "token"} else 1 for name in columns]
            marks = ", ".join("?" for _ in columns)
            connection.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", values)
    before = {table: phone.database.rows(f"SELECT * FROM {table}") for table in tables}
    receipts = [*_withdraw_all(phone, "chat"), phone.withdrawals.purge(phone.stream("maps"))]
    receipts += phone.consent.set_owner(Age.MINOR, False)
    assert {_statement(phone, one)["participations_head"] for one in receipts} == {"abcd"}
    assert before == {table: phone.database.rows(f"SELECT * FROM {table}") for table in tables}


# receipts


def test_a_receipt_says_what_was_done(phone) -> None:
    receipt = _withdraw_all(phone, "chat")[2]
    statement = _statement(phone, receipt)
    assert receipt.statement == canonical_bytes(statement)
    assert {key: statement[key] for key in statement if key != "keys"} == {
        "kind": "withdrawn", "time": round(NOW * 1000), "app": "chat", "data_type": "message_content",
        "purpose": "train", "recipient": "operator", "text_version": 1, "rows_destroyed": 5, "uploads_destroyed": 0,
        "participations_head": "",
    }  # fmt: skip
    assert phone.receipts.all()[0] == receipt
    assert len(phone.receipts.all()) == 3
    assert "statement" not in repr(receipt)


def test_a_forged_receipt_is_refused(phone, tmp_path: Path) -> None:
    receipt = phone.withdrawals.purge(phone.stream("chat"))
    other = world.FileKeyStore(tmp_path / "other")
    forged = [
        Receipt(receipt.statement.replace(b":5,", b":9,"), receipt.signature, receipt.public_key),
        Receipt(receipt.statement, bytes(64), receipt.public_key),
        Receipt(receipt.statement, other.sign(receipt.statement), other.public_key()),  # without the context
        Receipt(receipt.statement, receipt.signature, b""),
    ]
    assert forged[0].statement != receipt.statement
    for one in forged:
        with pytest.raises(SignatureRefused):
            verify_receipt(one)
    with pytest.raises(SignatureRefused, match="another phone"):
        verify_receipt(receipt, other.public_key())


# images of disk and KeyStore


def _bodies(taken, app: str) -> list[tuple]:
    sql = (
        "SELECT t.wrapped_key, t.key_alias, s.stream, s.mark, s.time, s.body"
        f" FROM signals s JOIN streams t ON t.id = s.stream WHERE app = '{app}'"
    )
    return [tuple(bytes(part) if isinstance(part, memoryview) else part for part in row) for row in taken.query(sql)]


def _plain(taken, rows: list[tuple]) -> list[bytes]:
    """Every body of ``rows`` that some key in the image opens."""
    found = []
    for wrapped, _, stream, mark, time, body in rows:
        for key in taken.opened(wrapped):
            try:
                found.append(AESGCM(key).decrypt(body[:12], body[12:], signal_context(stream, mark, time)))
            except InvalidTag:
                continue
    return found


def test_an_image_from_before_opens_the_stream_and_one_from_after_does_not(phone, tmp_path: Path) -> None:
    before = image.Image.take(tmp_path / "phone", tmp_path / "before")
    rows, others = _bodies(before, "chat"), _bodies(before, "dining")
    assert _plain(before, rows) == [CHAT_BODY + b"chat"] * 5
    assert all(row[-1] in before.pages for row in rows), "the scan does not see what is there"
    _withdraw_all(phone, "chat")
    after = image.Image.take(tmp_path / "phone", tmp_path / "after").knowing(before.aliases)
    # even for a thief who has the rows and the wrapped key from an older image, and knows what to look for
    assert _plain(after, rows) == []
    assert _plain(after, others) == [CHAT_BODY + b"dining"] * 5, "the negative control: others are still there"
    # and the rows themselves are in no page, free, outdated or logged
    pages = after.pages
    for wrapped, _, _, mark, _, body in rows:
        assert wrapped not in pages
        assert mark not in pages
        assert body not in pages
        assert body[:16] not in pages
    assert all(row[-1] in pages for row in others)
    assert (after.directory / "store" / "store.db-wal").stat().st_size < 64 * 1024, "the log was not cut"


def test_an_old_copy_of_the_disk_opens_no_upload_after_a_withdrawal(phone, tmp_path: Path) -> None:
    for pair in (TRAIN, ("train", "another")):
        phone.upload(*pair)
    before = image.Image.take(tmp_path / "phone", tmp_path / "before")
    assert b"contribution" not in before.pages, "an upload lies there unsealed"
    bodies = dict(before.query("SELECT recipient, body FROM egress"))
    wrapped = dict(before.query("SELECT recipient, wrapped_key FROM egress_keys"))
    digests = dict(before.query("SELECT recipient, sha256 FROM egress"))

    def plain(taken, recipient: str) -> list[bytes]:
        body = bytes(bodies[recipient])
        keys = taken.opened(bytes(wrapped[recipient]))
        return [AESGCM(key).decrypt(body[:12], body[12:], bytes(digests[recipient])) for key in keys]

    assert plain(before, TRAIN[1]) == [b"contribution"]
    phone.withdrawals.withdraw("chat", CHAT, *TRAIN)
    after = image.Image.take(tmp_path / "phone", tmp_path / "after").knowing(before.aliases)
    assert plain(after, TRAIN[1]) == []
    assert plain(after, "another") == [b"contribution"], "the negative control: another recipient's stays"


def test_without_the_cut_the_log_would_still_show_it(phone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the scan: secure_delete alone leaves rows in the log."""
    before = image.Image.take(tmp_path / "phone", tmp_path / "before")
    rows = _bodies(before, "chat")
    monkeypatch.setattr(phone.database, "erase_free_space", lambda: None)
    _withdraw_all(phone, "chat")
    after = image.Image.take(tmp_path / "phone", tmp_path / "after").knowing(before.aliases)
    assert any(row[-1] in after.pages for row in rows)
    assert _plain(after, rows) == [], "the key is gone all the same"


# faults


class Killed(BaseException):
    """As a power cut: nothing of ours catches it."""


STEPS = ("forget", "destroy", "delete", "erase", "receipt", "finished")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("what", ["withdraw", "purge", "owner"])
def test_cut_short_anywhere_it_is_completed_at_the_next_start(tmp_path: Path, what: str, step: str) -> None:
    phone = world.open_phone(tmp_path)
    _fill(phone)
    for use in USES[:2]:
        phone.withdrawals.withdraw("chat", CHAT, *use)
    already = len(phone.receipts.all())
    alias = phone.stream("chat").key_alias
    wrapped = bytes(phone.database.rows("SELECT wrapped_key FROM streams WHERE app = 'chat'")[0][0])
    _cut(phone, step)
    destroy = {
        "withdraw": lambda: phone.withdrawals.withdraw("chat", CHAT, *TRAIN),
        "purge": lambda: phone.withdrawals.purge(phone.stream("chat")),
        "owner": lambda: phone.consent.set_owner(Age.MINOR, False),
    }[what]
    with pytest.raises(Killed):
        destroy()
    phone.signals.close()
    phone.database._connection.close()  # no orderly end
    os.close(phone.database._lock_handle)

    again = world.open_phone(tmp_path, adult=False)
    assert again.read("chat") == [], "resurrected, even before the rest is done"
    assert _pending(again) == 1
    (receipt,) = again.withdrawals.finish_pending()
    assert _statement(again, receipt)["rows_destroyed"] == (15 if what == "owner" else 5)
    assert len(again.receipts.all()) == already + 1
    assert again.withdrawals.finish_pending() == []
    assert again.forgotten
    with pytest.raises(StoreFailed, match="gone"):
        again.keystore.unwrap(alias, wrapped)
    left = again.database.rows("SELECT count(*) FROM signals s JOIN streams t ON t.id = s.stream WHERE app = 'chat'")
    assert left == [(0,)]
    again.close()


def _cut(phone, step: str) -> None:
    """Die at ``step`` of the next destruction."""

    def die(*args: object, **options: object) -> None:
        raise Killed

    room, name = {
        "forget": (phone.withdrawals, "_forget"),
        "destroy": (phone.keystore, "destroy"),
        "delete": (phone.withdrawals, "_delete_rows"),
        "erase": (phone.database, "erase_free_space"),
        "receipt": (phone.receipts, "issue"),
        "finished": (phone.receipts, "issue"),
    }[step]
    if step == "finished":  # after the receipt is written, before the commit
        issue = phone.receipts.issue

        def die(*args: object, **options: object) -> None:
            issue(*args, **options)
            raise Killed

    setattr(room, name, die)


def test_a_fault_is_told_and_the_keys_go_all_the_same(tmp_path: Path) -> None:
    def stuck() -> None:
        if not healed:
            raise StoreFailed("worker: does not end")

    healed: list[int] = []
    phone = world.open_phone(tmp_path, forget=stuck)
    _fill(phone)
    healed.append(1)
    for use in USES[:2]:
        phone.withdrawals.withdraw("chat", CHAT, *use)
    healed.clear()
    alias = phone.stream("chat").key_alias
    with pytest.raises(StoreFailed, match="does not end"):
        phone.withdrawals.withdraw("chat", CHAT, *TRAIN)
    with pytest.raises(StoreFailed, match="gone"):
        phone.keystore.unwrap(alias, b"")
    assert phone.read("chat") == []
    with pytest.raises(StoreFailed, match="does not end"):
        phone.grant("chat", CHAT, *TRAIN)  # not before the old data is gone
    assert not phone.consent.wanted("chat", CHAT)
    healed.append(1)
    receipt = phone.withdrawals.withdraw("chat", CHAT, *TRAIN)  # tried again, it is completed
    assert _statement(phone, receipt)["rows_destroyed"] == 5
    phone.close()


def test_one_that_is_stuck_does_not_hold_up_the_others(phone, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = phone.stream("chat").key_alias
    destroy = phone.keystore.destroy

    def sometimes(alias: str) -> None:
        if alias == stuck:
            raise StoreFailed("the key chip does not answer")
        destroy(alias)

    monkeypatch.setattr(phone.keystore, "destroy", sometimes)
    with pytest.raises(StoreFailed):
        phone.withdrawals.purge(phone.stream("chat"))
    phone.policy = world.make_policy(disputed=["maps"])
    with pytest.raises(StoreFailed, match="key chip"):
        phone.consent.policy_changed()
    assert _pending(phone) == 1
    assert phone.database.rows("SELECT count(*) FROM receipts") == [(1,)]
    monkeypatch.undo()
    assert len(phone.withdrawals.finish_pending()) == 1


def test_a_store_that_cannot_write_changes_nothing(phone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phone.egress, "destroy", lambda *args: (_ for _ in ()).throw(StoreFailed("full")))
    with pytest.raises(StoreFailed, match="full"):
        phone.withdrawals.withdraw("chat", CHAT, *TRAIN)
    assert phone.consent.has_any(*TRAIN)
    assert len(phone.read("chat")) == 5
    assert _pending(phone) == 0


def test_pushing_and_taking_back_at_once_leaves_nothing_behind(tmp_path: Path) -> None:
    phone = world.open_phone(tmp_path)
    phone.stream("chat")
    stop = threading.Event()
    errors: list[Exception] = []

    def push() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                phone.push("chat", [(f"{threading.get_ident()} {number}", NOW - 1, b"said")])
            except Exception as error:  # noqa: BLE001 - shown below
                errors.append(error)
                return

    threads = [threading.Thread(target=push) for _ in range(3)]
    for thread in threads:
        thread.start()
    kept = 0
    try:
        for _ in range(12):
            phone.grant("chat", CHAT, *RANK)
            while not phone.read("chat") and not errors:
                pass
            kept += len(phone.read("chat"))
            phone.withdrawals.withdraw("chat", CHAT, *RANK)
            assert phone.database.rows("SELECT count(*) FROM signals") == [(0,)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert kept
    assert phone.database.rows("SELECT count(*) FROM signals") == [(0,)]
    phone.close()


def test_on_a_full_disk_it_is_told_and_done_later(tmp_path: Path) -> None:
    """A real file system of 3 MB without a free byte: nothing half-done is called done, and nothing comes back."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", str(disk)]
    if (
        os.geteuid() != 0
        or not shutil.which("mount")
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount")
    try:
        phone = world.open_phone(disk)
        _fill(phone, 300)
        phone.database.erase_free_space()
        for use in USES[:2]:
            phone.withdrawals.withdraw("chat", CHAT, *use)
        _fill_up(disk)
        with pytest.raises(StoreFailed, match="free space"):
            phone.withdrawals.withdraw("chat", CHAT, *TRAIN)
        off = not phone.consent.has_any("train", "operator") or "chat" not in {
            one.app for one in phone.consent.effective(*TRAIN)
        }
        assert bool(phone.read("chat")) is not off, "neither the one nor the other"
        with pytest.raises(StoreFailed, match="free space"):
            phone.push("dining", [(f"more-{number}", NOW - 1, bytes(1_000)) for number in range(100)])
        assert len(phone.read("dining")) == 300
        (disk / "ballast").unlink()
        receipt = phone.withdrawals.withdraw("chat", CHAT, *TRAIN)
        assert _statement(phone, receipt)["rows_destroyed"] == 300
        assert phone.read("chat") == []
        phone.push("dining", [("more", NOW - 1, b"more")])
        assert len(phone.read("dining")) == 301
        phone.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _fill_up(disk: Path) -> None:
    handle = os.open(disk / "ballast", os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(handle, bytes(4_096)):
            pass
    except OSError:
        pass  # full
    finally:
        os.close(handle)
