"""``fedlearn demo-device``: the device runtime told as a story."""

from __future__ import annotations

import argparse
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
    given = parser.parse_args(arguments)
    console = Console()
    console.print("Training a small model privately on 1,000 simulated phones; then signing it for one phone.")
    signed = make_signed(given.dir)
    owner = make_owner(CityConfig(devices=1000), system_clock())
    # the phone's own folder is new each time, and its socket paths must be short
    with (
        tempfile.TemporaryDirectory(prefix="fl") as folder,
        running_phone(Path(folder), signed.opened, signed.root, signed.task_key) as phone,
    ):
        Story(phone, owner, signed, console).tell()
    console.print(
        f"\nThe signed bundle: {given.dir}/bundle. A daemon of your own: docs/device.md. For phone makers: docs/oem.md."
    )
    return 0
