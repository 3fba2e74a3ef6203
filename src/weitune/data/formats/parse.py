"""From a row to a :class:`Conversation`: which fields a format has, how it is recognised, what its turns are.

alpaca              instruction, input, output; optional system, history
sharegpt            conversations of from and value; optional system, tools
messages            messages of role and content; optional system, tools
prompt-completion   prompt, completion: texts or message lists; also prompt and response, query and response (with
                    history), question and answer
columns             any table, with the recipe saying which column holds which part

The lists of both chat formats may have either spelling of a message, and may be JSON in a text, as tables have them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weitune.data.conversation import Conversation, Origin, Turn
from weitune.data.formats.content import read_content
from weitune.data.formats.fields import Fields
from weitune.data.formats.messages import late_system, read_messages
from weitune.data.formats.other_objectives import refuse_other_kinds
from weitune.data.formats.pairs import answer, names_of, read_history, read_pairs
from weitune.data.formats.tool_calls import read_tools
from weitune.data.problems import FaultyRow, data_problem, shown, shown_name
from weitune.errors import RecipeError

Row = Mapping[str, Any]
JOINED = "with several system prompts, joined into one"
"""Remark about a row whose system prompts were joined."""


@dataclass(frozen=True, slots=True)
class Options:
    """How rows are read: the format by name or None (recognise it), column names, what joins Alpaca's two parts, and
    the encoding of text files if it was said, of all or by their names."""

    format: str | None = None
    columns: Mapping[str, str] | None = None
    joiner: str = "\n"
    encoding: str | Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        """Raise RecipeError for a format or a part that does not exist."""
        if self.format is not None and self.format not in FORMATS:
            raise RecipeError("data.parse.there_no_data_format", format=self.format, formats=", ".join(FORMATS))
        unknown = [part for part in self.columns or () if part not in _PARTS]
        missing = [part for part in ("user", "assistant") if self.columns is not None and part not in self.columns]
        if unknown or missing:
            fault = f"an unknown part '{unknown[0]}'" if unknown else f"no column for '{missing[0]}'"
            raise RecipeError("data.parse.columns", fault=fault)


_PARTS = ("system", "user", "assistant")


@dataclass(slots=True)
class RowReader:
    """Reads the rows of one file. The first row that is recognised decides on the format of all."""

    options: Options
    format: str | None = None
    unused: Counter[str] = field(default_factory=Counter)
    """Fields that nothing reads, with the number of rows that have them."""
    remarks: Counter[str] = field(default_factory=Counter)
    """What the report should say of rows, with their number."""
    _columns: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Take the format from the options, if they name one."""
        self.format = "columns" if self.options.columns is not None else self.options.format
        self._columns = frozenset((self.options.columns or {}).values())

    def read(self, row: object, origin: Origin) -> Conversation:
        """Return the conversation in ``row``. Raises FaultyRow with every problem of the row."""
        if not isinstance(row, dict):
            raise FaultyRow(data_problem("data.parse.not_object", row_text=shown(row)).at(origin))
        self.format = self.format or recognise(row)
        fields = Fields(self.unused, self.remarks)
        try:
            turns, tools = self._read(fields, row)
        except RecursionError:  # a wrong value that even a message cannot show
            problem = data_problem("data.parse.nested_too_deeply")
            raise FaultyRow(problem.at(origin)) from None
        fields.check_names()
        if fields.faults:
            raise FaultyRow(*(problem.at(origin) for problem in fields.faults))
        return Conversation(turns, tools, origin)

    def _read(self, fields: Fields, row: Row) -> _Read:
        """Return the turns and tools of ``row``; faults go to ``fields``."""
        refuse_other_kinds(fields, row, self.format, self._columns)
        if fields.faults:  # what else is wrong follows from that
            return (), ()
        if self.format is None:
            fields.fault(
                "data.parse.unknown_format",
                field="",
                row_text=", ".join(shown_name(str(key)) for key in row) or "no fields",
            )
            return (), ()
        turns, tools = _READERS[self.format](fields, row, self.options)
        if not fields.faults and "assistant" not in [turn.role for turn in turns]:
            fields.fault("data.parse.no_answer", field="", turns=", ".join(turn.role for turn in turns) or "no turn")
        return _with_one_system(fields, turns), tools


def recognise(row: Row) -> str | None:
    """Return the name of the format whose fields ``row`` has, or None."""
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return _chat_format(row["conversations"])
    if "instruction" in row or "output" in row:
        return "alpaca"
    if "prompt" in row or "completion" in row or _question_and_answer(row):
        return "prompt-completion"
    turns = row.get("conversation")
    is_list = isinstance(turns, list) or (isinstance(turns, str) and turns.lstrip().startswith("["))
    return _chat_format(turns) if is_list else None


def _chat_format(turns: Any) -> str:
    """Tell apart OpenAI's messages and ShareGPT's turns under one name."""
    if isinstance(turns, str):
        return "messages" if '"role"' in turns else "sharegpt"
    first = turns[0] if isinstance(turns, list) and turns else None
    return "messages" if isinstance(first, dict) and "role" in first else "sharegpt"


_Read = tuple[tuple[Turn, ...], tuple[Mapping[str, Any], ...]]


def _alpaca(fields: Fields, row: Row, options: Options) -> _Read:
    fields.only(row, _ALPACA_KEYS)
    question = fields.text(row, "instruction")
    if more := fields.text(row, "input", default=""):
        question = f"{question}{options.joiner}{more}" if question else more
    turns = [*_system(fields, row), *read_history(fields, row.get("history"))]
    return (*turns, Turn("user", question), answer(fields, fields.text(row, "output"), "output")), ()


_ALPACA_KEYS = frozenset({"instruction", "input", "output", "system", "history"})


def _sharegpt(fields: Fields, row: Row, _options: Options) -> _Read:
    return _dialogue(fields, row, ("conversations", "conversation", "messages"))


def _messages(fields: Fields, row: Row, _options: Options) -> _Read:
    return _dialogue(fields, row, ("messages", "conversations", "conversation"))


def _dialogue(fields: Fields, row: Row, names: Sequence[str]) -> _Read:
    """Read a list of messages, or of pairs, under the first of ``names`` that the row has."""
    key = next((name for name in names if name in row), names[0])
    fields.only(row, _COMMON_KEYS | {key})
    items = fields.items(row, key, "a list of messages")
    pair = names_of(items)
    turns = read_messages(fields, items, key) if pair is None else read_pairs(fields, items, pair, key)
    return (*_system(fields, row), *turns), read_tools(fields, row)


_COMMON_KEYS = frozenset({"system", "tools", "functions"})


def _prompt_completion(fields: Fields, row: Row, _options: Options) -> _Read:
    asked, answered = _question_and_answer(row) or _half_a_pair(row)
    fields.only(row, _COMMON_KEYS | {asked, answered, "history"})
    turns: list[Turn] = [*_system(fields, row), *read_history(fields, row.get("history"))]
    in_texts = all(isinstance(row.get(key), str) and _MESSAGES_IN_A_TEXT.match(row[key]) for key in (asked, answered))
    for key in (asked, answered):
        if isinstance(row.get(key), list) or in_texts:
            said = fields.items(row, key, "a list of messages") if in_texts else row[key]
            messages = read_messages(fields, said, key)
            if messages and messages[0].role == "system" and any(turn.role != "system" for turn in turns):
                late_system(fields, f"{key}[0]")
            turns += messages
        else:
            text = fields.text(row, key)
            turns.append(Turn("user", text) if key == asked else answer(fields, text, key))
    return tuple(turns), read_tools(fields, row)


_MESSAGES_IN_A_TEXT = re.compile(r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:""")
"""How lists of messages begin in the cells of a table, as JSON or as Python writes them."""


def _question_and_answer(row: Row) -> tuple[str, str] | None:
    """Return the names of the two fields, if ``row`` has both."""
    return next((pair for pair in _PAIRS if pair[0] in row and pair[1] in row), None)


def _half_a_pair(row: Row) -> tuple[str, str]:
    """Return the names of the two fields of which ``row`` has only one."""
    return next((pair for pair in _PAIRS if pair[0] in row or pair[1] in row), _PAIRS[0])


_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("query", "response"), ("question", "answer"))


def _columns(fields: Fields, row: Row, options: Options) -> _Read:
    columns = options.columns or {}
    fields.only(row, frozenset(columns.values()))
    texts = {part: fields.text(row, column) for part, column in columns.items()}
    system = [Turn("system", texts["system"])] if texts.get("system") else []
    return (*system, Turn("user", texts["user"]), answer(fields, texts["assistant"], columns["assistant"])), ()


def _system(fields: Fields, row: Row) -> Sequence[Turn]:
    """Return the turn of the field ``system``: a text, or a list of parts as Anthropic's API has it."""
    system = "" if row.get("system") is None else read_content(fields, row, "system", "system", "").text
    return (Turn("system", system),) if system else ()


def _with_one_system(fields: Fields, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return ``turns`` with at most one system prompt: those at the beginning become one, each text once."""
    count = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    if count < 2:
        return tuple(turns)
    texts = list(dict.fromkeys(turn.content for turn in turns[:count] if turn.content.strip()))
    if len(texts) > 1:
        fields.remark(JOINED)
    return (turns[0]._replace(content="\n\n".join(texts)), *turns[count:])


_READERS: dict[str, Callable[[Fields, Row, Options], _Read]] = {
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "messages": _messages,
    "prompt-completion": _prompt_completion,
    "columns": _columns,
}
FORMATS = tuple(name for name in _READERS if name != "columns")
"""Formats that can be named."""
