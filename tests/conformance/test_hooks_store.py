"""The ExampleIterator over the encrypted store does what the hook asks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from fedlearn_client.examples import StoredExamples
from fedlearn_client.store.signals import NewSignal, SignalStore


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = _load("hook_conformance", Path(__file__).with_name("hook_conformance.py"))
uplink_town = _load("uplink_town", Path(__file__).parents[1] / "unit" / "uplink_town.py")
town = uplink_town.town


class TestStoredExamples(hooks.ExampleIteratorConformance):
    pair = (town.TRAIN, town.OPERATOR)

    def make(self, tmp_path: Path) -> StoredExamples:
        phone = uplink_town.Phone(tmp_path / "phone")
        signals = SignalStore(phone.store, phone.streams, phone.clock)
        items = [item.key for item in town.catalogue().items]
        rows = [
            NewSignal(f"c{number}", phone.clock.now() - 3600.0 * (9 - number), 30, "index", items[number].encode())
            for number in range(5)
        ]
        signals.add(phone.streams.find(town.READING, "shelf"), rows)
        signals.close()
        return StoredExamples(phone.consent, signals, phone.installed.domain, lambda: "index", phone.clock)
