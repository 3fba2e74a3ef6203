"""What is kept: prompts that the model is to answer itself, and whole dialogues, from files or the shipped set.

A file of prompts has rows with a `prompt` and no answer; any other file has dialogues, in every format that
:mod:`weitune.data.formats` reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from weitune.data.conversation import Conversation, Turn
from weitune.data.formats.parse import Options
from weitune.data.formats.strict_json import undecodable
from weitune.data.problems import Problem, data_problem
from weitune.data.read.conversations import Reader, read_conversations
from weitune.data.read.source import RawRow, Source
from weitune.data.read.source_rows import raw_rows

SHIPPED = {"builtin:prompts-en": "en", "builtin:prompts-zh": "zh"}
"""Names of the prompts that ship with weitune, and their language."""
_FILE = "prompts.jsonl"
_PROMPT = "prompt"
_ABOUT = frozenset({_PROMPT, "id", "language", "kind", "category", "source"})
"""Fields that a row of prompts may have: the prompt, and facts about it that are not read."""


@dataclass(frozen=True, slots=True)
class KeepRows:
    """Prompts to be answered, and dialogues that have their answers."""

    prompts: Sequence[Conversation]
    dialogues: Sequence[Conversation]

    def __len__(self) -> int:
        return len(self.prompts) + len(self.dialogues)


def shipped_prompts(language: str | None = None) -> list[Conversation]:
    """Return the prompts that ship with weitune, 570 in English and 577 in Chinese, or those in one ``language``."""
    text = (resources.files("weitune.data.keep") / _FILE).read_text(encoding="utf-8")
    rows = map(json.loads, text.splitlines())
    return [_asked(row[_PROMPT]) for row in rows if language in {None, row["language"]}]


def read_keep_rows(names: Sequence[str], options: Options) -> KeepRows:
    """Return the rows of the files ``names``, or the :data:`SHIPPED` prompts. Raises DataError with every problem."""
    prompts: list[Conversation] = []
    dialogues: list[Conversation] = []
    for name in names:
        if name in SHIPPED:
            prompts += shipped_prompts(SHIPPED[name])
            continue
        reader = Reader([name], options)
        if reader.problems:
            raise reader.problems.error()
        if all(_holds_prompts(source) for source in reader.sources):
            prompts += _prompts(reader)
        else:
            dialogues += read_conversations(reader)
    return KeepRows(prompts, dialogues)


def _asked(prompt: str) -> Conversation:
    return Conversation((Turn("user", prompt),))


def _holds_prompts(source: Source) -> bool:
    """Return whether the first row of ``source`` has a prompt and no answer."""
    first = next((raw for raw in raw_rows(source) if isinstance(raw, RawRow)), None)
    return first is not None and isinstance(first.value, Mapping) and _only_asks(first.value)


def _only_asks(row: Mapping[str, Any]) -> bool:
    return _PROMPT in row and set(row) <= _ABOUT


def _prompts(reader: Reader) -> list[Conversation]:
    found: list[Conversation] = []
    for raw in (raw for source in reader.sources for raw in raw_rows(source)):
        if isinstance(raw, Problem):
            reader.problems.add([raw], rows=int(raw.row is not None))
        elif isinstance(raw, RawRow):
            if problems := [*raw.problems, *_faults(raw)]:
                reader.problems.add(problems)
            else:
                found.append(_asked(raw.value[_PROMPT]))
    if reader.problems:
        raise reader.problems.error()
    return found


def _faults(raw: RawRow) -> Iterator[Problem]:
    row = raw.value
    if not (isinstance(row, Mapping) and _only_asks(row)):
        other = sorted(set(row) - _ABOUT) if isinstance(row, Mapping) else [type(row).__name__]
        yield data_problem("data.keep.not_a_prompt", field=_PROMPT, found=", ".join(other)).at(raw.origin)
    elif not (isinstance(row[_PROMPT], str) and row[_PROMPT].strip()):
        yield data_problem("data.keep.blank_prompt", field=_PROMPT).at(raw.origin)
    elif undecodable(row[_PROMPT]):
        yield data_problem("data.fields.undecodable_text").at(raw.origin)
