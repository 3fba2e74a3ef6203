"""An answer with a verdict on it, of any format: the last answer of the dialogue, which was liked or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weitune.data.conversation import Conversation, Origin
from weitune.data.formats.dialogues import Reading, join_system_prompts, read_dialogue
from weitune.data.formats.fields import Fields
from weitune.data.formats.kinds import verdict, verdict_name
from weitune.data.formats.preferences.divide import check_answer, check_prompt, context, last_answer
from weitune.data.preference.values import Judged
from weitune.data.problems import shown


def read_judged(fields: Fields, row: Mapping[str, Any], form: str, reading: Reading, origin: Origin) -> Judged:
    """Return the judged answer in ``row``, of the format ``form``; faults are noted in ``fields``."""
    name = reading.columns.get("liked") or verdict_name(row, frozenset(reading.columns.values()))
    liked = verdict(row.get(name))
    if name not in row:
        fields.missing(row, name, "data.judged.verdict")
    elif liked is None:
        fields.fault("data.judged.no_verdict", field=name, value=shown(row[name]))
    turns, tools = read_dialogue(fields, row, form, reading, name)
    at = last_answer(turns)
    if not fields.faults:
        check_prompt(fields, turns[:at], "")
        check_answer(fields, turns[at:], "")
    prompt = Conversation(join_system_prompts(fields, context(turns[:at])), tools, origin)
    return Judged(prompt, turns[at:], bool(liked))
