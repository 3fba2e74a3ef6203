"""Answer the rows of a file and write them as ``messages`` JSON Lines, in their order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from weitune.data.conversation import Conversation, ToolCall
from weitune.data.formats.kinds import ANY_KIND
from weitune.data.formats.parse import Options
from weitune.data.formats.reasoning import turn_from_text
from weitune.data.keep.rows import read_keep_rows
from weitune.data.show.convert import refuse_existing, to_messages, write_file
from weitune.errors import InputError
from weitune.generate.batch.answer_file import PartialAnswers, Said
from weitune.generate.batch.answerers import Answerer
from weitune.generate.sampling import SEEDS, Sampling
from weitune.generate.stream import Answer
from weitune.progress import Progress


@dataclass(frozen=True, slots=True)
class Request:
    """How rows are answered, and which of the answers are written."""

    sampling: Sampling
    """Answer ``n``, counted over all rows and samples from 0, is drawn with ``seed + n``."""
    system: str | None = None
    """The system prompt under which rows without their own are answered; it is not written."""
    samples: int = 1
    """Answers to each row"""
    drop_unfinished: bool = False
    """Leave out answers that were cut at their longest length."""
    schema: Mapping[str, Any] | None = None
    """What every answer must fit, as JSON; None: any text will do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Rows that were written, and what became of the other answers."""

    written: int
    found: int
    """answers that an earlier command had left"""
    unfinished: int
    """answers that were cut at their longest length, written or not"""
    blank: int
    """answers without text and calls, or with a call that cannot be read, which are left out"""
    too_long: int
    """rows whose prompt leaves no room for an answer"""


def asked_rows(names: Sequence[str], options: Options) -> list[Conversation]:
    """Return the rows of files in order, each up to its last answer or answers that were compared.

    Raises DataError with every problem of a file.
    """
    asked: list[Conversation] = []
    for name in names:
        rows = read_keep_rows([name], replace(options, kinds=ANY_KIND))
        asked += rows.prompts
        asked += (_without_answer(dialogue) for dialogue in rows.dialogues)
    return asked


def _without_answer(dialogue: Conversation) -> Conversation:
    ends = dialogue.turns[-1].role == "assistant"
    return dialogue.before(dialogue.last_answer) if ends else dialogue


def answer_rows(
    asked: Sequence[Conversation],
    answerer: Answerer,
    request: Request,
    target: Path,
    progress: Progress,
    *,
    force: bool = False,
) -> Outcome:
    """Answer ``asked`` and write the dialogues to ``target``, whole or not at all.

    Answers that an earlier command has left beside ``target`` are not asked for again. ``progress`` counts those that
    this one gives. ``force``: replace a ``target`` that exists, and answers that were given under other settings.

    Raises InputError if ``target`` exists or cannot be written, if the answers beside it were given under other
    settings, or if nothing is answered.
    """
    refuse_existing(target, force=force)
    if request.samples > 1 and request.sampling.greedy:
        raise InputError("generate.answer_rows.same_answers", samples=request.samples)
    conversations = [row.with_system(request.system, replace_blank=True) for row in asked]
    settings = {**answerer.identity, **_settings(conversations, request)}
    with PartialAnswers(target, settings, restart=force) as kept:
        found = len(kept.said)
        open_numbers = [n for n in range(len(asked) * request.samples) if n not in kept.said]
        seed = request.sampling.seed
        if open_numbers:
            progress(0, len(open_numbers))
            answers = answerer.finished(
                [conversations[n // request.samples] for n in open_numbers],
                request.sampling,
                [None if seed is None else (seed + n) % SEEDS for n in open_numbers],
                request.schema,
            )
            for done, (at, answer) in enumerate(answers, 1):
                kept.add(_said(open_numbers[at], answer))
                progress(done, len(open_numbers))
        said = [kept.said[n] for n in range(len(asked) * request.samples)]
        outcome = _outcome(said, found, request)
        if not outcome.written:
            raise InputError("generate.answer_rows.nothing", **asdict(outcome))
        write_file(_rows(asked, said, request), target, force=force)
        kept.delete()
    return outcome


def _settings(conversations: Sequence[Conversation], request: Request) -> dict[str, str]:
    digest = hashlib.sha256()
    for conversation in conversations:
        digest.update(json.dumps(to_messages(conversation), sort_keys=True, default=dict).encode())
    options = {name: str(value) for name, value in asdict(request.sampling).items()}
    if request.schema is not None:  # answers from before there were schemas can be gone on with
        options["schema"] = json.dumps(request.schema, sort_keys=True)
    if any(conversation.tools for conversation in conversations):  # version 0.1 did not offer them
        options["tools"] = "offered"
    return {"rows": digest.hexdigest(), "system": str(request.system), "samples": str(request.samples), **options}


def _said(number: int, answer: Answer | None) -> Said:
    if answer is None:
        return Said(number, None, stopped=False)
    return Said(number, answer.text, answer.stopped, [call._asdict() for call in answer.calls])


def _is_blank(said: Said) -> bool:
    return said.text is not None and not said.text.strip() and not said.calls


def _is_written(said: Said, request: Request) -> bool:
    return said.text is not None and not _is_blank(said) and (said.stopped or not request.drop_unfinished)


def _outcome(said: Sequence[Said], found: int, request: Request) -> Outcome:
    return Outcome(
        written=sum(_is_written(each, request) for each in said),
        found=found,
        unfinished=sum(each.text is not None and not each.stopped for each in said),
        blank=sum(map(_is_blank, said)),
        too_long=sum(each.text is None for each in said) // request.samples,
    )


def _rows(asked: Sequence[Conversation], said: Sequence[Said], request: Request) -> Iterator[Conversation]:
    for each in said:
        if _is_written(each, request) and each.text is not None:
            row = asked[each.number // request.samples]
            calls = tuple(ToolCall(**call) for call in each.calls)
            answer = turn_from_text("assistant", each.text)._replace(tool_calls=calls)
            yield Conversation((*row.turns, answer), row.tools, row.origin)
