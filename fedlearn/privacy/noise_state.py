"""Where the secret state of a correlated-noise mechanism lives between steps: outside every run directory, encrypted.

Whoever has the state can take the noise of past steps out of what was released. Whoever goes on with an older one uses
the same noise twice. So it is kept like a key, and bound to its run, its mechanism and its step.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedlearn.errors import InvalidSpend, MissingDependency, NoiseStateLost
from fedlearn.files import state_directory
from fedlearn.privacy.secret_files import (
    clear_leftovers,
    create_private,
    destroy_private,
    make_private_directory,
    read_private,
    replace_private,
)
from fedlearn.privacy.secrets import require_run_id
from fedlearn.rng import os_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_HEAD: Final = struct.Struct("<8sI")
_MAGIC: Final = b"FLNOISE1"


class NoiseStateStore:
    """Keeps one run's noise state, of the step that comes next and of the one before it.

    Files ``$FEDLEARN_STATE/noise/RUN.key``, ``RUN.0``, ``RUN.1``: directory 0700, files 0600. The state before step t
    is in file t mod 2, encrypted by AES-256-GCM under the run's key with a random nonce per write; run id, mechanism
    and step are authenticated with it. A state is durable before ``save`` returns, and replaces only the state that is
    two steps older: a process that dies between a draw and its publication finds the state before the draw.

    One process at a time: hold the run (``SecretStore.hold``) while a store is open.

    Args:
        run_id: 1-128 letters, digits, dots, dashes and underscores.
        mechanism: what the state belongs to; public, and the same for the whole run.
        directory: where; by default $FEDLEARN_STATE, else the user's state directory.

    Raises:
        OutOfRange: the run id cannot name a file.
    """

    def __init__(self, run_id: str, mechanism: Mapping[str, str | int | float], directory: Path | None = None) -> None:
        self._run_id = require_run_id(run_id)
        self._mechanism = dict(mechanism)
        self._directory = (state_directory() if directory is None else directory) / "noise"
        self._cipher: AESGCM | None = None

    def open(self, next_step: int, initial: Callable[[], bytes]) -> bytes:
        """Return the state before ``next_step``; a state after it was never published and is destroyed.

        Args:
            next_step: first step whose release is not in the published checkpoint, >= 0.
            initial: makes the state before step 0, for a run that has none yet.

        Raises:
            NoiseStateLost: there is no such state, it is damaged, or it belongs to another run.
            InvalidSpend: the mechanism's parameters changed within the run.
            PrivacyError: others can read a file.
            MissingDependency: ``cryptography`` is not installed.
        """
        make_private_directory(self._directory)
        for path in self._paths():
            clear_leftovers(path)
        if not self._key.exists():
            self._forget()  # without their key they are noise
        if next_step == 0 and not any(self._state(step).exists() for step in (0, 1)):
            create_private(self._key, os_bytes(_KEY_BYTES))
            self._cipher = self._load_cipher()
            self.save(0, initial())
        self._cipher = self._load_cipher()
        state = self._load(next_step)
        destroy_private(self._state(next_step + 1))
        return state

    def save(self, next_step: int, state: bytes) -> None:
        """Make the state before ``next_step`` durable; the one before the previous step stays.

        Raises:
            NoiseStateLost: the store is not open, or was destroyed.
            OSError: the disk is full or failing; nothing may be released.
        """
        if self._cipher is None:
            raise NoiseStateLost(f"run {self._run_id!r}: its noise state is not open; start a new run.")
        header = json.dumps({"run_id": self._run_id, "step": next_step, "mechanism": self._mechanism}).encode()
        bound = _HEAD.pack(_MAGIC, len(header)) + header
        nonce = os_bytes(_NONCE_BYTES)
        replace_private(self._state(next_step), bound + nonce + self._cipher.encrypt(nonce, state, bound))

    def destroy(self) -> None:
        """Overwrite and remove key and states; with the key gone, no copy of a state can be read. The run has ended."""
        self._cipher = None
        destroy_private(self._key)
        self._forget()

    @property
    def _key(self) -> Path:
        return self._directory / f"{self._run_id}.key"

    def _state(self, next_step: int) -> Path:
        return self._directory / f"{self._run_id}.{next_step % 2}"

    def _paths(self) -> tuple[Path, Path, Path]:
        return self._key, self._state(0), self._state(1)

    def _forget(self) -> None:
        for step in (0, 1):
            destroy_private(self._state(step))

    def _load_cipher(self) -> AESGCM:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  # optional
        except ImportError as error:
            raise MissingDependency("Correlated noise needs cryptography: pip install 'fedlearn[privacy]'") from error
        try:
            key = read_private(self._key)
        except FileNotFoundError as error:
            raise self._lost(f"{self._key.name} is not in {self._directory}") from error
        if len(key) != _KEY_BYTES or key == bytes(_KEY_BYTES):
            raise self._lost(f"{self._key} is damaged")
        return AESGCM(key)

    def _load(self, next_step: int) -> bytes:
        path = self._state(next_step)
        try:
            content = read_private(path)
        except FileNotFoundError as error:
            raise self._lost(f"{path.name}, for step {next_step}, is not in {self._directory}") from error
        header, state = self._opened(path, content)
        if header["run_id"] != self._run_id:
            raise self._lost(f"{path} belongs to run {header['run_id']!r}")
        stored = header["mechanism"]
        if stored != self._mechanism:
            changed = sorted(
                name for name in {*stored, *self._mechanism} if stored.get(name) != self._mechanism.get(name)
            )
            raise InvalidSpend(
                f"{', '.join(changed)}: changed within run {self._run_id!r}. Noise of earlier steps is taken back at "
                "its own scale, so a correlated mechanism keeps its event, clip norm, grid and size; start a new run."
            )
        if header["step"] != next_step:
            raise self._lost(f"{path} is for step {header['step']}, the checkpoint continues at step {next_step}")
        return state

    def _opened(self, path: Path, content: bytes) -> tuple[dict[str, Any], bytes]:
        """Return header and state of a file that this run's key wrote."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415  # optional

        magic, size = _HEAD.unpack_from(content) if len(content) >= _HEAD.size else (b"", 0)
        start = _HEAD.size + size
        bound, nonce = content[:start], content[start : start + _NONCE_BYTES]
        if magic != _MAGIC or len(nonce) != _NONCE_BYTES or self._cipher is None:
            raise self._lost(f"{path} is damaged")
        try:
            state = self._cipher.decrypt(nonce, content[start + _NONCE_BYTES :], bound)
        except InvalidTag as error:
            raise self._lost(f"{path} is damaged or belongs to another run") from error
        return json.loads(bound[_HEAD.size :]), state

    def _lost(self, what: str) -> NoiseStateLost:
        return NoiseStateLost(
            f"run {self._run_id!r}: {what}; its noise cannot be continued. Start a new run: its spend composes."
        )
