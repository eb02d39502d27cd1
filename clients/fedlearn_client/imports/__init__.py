"""The owner's own chat exports: every line somebody else wrote is skipped while the file is read, and never kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Final

from fedlearn_client.imports import telegram, whatsapp
from fedlearn_client.imports.line import OwnLine

Reader = Callable[[BinaryIO, str], Iterator[OwnLine]]

FORMATS: Final[Mapping[str, Reader]] = {"whatsapp-txt": whatsapp.own_lines, "telegram-json": telegram.own_lines}
"""Name of a format -> ``(file, the owner's name in it) -> the owner's lines, oldest first``."""

__all__ = ["FORMATS", "OwnLine", "Reader"]
