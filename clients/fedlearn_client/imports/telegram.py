"""Telegram Desktop's JSON export (``result.json``): one chat, or all of them.

What the owner forwarded (``forwarded_from``) is dropped whole; block quotes become foreign spans.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, BinaryIO, Final

from fedlearn.errors import SignalRefused
from fedlearn_client.imports.line import OwnLine

_QUOTED: Final = {"blockquote", "expandable_blockquote"}


def own_lines(file: BinaryIO, owner: str) -> Iterator[OwnLine]:
    """Yield the owner's messages, oldest first over all chats.

    Args:
        file: ``result.json``, UTF-8.
        owner: the owner's name (``from``) or id (``from_id``).

    Raises:
        SignalRefused: the file is no such export, or nobody has the owner's name.
    """
    try:
        export = json.load(file)
    except (ValueError, RecursionError) as error:
        raise SignalRefused("file: no JSON; export from Telegram Desktop with the format JSON.") from error
    mine = [message for message in _messages(export) if owner in {message.get("from"), message.get("from_id")}]
    if not mine:
        raise SignalRefused("--me: nobody of this name or id wrote in the file; look at `from` and `from_id` in it.")
    lines = [_line(message) for message in mine if "forwarded_from" not in message]
    yield from sorted((line for line in lines if line.text.strip()), key=lambda line: line.time)


def _messages(export: object) -> Iterator[Mapping[str, Any]]:
    chats = [export]
    if isinstance(export, Mapping) and isinstance(export.get("chats"), Mapping):
        chats = export["chats"].get("list", [])
    for chat in chats if isinstance(chats, list) else []:
        messages = chat.get("messages") if isinstance(chat, Mapping) else None
        if not isinstance(messages, list):
            raise SignalRefused("file: no Telegram export; expected `messages`, or `chats.list`, in the JSON.")
        yield from (m for m in messages if isinstance(m, Mapping) and m.get("type") == "message")


def _line(message: Mapping[str, Any]) -> OwnLine:
    text, spans = "", []
    body = message.get("text", "")
    for part in body if isinstance(body, list) else [body]:
        words = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(words, str):
            raise SignalRefused("file: a message's `text` is neither words nor a list of words.")
        if isinstance(part, Mapping) and part.get("type") in _QUOTED:
            spans.append((len(text), len(text) + len(words)))
        text += words
    return OwnLine(text, _time(message), tuple(spans))


def _time(message: Mapping[str, Any]) -> float:
    try:
        if "date_unixtime" in message:
            return float(int(message["date_unixtime"]))
        return datetime.fromisoformat(message["date"]).timestamp()
    except (KeyError, ValueError, TypeError) as error:
        raise SignalRefused("file: a message without a readable `date`; export again with the format JSON.") from error
