"""Write conversations as ``messages`` JSON Lines, and pairs as ``prompt``, ``chosen`` and ``rejected`` messages.

Every tool reads these formats. Reading the file again gives equal values, except for their origins.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from weitune.data.conversation import Conversation, Turn
from weitune.data.preference.values import Pair
from weitune.errors import InputError
from weitune.files.publish import file_written_aside


def to_messages(conversation: Conversation) -> dict[str, Any]:
    """Return ``conversation`` as one row of OpenAI's format; absent parts and weights of 1 are left out."""
    row: dict[str, Any] = {"messages": [_message(turn) for turn in conversation.turns]}
    if conversation.tools:
        row["tools"] = list(conversation.tools)
    return row


def to_compared_messages(pair: Pair) -> dict[str, Any]:
    """Return ``pair`` as one row of lists of messages; absent parts are left out."""
    row: dict[str, Any] = {
        "prompt": [_message(turn) for turn in pair.prompt.turns],
        "chosen": [_message(turn) for turn in pair.chosen],
        "rejected": [_message(turn) for turn in pair.rejected],
    }
    if pair.prompt.tools:
        row["tools"] = list(pair.prompt.tools)
    return row


def write_rows(items: Iterable[Conversation | Pair], stream: IO[str]) -> int:
    """Write one row a line and return the number of rows.

    If the stream's encoding is not UTF-8 (a terminal, a pipe), characters beyond ASCII become JSON escapes.
    """
    rows = 0
    escaped = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") != "utf8"
    for item in items:
        row = to_compared_messages(item) if isinstance(item, Pair) else to_messages(item)
        stream.write(json.dumps(row, ensure_ascii=escaped) + "\n")
        rows += 1
    return rows


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise InputError if there is something at ``path`` already, unless ``force``."""
    if path.exists() and not force:
        raise InputError("data.convert.exists", path=path)


def write_file(items: Iterable[Conversation | Pair], path: Path, *, force: bool = False) -> int:
    """Write the file ``path``, whole or not at all, and return its number of rows.

    Raises InputError if it exists (unless ``force``) or cannot be written, and whatever reading raises.
    """
    refuse_existing(path, force=force)
    try:
        with file_written_aside(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
            return write_rows(items, stream)
    except OSError as error:
        raise InputError("data.convert.cannot_write", path=path, strerror=error.strerror) from error


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.reasoning is not None:
        message["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        message["tool_calls"] = [
            {**({"id": call.id} if call.id is not None else {}), "type": "function",
             "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}}
            for call in turn.tool_calls
        ]  # fmt: skip
    optional = {"name": turn.name, "tool_call_id": turn.tool_call_id}
    message.update({key: value for key, value in optional.items() if value is not None})
    if turn.weight != 1:
        message["weight"] = turn.weight
    return message
