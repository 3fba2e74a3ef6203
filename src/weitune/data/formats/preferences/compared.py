"""Two answers that were compared, in every format:

    {"prompt": "q", "chosen": "a", "rejected": "b"}                       a prompt, and two texts or lists of messages
    {"messages": [user, assistant], "rejected_response": "b"}             the chosen answer is the dialogue's own
    {"chosen": [user, assistant], "rejected": [user, assistant]}          two dialogues with a common beginning
    {"chosen": "\\n\\nHuman: q\\n\\nAssistant: a", "rejected": …}             the same as texts
    {"instruction": "q", "output": ["a", "b"]}                            Alpaca: the better answer, then the worse one

Messages may be JSON in strings (in tables) if both answers are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from weitune.data.conversation import Conversation, Origin
from weitune.data.formats.dialogues import (
    Reading,
    Tools,
    Turns,
    has_own_answer,
    join_system_prompts,
    read_answer,
    read_opening,
    system_turns,
)
from weitune.data.formats.fields import UNREADABLE, Fields, is_empty
from weitune.data.formats.kinds import TWO_ANSWERS, side_names
from weitune.data.formats.messages import read_message, read_messages
from weitune.data.formats.pairs import answer
from weitune.data.formats.preferences.divide import check_answer, check_prompt, context, last_answer, parting
from weitune.data.formats.preferences.transcripts import is_opening, is_transcript, read_transcript
from weitune.data.formats.strict_json import decode
from weitune.data.formats.tool_calls import read_tools
from weitune.data.preference.values import Pair
from weitune.data.problems import shown

_PROMPT = "prompt"
_LIKE_A_LIST = re.compile(r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:""")
"""The beginning of a list of messages that is no JSON, such as one written by Python."""
_MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})
_KEYS_OF_DIALOGUES = frozenset({"system", "tools", "functions", _PROMPT})


class _Divided(NamedTuple):
    """A pair's turns, before they are checked, and the fields that they are in."""

    turns: tuple[Turns, Turns, Turns]
    """Prompt, chosen answer and rejected one."""
    places: tuple[str, ...]
    tools: Tools


def read_pair(fields: Fields, row: Mapping[str, Any], form: str, reading: Reading, origin: Origin) -> Pair:
    """Return the pair in ``row``, of the format ``form``; faults are noted in ``fields``."""
    columns = reading.columns
    names = (columns["chosen"], columns["rejected"]) if columns else side_names(row)
    if isinstance(row.get(TWO_ANSWERS), list) and set(names).isdisjoint(row):
        divided = _two_outputs(fields, row, form, reading)
    else:
        divided = _divided(fields, row, form, reading, names)
    prompt, chosen, rejected = divided.turns
    if not fields.faults:
        check_prompt(fields, prompt, divided.places[0])
        check_answer(fields, chosen, divided.places[1])
        check_answer(fields, rejected, divided.places[2])
    return Pair(Conversation(join_system_prompts(fields, context(prompt)), divided.tools, origin), chosen, rejected)


def _two_outputs(fields: Fields, row: Mapping[str, Any], form: str, reading: Reading) -> _Divided:
    opening = read_opening(fields, row, form, reading)
    fields.count_unread(row, opening.known)
    texts, places = row[TWO_ANSWERS], (f"{TWO_ANSWERS}[0]", f"{TWO_ANSWERS}[1]")
    chosen: Turns = ()
    rejected: Turns = ()
    if len(texts) == 2 and all(isinstance(text, str) for text in texts):
        checked = (fields.checked(text, place) for text, place in zip(texts, places, strict=True))
        chosen, rejected = ((answer(fields, text, TWO_ANSWERS),) for text in checked)
    else:
        fields.fault("data.compared.not_two_texts", field=TWO_ANSWERS, value=shown(texts))
    return _Divided((opening.turns, chosen, rejected), (opening.place, *places), opening.tools)


def _divided(fields: Fields, row: Mapping[str, Any], form: str, reading: Reading, names: tuple[str, str]) -> _Divided:
    if names[0] not in row and names[1] in row and has_own_answer(row, form):
        return _with_own_answer(fields, row, form, reading, names[1])
    before = row.get(_PROMPT)
    lead = before if isinstance(before, str) and is_opening(before) else None
    transcripts = lead or ("" if form == "chosen-rejected" else None)
    as_json = all(_is_json(row.get(name)) for name in names)
    chosen, rejected = (_side(fields, row, name, transcripts, as_json=as_json) for name in names)
    whole = _is_dialogue(chosen), _is_dialogue(rejected)
    if all(whole):
        return _from_dialogues(fields, row, (chosen, rejected), names, lead)
    if any(whole) and not fields.faults:
        dialogue, other = names if whole[0] else names[::-1]
        fields.fault("data.compared.only_one_is_whole", field=dialogue, whole=dialogue, other=other)
    opening = read_opening(fields, row, form, reading._replace(as_json=as_json))
    fields.count_unread(row, opening.known - {opening.answer} | set(names))
    return _Divided((opening.turns, chosen, rejected), (opening.place, *names), opening.tools)


def _with_own_answer(fields: Fields, row: Mapping[str, Any], form: str, reading: Reading, name: str) -> _Divided:
    """Return the pair of the answer that a row of the format ``form`` has by itself, and the rejected one, ``name``."""
    opening = read_opening(fields, row, form, reading)
    fields.count_unread(row, opening.known | {name})
    rejected = _side(fields, row, name, None, as_json=_is_json(row.get(name)))
    turns = opening.turns
    if opening.answer is not None:
        turns += read_answer(fields, row, opening.answer, opening)
    if _is_dialogue(rejected):
        turns, rejected = (join_system_prompts(fields, each) for each in (turns, system_turns(fields, row) + rejected))
        at = parting(fields, turns, rejected, name)
        rejected = rejected[at:]
    else:
        at = last_answer(turns)
    places = opening.place, opening.answer or opening.place, name
    return _Divided((turns[:at], turns[at:], rejected), places, opening.tools)


def _from_dialogues(
    fields: Fields, row: Mapping[str, Any], sides: tuple[Turns, Turns], names: tuple[str, ...], lead: str | None
) -> _Divided:
    """Return the pair in two whole dialogues, of which the prompt may be given a second time."""
    fields.count_unread(row, _KEYS_OF_DIALOGUES.union(names))
    first = system_turns(fields, row)
    chosen, rejected = (join_system_prompts(fields, first + side) for side in sides)
    at = 0 if fields.faults else parting(fields, chosen, rejected, names[1])
    if lead is None and not fields.faults:
        _check_repeated_prompt(fields, row, chosen[:at])
    places = names[0], *names
    return _Divided((chosen[:at], chosen[at:], rejected[at:]), places, read_tools(fields, row))


def _check_repeated_prompt(fields: Fields, row: Mapping[str, Any], prompt: Turns) -> None:
    """Note the fault that the field ``prompt`` is neither a turn of the dialogues' prompt nor its beginning."""
    value = row.get(_PROMPT)
    if is_empty(value):
        return
    if isinstance(value, str) and not _is_json(value):
        agrees = value.strip() in (turn.content.strip() for turn in prompt)
    else:
        said = [turn[:2] for turn in read_messages(fields, fields.messages(row, _PROMPT), _PROMPT)]
        opened = [turn[:2] for turn in prompt]
        agrees = said in (opened[: len(said)], opened[1 : len(said) + 1])  # perhaps without the system prompt
    if not agrees:
        fields.fault("data.compared.other_prompt", field=_PROMPT, value=shown(value))


def _side(fields: Fields, row: Mapping[str, Any], name: str, transcripts: str | None, *, as_json: bool) -> Turns:
    """Return the turns under ``name``, which are an answer or a whole dialogue.

    If the texts of the row are ``transcripts``, these begin with that string.
    """
    if name not in row:
        fields.missing(row, name, "data.compared.answer")
        return ()
    value = fields.json(row[name], "data.fields.list_of_messages", name) if as_json else row[name]
    if isinstance(value, dict):
        return tuple(read_message(fields, value, name))
    if isinstance(value, list):
        return read_messages(fields, fields.messages({name: value}, name), name)
    return () if value is UNREADABLE else _text(fields, fields.text(row, name), name, transcripts)


def _text(fields: Fields, text: str, name: str, transcripts: str | None) -> Turns:
    if transcripts is None:
        return (answer(fields, text, name),)
    if is_transcript(transcripts + text):
        return read_transcript(fields, transcripts + text, name)
    if not fields.faults:
        fields.fault("data.compared.no_prompt", field=name, value=shown(text))
    return ()


def _is_dialogue(turns: Turns) -> bool:
    """Return whether ``turns`` are a whole dialogue, rather than an answer."""
    return bool(turns) and turns[0].role in ("system", "user")


def _is_json(value: Any) -> bool:
    """Return whether ``value`` is a message or a list of messages as JSON in a string, rather than a text."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return False
    try:
        decoded = decode(value)
    except ValueError:
        return _LIKE_A_LIST.match(value) is not None
    messages = decoded if isinstance(decoded, list) else [decoded]
    return bool(messages) and all(map(_is_message, messages))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and any(pair <= value.keys() for pair in _MESSAGE_KEYS)
