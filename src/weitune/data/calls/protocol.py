"""Function calls as OpenAI's protocol carries them: with ids by which results name them, and in pieces of a stream.

{"index": 0, "id": "c1", "function": {"name": "tides", "arguments": ""}}
{"index": 0, "function": {"arguments": "{\\"port\\": "}}
{"index": 0, "function": {"arguments": "\\"Brest\\"}"}}               one call, in three pieces
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from weitune.data.conversation import ToolCall, Turn
from weitune.data.formats.strict_json import decode, unwritable


def with_call_ids(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return ``turns`` with an id at every call, and at every result the id of a call before it.

    Ids that are there are kept; new ones have nine letters and digits, as Mistral's templates require. A result that
    names no call answers the first open one. If none is open, it stays as it is.
    """
    taken = {call.id for turn in turns for call in turn.tool_calls}
    free = (name for number in count() if (name := f"call{number:05}") not in taken)
    known: set[str | None] = set()
    open_ids: list[str | None] = []
    named: list[Turn] = []
    for turn in turns:
        if turn.tool_calls:
            calls = tuple(call if call.id else call._replace(id=next(free)) for call in turn.tool_calls)
            open_ids = [call.id for call in calls]
            known.update(open_ids)
            named.append(turn._replace(tool_calls=calls))
        elif turn.role == "tool":
            own = turn.tool_call_id
            answered = own if own in known or not open_ids else open_ids[0]
            open_ids = [other for other in open_ids if other != answered]
            named.append(turn._replace(tool_call_id=answered))
        else:
            named.append(turn)
    return tuple(named)


@dataclass(slots=True)
class _Call:
    """One call as far as it has come."""

    id: str | None = None
    name: str = ""
    arguments: str = ""

    def add(self, id_: str | None, function: Mapping[str, Any]) -> None:
        written = function.get("arguments") or ""
        self.id = self.id or id_
        self.name = self.name or function.get("name") or ""
        self.arguments += written if isinstance(written, str) else json.dumps(written)

    def read(self) -> ToolCall | None:
        """Return the call; None if it has no name or its arguments are not a JSON object."""
        try:
            arguments = decode(self.arguments.strip() or "{}")
        except ValueError:
            return None
        whole = bool(self.name) and isinstance(arguments, dict) and unwritable(arguments) is None
        return ToolCall(self.name, arguments, self.id) if whole else None


class StreamedCalls:
    """The calls of one answer, collected from the pieces in which a server streams them."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._at: dict[int, _Call] = {}

    def add(self, pieces: Iterable[Mapping[str, Any]]) -> None:
        """Add the ``tool_calls`` of one event. Another id begins another call, also at an index that there was."""
        for place, piece in enumerate(pieces):
            index, id_ = piece.get("index", place), piece.get("id")
            call = self._at.get(index)
            if call is None or (id_ and call.id and id_ != call.id):
                call = self._at[index] = _Call()
                self._calls.append(call)
            call.add(id_, piece.get("function") or {})

    def read(self) -> tuple[ToolCall, ...] | None:
        """Return the calls; None if one of them is cut or cannot be read."""
        calls = [call.read() for call in self._calls]
        whole = tuple(call for call in calls if call is not None)
        return whole if len(whole) == len(calls) else None
