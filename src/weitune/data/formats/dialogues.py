"""The formats of dialogues: how they are recognised, and what a row has before its answer.

alpaca              instruction, input, output; optional system, history
sharegpt            conversations of from and value; optional system, tools
messages            messages of role and content; optional system, tools
prompt-completion   prompt, completion: strings or message lists; also prompt and response, query and response (with
                    history), question and answer; question alone, with answers that were compared
columns             any table whose columns the recipe names
chosen-rejected     only two whole dialogues that were compared
preferred-output    OpenAI's pairs: input with messages and tools, preferred_output, non_preferred_output

The lists of both chat formats may have either spelling of a message, and may be JSON in a string (in tables).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from weitune.data.conversation import Turn
from weitune.data.formats.content import read_content
from weitune.data.formats.fields import UNREADABLE, Fields
from weitune.data.formats.kinds import SIDES
from weitune.data.formats.messages import read_messages, refuse_late_system
from weitune.data.formats.pairs import answer, pair_keys, read_history, read_pairs
from weitune.data.formats.tool_calls import read_tools
from weitune.data.problems import shown

Tools = tuple[Mapping[str, Any], ...]
Turns = tuple[Turn, ...]
_COMMON_KEYS = frozenset({"system", "tools", "functions"})
_ALPACA_KEYS = frozenset({"instruction", "input", "output", "system", "history"})
_DIALOGUES = ("messages", "conversations", "conversation")
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("query", "response"), ("question", "answer"))
"""Names of the fields with a question and its answer."""
_ANSWERS = {
    "alpaca": frozenset({"output"}),
    "prompt-completion": frozenset(answered for _, answered in PAIRS),
    "sharegpt": frozenset(_DIALOGUES),
    "messages": frozenset(_DIALOGUES),
}
"""The fields with the answer of a conversation, by format."""
_QUESTIONS = tuple(dict.fromkeys(question for question, _ in PAIRS))
_COMPARED = frozenset(name for pair in SIDES[:-1] for name in pair)
_OPENAI = SIDES[-1]
_OPENAI_KEYS = frozenset({"messages", "tools", "parallel_tool_calls"})
_MESSAGES_AS_JSON = re.compile(r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:""")
"""The beginning of a list of messages in a cell of a table, written by JSON or Python."""


class Opening(NamedTuple):
    """What a row has before its answer, and where that is.

    The last of ``turns`` is in the field ``place``. If ``answer`` is None, the answer is there too. ``known`` are the
    fields that may be read.
    """

    turns: Turns
    tools: Tools
    place: str
    known: frozenset[str]
    answer: str | None = None
    as_json: bool = False
    """Whether prompt and answers are lists of messages as JSON in strings."""


class Reading(NamedTuple):
    """How a format is read: as the options say; ``as_json`` tells of compared answers that are lists as JSON."""

    joiner: str
    columns: Mapping[str, str]
    as_json: bool | None = None


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
    if isinstance(turns, list) or (isinstance(turns, str) and turns.lstrip().startswith("[")):
        return _chat_format(turns)
    return _format_of_pairs(row)


def has_own_answer(row: Mapping[str, Any], name: str) -> bool:
    """Return whether ``row``, of the format ``name``, may have an answer in the place that conversations have it."""
    return not _ANSWERS.get(name, frozenset()).isdisjoint(row)


def read_opening(fields: Fields, row: Mapping[str, Any], name: str, reading: Reading) -> Opening:
    """Return what ``row``, of the format ``name``, has before its answer; faults are noted in ``fields``."""
    return _READERS[name](fields, row, reading)


def read_dialogue(
    fields: Fields, row: Mapping[str, Any], name: str, reading: Reading, verdict: str | None = None
) -> tuple[Turns, Tools]:
    """Return turns and tools of a row of the format ``name`` that has one answer, perhaps with a ``verdict`` on it."""
    opening = read_opening(fields, row, name, reading)
    fields.count_unread(row, opening.known if verdict is None else opening.known | {verdict})
    if opening.answer is None:
        return opening.turns, opening.tools
    return opening.turns + read_answer(fields, row, opening.answer, opening), opening.tools


def read_answer(fields: Fields, row: Mapping[str, Any], key: str, opening: Opening) -> Turns:
    """Return the turns of the answer under ``key``: a text, or a list of messages."""
    if opening.as_json or isinstance(row.get(key), list):
        return _listed(fields, row, key, opening.turns, as_json=opening.as_json)
    return (answer(fields, fields.text(row, key), key),)


def system_turns(fields: Fields, row: Mapping[str, Any]) -> Turns:
    """Return the turn of the field ``system``, if any: a string, or a list of parts as in Anthropic's API."""
    system = "" if row.get("system") is None else read_content(fields, row, "system", "system", "").text
    return (Turn("system", system),) if system else ()


def join_system_prompts(fields: Fields, turns: Sequence[Turn]) -> Turns:
    """Return ``turns`` with one system prompt at most: several at the beginning are joined, each text once."""
    if len(turns) < 2 or not turns[0].role == turns[1].role == "system":
        return tuple(turns)
    count = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    texts = list(dict.fromkeys(turn.content for turn in turns[:count] if turn.content.strip()))
    if len(texts) > 1:
        fields.remark("data.parse.several_system_prompts")
    return (turns[0]._replace(content="\n\n".join(texts)), *turns[count:])


def _format_of_pairs(row: Mapping[str, Any]) -> str | None:
    """Return the format of a row that has no answer but those that were compared."""
    if not row.keys().isdisjoint(_OPENAI):
        return "preferred-output"
    if row.keys().isdisjoint(_COMPARED):
        return None
    return "prompt-completion" if any(name in row for name in _QUESTIONS) else "chosen-rejected"


def _chat_format(turns: Any) -> str:
    """Return the format of a list of turns: OpenAI's (``messages``) or ShareGPT's."""
    if isinstance(turns, str):
        return "messages" if '"role"' in turns else "sharegpt"
    first = turns[0] if isinstance(turns, list) and turns else None
    return "messages" if isinstance(first, dict) and "role" in first else "sharegpt"


def _alpaca(fields: Fields, row: Mapping[str, Any], reading: Reading) -> Opening:
    question = fields.text(row, "instruction")
    if more := fields.text(row, "input", default=""):
        question = f"{question}{reading.joiner}{more}" if question else more
    turns = (*system_turns(fields, row), *read_history(fields, row.get("history")), Turn("user", question))
    return Opening(turns, (), "instruction", _ALPACA_KEYS, "output")


def _messages(fields: Fields, row: Mapping[str, Any], _reading: Reading, *, names: Sequence[str]) -> Opening:
    key = next((name for name in names if name in row), names[0])
    items = fields.messages(row, key)
    pair = pair_keys(items)
    turns = read_messages(fields, items, key) if pair is None else read_pairs(fields, items, pair, key)
    return Opening((*system_turns(fields, row), *turns), read_tools(fields, row), key, _COMMON_KEYS | {key})


def _prompt_completion(fields: Fields, row: Mapping[str, Any], reading: Reading) -> Opening:
    half = (pair for pair in PAIRS if pair[0] in row or pair[1] in row)
    question, answered = _pair(row) or next(half, PAIRS[0])
    known = _COMMON_KEYS | {question, answered, "history"}
    turns: Turns = (*system_turns(fields, row), *read_history(fields, row.get("history")))
    if reading.as_json is None:
        as_json = are_messages_as_json(row, (question, answered))
    else:
        as_json = reading.as_json and are_messages_as_json(row, (question,))
    if as_json or isinstance(row.get(question), list | dict):
        turns += _listed(fields, row, question, turns, as_json=as_json)
    else:
        turns += (Turn("user", fields.text(row, question)),)
    return Opening(turns, read_tools(fields, row), question, known, answered, as_json)


def _pair(row: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in PAIRS if pair[0] in row and pair[1] in row), None)


def _listed(fields: Fields, row: Mapping[str, Any], key: str, before: Turns, *, as_json: bool) -> Turns:
    """Return the turns of a message or a list of them that follow the turns ``before`` them."""
    given = fields.messages(row, key) if as_json else row[key]
    messages = read_messages(fields, [given] if isinstance(given, dict) else given, key)
    if messages and messages[0].role == "system" and any(turn.role != "system" for turn in before):
        refuse_late_system(fields, f"{key}[0]")
    return messages


def are_messages_as_json(row: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """Return whether every field of ``keys`` is a string that begins as a list of messages."""
    return all(isinstance(row.get(key), str) and _MESSAGES_AS_JSON.match(row[key]) for key in keys)


def _columns(fields: Fields, row: Mapping[str, Any], reading: Reading) -> Opening:
    columns = reading.columns
    system = fields.text(row, columns["system"]) if "system" in columns else ""
    turns = (*((Turn("system", system),) if system else ()), Turn("user", fields.text(row, columns["user"])))
    return Opening(turns, (), columns["user"], frozenset(columns.values()), columns.get("assistant"))


def _preferred_output(fields: Fields, row: Mapping[str, Any], _reading: Reading) -> Opening:
    place, known = "input.messages", frozenset({"input"})
    holder = fields.json(row.get("input"), "data.dialogues.openai_input", "input")
    if isinstance(holder, dict):
        fields.count_unread(holder, _OPENAI_KEYS, "input.")
        turns = read_messages(fields, fields.messages(holder, "messages", "input."), place)
        return Opening(turns, read_tools(fields, holder), place, known)
    if "input" not in row:
        fields.missing(row, "input", "data.dialogues.openai_input")
    elif holder is not UNREADABLE:
        fields.fault("data.dialogues.no_openai_input", field="input", value=shown(holder))
    return Opening((), (), place, known)


def _nothing(_fields: Fields, _row: Mapping[str, Any], _reading: Reading) -> Opening:
    return Opening((), (), "prompt", _COMMON_KEYS)


_READERS: dict[str, Callable[[Fields, Mapping[str, Any], Reading], Opening]] = {
    "alpaca": _alpaca,
    "sharegpt": partial(_messages, names=("conversations", "conversation", "messages")),
    "messages": partial(_messages, names=_DIALOGUES),
    "prompt-completion": _prompt_completion,
    "columns": _columns,
    "chosen-rejected": _nothing,
    "preferred-output": _preferred_output,
}
FORMATS = tuple(name for name in _READERS if name != "columns")
"""Names of formats that a user can name."""
