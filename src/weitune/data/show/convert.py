"""Write rows as JSON Lines in the formats that every tool reads:

    {"messages": […]}                                     a conversation
    {"prompt": […], "chosen": […], "rejected": […]}       a pair
    {"prompt": […], "completion": […], "label": true}     an answer that was liked, or not

Reading the file again gives equal values, except for their origins.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from weitune.data.conversation import Conversation, Turn
from weitune.data.formats.parse import Row
from weitune.data.preference.values import Judged
from weitune.errors import InputError
from weitune.files.publish import file_written_aside


def to_row(row: Row) -> dict[str, Any]:
    """Return the fields of ``row``, with lists of messages; absent parts and weights of 1 are left out."""
    if isinstance(row, Conversation):
        return to_messages(row)
    fields: dict[str, Any] = {"prompt": list(map(_message, row.prompt.turns))}
    if isinstance(row, Judged):
        fields |= {"completion": list(map(_message, row.answer)), "label": row.liked}
    else:
        fields |= {"chosen": list(map(_message, row.chosen)), "rejected": list(map(_message, row.rejected))}
    return fields | _tools(row.prompt)


def to_messages(conversation: Conversation) -> dict[str, Any]:
    """Return ``conversation`` as one row of OpenAI's format."""
    return {"messages": list(map(_message, conversation.turns))} | _tools(conversation)


def _tools(conversation: Conversation) -> dict[str, Any]:
    return {"tools": list(conversation.tools)} if conversation.tools else {}


def write_rows(rows: Iterable[Row], stream: IO[str]) -> int:
    """Write one row a line and return the number of rows.

    If the stream's encoding is not UTF-8 (a terminal, a pipe), characters beyond ASCII become JSON escapes.
    """
    count = 0
    escaped = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") != "utf8"
    for row in rows:
        stream.write(json.dumps(to_row(row), ensure_ascii=escaped) + "\n")
        count += 1
    return count


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise InputError if there is something at ``path`` already, unless ``force``."""
    if path.exists() and not force:
        raise InputError("data.convert.exists", path=path)


def write_file(rows: Iterable[Row], path: Path, *, force: bool = False) -> int:
    """Write the file ``path``, whole or not at all, and return its number of rows.

    Raises InputError if it exists (unless ``force``) or cannot be written, and whatever reading raises.
    """
    refuse_existing(path, force=force)
    try:
        with file_written_aside(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as stream:
            return write_rows(rows, stream)
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
