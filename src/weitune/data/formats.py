"""From a row to a :class:`Conversation`: which fields a format has, how it is recognised, what its turns are.

alpaca              instruction, input, output; optional system, history
sharegpt            conversations of from and value; optional system, tools
messages            messages of role and content; optional tools
prompt-completion   prompt, completion: texts or message lists
columns             any table, with the recipe saying which column holds which part
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weitune.data.conversation import Conversation, Origin, Turn
from weitune.data.fields import Fields
from weitune.data.messages import read_messages, read_speeches, read_tools, split_reasoning
from weitune.data.problems import FaultyRow, Problem, shown
from weitune.errors import RecipeError

Row = Mapping[str, Any]


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
            raise RecipeError(f"there is no data format '{self.format}'", f"Use one of: {', '.join(FORMATS)}.")
        unknown = [part for part in self.columns or () if part not in _PARTS]
        missing = [part for part in ("user", "assistant") if self.columns is not None and part not in self.columns]
        if unknown or missing:
            fault = f"an unknown part '{unknown[0]}'" if unknown else f"no column for '{missing[0]}'"
            raise RecipeError(
                f"columns: {fault}",
                "Map system (optional), user and assistant to column names, such as "
                "columns: {user: 问题, assistant: 回答}.",
            )


_PARTS = ("system", "user", "assistant")


@dataclass(slots=True)
class RowReader:
    """Reads the rows of one file. The first row that is recognised decides on the format of all."""

    options: Options
    format: str | None = None
    unused: Counter[str] = field(default_factory=Counter)
    """Fields that nothing reads, with the number of rows that have them."""

    def __post_init__(self) -> None:
        """Take the format from the options, if they name one."""
        self.format = "columns" if self.options.columns is not None else self.options.format

    def read(self, row: object, origin: Origin) -> Conversation:
        """Return the conversation in ``row``. Raises FaultyRow with every problem of the row."""
        if not isinstance(row, dict):
            raise FaultyRow(
                Problem("not an object", "an object with named fields", shown(row), "Write each row as {…}.").at(origin)
            )
        self.format = self.format or recognise(row)
        if self.format is None:
            keys = ", ".join(map(str, row)) or "no fields"
            raise FaultyRow(
                Problem(
                    "unknown format",
                    "the fields of a known format (docs/data.md)",
                    keys,
                    "Rename the fields, or say which columns to read with `columns`.",
                ).at(origin)
            )
        fields = Fields(self.unused)
        turns, tools = _READERS[self.format](fields, row, self.options)
        if not fields.faults and "assistant" not in [turn.role for turn in turns]:
            fields.fault(
                "no answer",
                "at least one assistant turn",
                ", ".join(turn.role for turn in turns) or "no turn",
                "Add what the assistant says, or remove the row.",
                "",
            )
        if fields.faults:
            raise FaultyRow(*(problem.at(origin) for problem in fields.faults))
        return Conversation(turns, tools, origin)


def recognise(row: Row) -> str | None:
    """Return the name of the format whose fields ``row`` has, or None."""
    speeches = row.get("conversations")
    if isinstance(speeches, list) and speeches and isinstance(speeches[0], dict) and "role" in speeches[0]:
        return "messages"  # OpenAI's messages under ShareGPT's name
    for name, decisive in _DECISIVE.items():
        if any(key in row for key in decisive):
            return name
    return None


_Read = tuple[tuple[Turn, ...], tuple[Mapping[str, Any], ...]]


def _alpaca(fields: Fields, row: Row, options: Options) -> _Read:
    fields.only(row, _ALPACA_KEYS)
    question = fields.text(row, "instruction")
    if more := fields.text(row, "input", default=""):
        question = f"{question}{options.joiner}{more}" if question else more
    turns = [*_system(fields, row), *_history(fields, row.get("history"))]
    return (*turns, Turn("user", question), _answer(fields.text(row, "output"))), ()


_ALPACA_KEYS = frozenset({"instruction", "input", "output", "system", "history"})


def _history(fields: Fields, history: Any) -> Sequence[Turn]:
    if history is None or history == []:
        return ()
    turns = []
    for i, pair in enumerate(history if isinstance(history, list) else [history]):
        if isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair):
            turns += [Turn("user", pair[0]), _answer(pair[1])]
        else:
            fields.fault(
                "wrong type",
                "a pair of question and answer",
                shown(pair),
                'Write "history": [["question", "answer"], …].',
                f"history[{i}]",
            )
    return turns


def _sharegpt(fields: Fields, row: Row, _options: Options) -> _Read:
    fields.only(row, _SHAREGPT_KEYS)
    turns = read_speeches(fields, fields.items(row, "conversations", "a list of turns"))
    return (*_system(fields, row), *turns), read_tools(fields, row.get("tools"))


_SHAREGPT_KEYS = frozenset({"conversations", "system", "tools"})


def _messages(fields: Fields, row: Row, _options: Options) -> _Read:
    key = "messages" if "messages" in row else "conversations"
    fields.only(row, frozenset({key, "system", "tools"}))
    turns = read_messages(fields, fields.items(row, key, "a list of messages"), key)
    return (*_system(fields, row), *turns), read_tools(fields, row.get("tools"))


def _prompt_completion(fields: Fields, row: Row, _options: Options) -> _Read:
    fields.only(row, _PROMPT_KEYS)
    turns: list[Turn] = []
    for key in ("prompt", "completion"):
        if isinstance(row.get(key), list):
            turns += read_messages(fields, row[key], key)
        else:
            text = fields.text(row, key)
            turns.append(Turn("user", text) if key == "prompt" else _answer(text))
    return (*_system(fields, row), *turns), read_tools(fields, row.get("tools"))


_PROMPT_KEYS = frozenset({"prompt", "completion", "system", "tools"})


def _columns(fields: Fields, row: Row, options: Options) -> _Read:
    columns = options.columns or {}
    fields.only(row, frozenset(columns.values()))
    texts = {part: fields.text(row, column) for part, column in columns.items()}
    system = [Turn("system", texts["system"])] if texts.get("system") else []
    return (*system, Turn("user", texts["user"]), _answer(texts["assistant"])), ()


def _system(fields: Fields, row: Row) -> Sequence[Turn]:
    system = fields.optional_text(row, "system")
    return (Turn("system", system),) if system else ()


def _answer(text: str) -> Turn:
    reasoning, content = split_reasoning(text)
    return Turn("assistant", content, reasoning=reasoning)


_READERS: dict[str, Callable[[Fields, Row, Options], _Read]] = {
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "messages": _messages,
    "prompt-completion": _prompt_completion,
    "columns": _columns,
}
FORMATS = tuple(name for name in _READERS if name != "columns")
"""Formats that can be named."""
_DECISIVE = {"messages": ["messages"], "sharegpt": ["conversations"], "alpaca": ["instruction", "output"],
             "prompt-completion": ["prompt", "completion"]}  # fmt: skip
