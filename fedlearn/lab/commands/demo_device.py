"""``fedlearn demo-device``: the device runtime told as a story."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedlearn.clock import system_clock
from fedlearn.lab.city.config import CityConfig
from fedlearn.lab.device_demo.bundle import make_signed
from fedlearn.lab.device_demo.owner import make_owner
from fedlearn.lab.device_demo.phone import running_phone
from fedlearn.lab.device_demo.story import Story


def main(arguments: Sequence[str]) -> int:
    """Train and sign a small model, start a phone, and tell what happens on it."""
    parser = argparse.ArgumentParser(prog="fedlearn demo-device", description=main.__doc__)
    parser.add_argument("--dir", type=Path, default=Path("runs/demo-device"), help="run, bundle and keys; used again")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="also keep what the phone did as a picture")
    given = parser.parse_args(arguments)
    console = Console(record=given.picture is not None, width=100 if given.picture is not None else None)
    console.print("Training a small model privately on 1,000 simulated phones; then signing it for one phone.")
    signed = make_signed(given.dir)
    owner = make_owner(CityConfig(devices=1000), system_clock())
    # the phone's own folder is new each time, and its socket paths must be short
    with (
        tempfile.TemporaryDirectory(prefix="fl") as folder,
        running_phone(Path(folder), signed.opened, signed.root, signed.task_key) as phone,
    ):
        Story(phone, owner, signed, console).tell()
        if given.picture is not None:
            draw(console, given.picture)
    console.print(
        f"\nThe signed bundle: {given.dir}/bundle. A daemon of your own: docs/device.md. For phone makers: docs/oem.md."
    )
    return 0


def draw(console: Console, path: Path) -> None:
    """Write what the console recorded as a picture that asks no network for its font."""
    drawn = console.export_svg(title="make demo-device")
    path.write_text(re.sub(r"@font-face\s*\{[^}]*\}", "", drawn), encoding="utf-8")
