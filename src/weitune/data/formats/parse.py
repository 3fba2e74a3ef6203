"""From a row to a :class:`Conversation`: the formats, their fields, and how they are recognised and read.

alpaca              instruction, input, output; optional system, history
sharegpt            conversations of from and value; optional system, tools
messages            messages of role and content; optional system, tools
prompt-completion   prompt, completion: strings or message lists; also prompt and response, query and response (with
                    history), question and answer
columns             any table whose columns the recipe names

The lists of both chat formats may have either spelling of a message, and may be JSON in a string (in tables).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from weitune.data.conversation import Conversation, Origin, Turn
from weitune.data.formats.content import read_content
from weitune.data.formats.fields import Fields, Notes
from weitune.data.formats.messages import read_messages, refuse_late_system
from weitune.data.formats.other_objectives import refuse_other_objectives
from weitune.data.formats.pairs import answer, pair_keys, read_history, read_pairs
from weitune.data.formats.tool_calls import read_tools
from weitune.data.problems import FaultyRow, data_problem, shown, shown_name
from weitune.errors import RecipeError

_Read = tuple[tuple[Turn, ...], tuple[Mapping[str, Any], ...]]
_COMMON_KEYS = frozenset({"system", "tools", "functions"})
_ALPACA_KEYS = frozenset({"instruction", "input", "output", "system", "history"})
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("query", "response"), ("question", "answer"))
"""Names of the fields with a question and its answer."""
_MESSAGES_AS_JSON = re.compile(r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:""")
"""The beginning of a list of messages in a cell of a table, written by JSON or Python."""


@dataclass(frozen=True, slots=True)
class Options:
    """How rows are read. Raises RecipeError for an unknown format or wrong ``columns``."""

    format: str | None = None
    """The name of the format; None to recognise it."""
    columns: Mapping[str, str] | None = None
    """The names of the columns with the system prompt (optional), the user's text and the assistant's."""
    joiner: str = "\n"
    """Separator of ``instruction`` and ``input`` in Alpaca's format."""
    encoding: str | Mapping[str, str] | None = None
    """The encoding of all text files, or of some by name; None to detect it."""

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise RecipeError("data.parse.unknown_format_name", format=self.format, formats=", ".join(FORMATS))
        columns = {"user": "", "assistant": ""} if self.columns is None else self.columns
        if unknown := [part for part in columns if part not in ("system", "user", "assistant")]:
            raise RecipeError("data.parse.unknown_part", part=unknown[0])
        if missing := [part for part in ("user", "assistant") if part not in columns]:
            raise RecipeError("data.parse.missing_column", part=missing[0])


@dataclass(slots=True)
class RowReader:
    """Reads the rows of one file. The first recognised row determines the format of all of them."""

    options: Options
    format: str | None = None
    notes: Notes = field(default_factory=Notes)
    _columns: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.format = "columns" if self.options.columns is not None else self.options.format
        self._columns = frozenset((self.options.columns or {}).values())

    def read(self, row: object, origin: Origin) -> Conversation:
        """Return the conversation in ``row``. Raises FaultyRow with every problem of the row."""
        if not isinstance(row, dict):
            raise FaultyRow(data_problem("data.parse.not_an_object", value=shown(row)).at(origin))
        self.format = self.format or recognise(row)
        fields = Fields(self.notes)
        try:
            turns, tools = self._read(fields, row)
        except RecursionError:  # from repr() of a wrong value, for a message
            raise FaultyRow(data_problem("data.parse.nested_too_deeply").at(origin)) from None
        fields.check_names()
        if fields.faults:
            raise FaultyRow(*(problem.at(origin) for problem in fields.faults))
        return Conversation(turns, tools, origin)

    def _read(self, fields: Fields, row: Mapping[str, Any]) -> _Read:
        refuse_other_objectives(fields, row, self.format, self._columns)
        if fields.faults:  # further faults would only be consequences of these
            return (), ()
        if self.format is None:
            names = ", ".join(shown_name(str(key)) for key in row)
            fields.fault("data.parse.unknown_format" if names else "data.parse.empty_row", field="", names=names)
            return (), ()
        turns, tools = _READERS[self.format](fields, row, self.options)
        roles = [turn.role for turn in turns]
        if not fields.faults and "assistant" not in roles:
            fields.fault("data.parse.no_answer" if roles else "data.parse.no_turns", field="", roles=", ".join(roles))
        return _join_system_prompts(fields, turns), tools


def recognise(row: Mapping[str, Any]) -> str | None:
    """Return the name of the format whose fields ``row`` has, or None."""
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return _chat_format(row["conversations"])
    if "instruction" in row or "output" in row:
        return "alpaca"
    if "prompt" in row or "completion" in row or _pair(row):
        return "prompt-completion"
    turns = row.get("conversation")
    is_list = isinstance(turns, list) or (isinstance(turns, str) and turns.lstrip().startswith("["))
    return _chat_format(turns) if is_list else None


def _chat_format(turns: Any) -> str:
    """Return the format of a list of turns: OpenAI's (``messages``) or ShareGPT's."""
    if isinstance(turns, str):
        return "messages" if '"role"' in turns else "sharegpt"
    first = turns[0] if isinstance(turns, list) and turns else None
    return "messages" if isinstance(first, dict) and "role" in first else "sharegpt"


def _alpaca(fields: Fields, row: Mapping[str, Any], options: Options) -> _Read:
    fields.count_unread(row, _ALPACA_KEYS)
    question = fields.text(row, "instruction")
    if more := fields.text(row, "input", default=""):
        question = f"{question}{options.joiner}{more}" if question else more
    turns = [*_system_turns(fields, row), *read_history(fields, row.get("history"))]
    return (*turns, Turn("user", question), answer(fields, fields.text(row, "output"), "output")), ()


def _dialogue(fields: Fields, row: Mapping[str, Any], _options: Options, *, names: Sequence[str]) -> _Read:
    key = next((name for name in names if name in row), names[0])
    fields.count_unread(row, _COMMON_KEYS | {key})
    items = fields.messages(row, key)
    pair = pair_keys(items)
    turns = read_messages(fields, items, key) if pair is None else read_pairs(fields, items, pair, key)
    return (*_system_turns(fields, row), *turns), read_tools(fields, row)


def _prompt_completion(fields: Fields, row: Mapping[str, Any], _options: Options) -> _Read:
    half = (pair for pair in PAIRS if pair[0] in row or pair[1] in row)
    question, answered = _pair(row) or next(half, PAIRS[0])
    fields.count_unread(row, _COMMON_KEYS | {question, answered, "history"})
    turns: list[Turn] = [*_system_turns(fields, row), *read_history(fields, row.get("history"))]
    keys = question, answered
    as_json = all(isinstance(row.get(key), str) and _MESSAGES_AS_JSON.match(row[key]) for key in keys)
    for key in keys:
        if as_json or isinstance(row.get(key), list):
            items = fields.messages(row, key) if as_json else row[key]
            messages = read_messages(fields, items, key)
            if messages and messages[0].role == "system" and any(turn.role != "system" for turn in turns):
                refuse_late_system(fields, f"{key}[0]")
            turns += messages
        else:
            text = fields.text(row, key)
            turns.append(Turn("user", text) if key == question else answer(fields, text, key))
    return tuple(turns), read_tools(fields, row)


def _pair(row: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in PAIRS if pair[0] in row and pair[1] in row), None)


def _columns(fields: Fields, row: Mapping[str, Any], options: Options) -> _Read:
    columns = options.columns or {}
    fields.count_unread(row, frozenset(columns.values()))
    texts = {part: fields.text(row, column) for part, column in columns.items()}
    system = [Turn("system", texts["system"])] if texts.get("system") else []
    return (*system, Turn("user", texts["user"]), answer(fields, texts["assistant"], columns["assistant"])), ()


def _system_turns(fields: Fields, row: Mapping[str, Any]) -> Sequence[Turn]:
    """Return the turn of the field ``system``, if any: a string, or a list of parts as in Anthropic's API."""
    system = "" if row.get("system") is None else read_content(fields, row, "system", "system", "").text
    return (Turn("system", system),) if system else ()


def _join_system_prompts(fields: Fields, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    count = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    if count < 2:
        return tuple(turns)
    texts = list(dict.fromkeys(turn.content for turn in turns[:count] if turn.content.strip()))
    if len(texts) > 1:
        fields.remark("data.parse.several_system_prompts")
    return (turns[0]._replace(content="\n\n".join(texts)), *turns[count:])


_READERS: dict[str, Callable[[Fields, Mapping[str, Any], Options], _Read]] = {
    "alpaca": _alpaca,
    "sharegpt": partial(_dialogue, names=("conversations", "conversation", "messages")),
    "messages": partial(_dialogue, names=("messages", "conversations", "conversation")),
    "prompt-completion": _prompt_completion,
    "columns": _columns,
}
FORMATS = tuple(name for name in _READERS if name != "columns")
"""Names of formats for :class:`Options`."""
