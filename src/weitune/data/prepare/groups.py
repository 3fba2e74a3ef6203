"""From a pair or a judged answer to groups: what is framed, which groups are kept, and for which reason others are not.

    Pair(prompt, chosen, rejected) ─▶ prompt + chosen, prompt + rejected ─▶ two examples ─▶ one group, or two judged

Only the answer is learned of each example; all turns before it are context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from weitune.data.conversation import Conversation, Example
from weitune.data.frame.encode import Draft
from weitune.data.preference.values import Answer, Group, Judged, Pair
from weitune.data.prepare.accounts import RowCounts
from weitune.data.prepare.truncate import cut, within_limit
from weitune.data.problems import Problem, Problems, data_problem, framing_error
from weitune.errors import DataError
from weitune.messages import say
from weitune.recipe.schema import Tokens


def answers_of(row: Pair | Judged) -> tuple[Answer, ...]:
    """Return the answers of ``row``, a pair's chosen one first."""
    return (row.chosen, row.rejected) if isinstance(row, Pair) else (row.answer,)


def dialogues(row: Pair | Judged) -> list[Conversation]:
    """Return a conversation for each answer of ``row``, in which the answer is learned and nothing before it."""
    before = tuple(turn._replace(weight=0.0) for turn in row.prompt.turns)
    return [
        replace(row.prompt, turns=(*before, *(turn._replace(weight=1.0) for turn in answer)))
        for answer in answers_of(row)
    ]


def draft_answers(draft: Callable[[Conversation], list[Draft]], row: Pair | Judged) -> list[Draft]:
    """Return a draft for each answer of ``row``, made by ``draft``.

    Raises DataError if an answer of several turns does not go into one example: some templates show the model other
    tokens before each of them.
    """
    drafts: list[Draft] = []
    for dialogue in dialogues(row):
        made = draft(dialogue)
        if len(made) != 1:
            raise framing_error(row.origin, data_problem("data.groups.several_examples", count=len(made)))
        drafts += made
    return drafts


def fit(
    row: Pair | Judged,
    examples: Sequence[Example | DataError],
    weight: float,
    tokens: Tokens,
    accounts: RowCounts,
    problems: Problems,
    *,
    divided: bool,
) -> list[Group]:
    """Return the groups of a row whose answers are ``examples``, cut if need be, and count the row.

    ``weight`` is that of its file. A pair of which one answer cannot be kept is set aside as a whole; ``divided``
    makes two judged answers of any other. A row with a faulty answer makes no group; its faults go to ``problems``.
    """
    faults = [problem for each in examples if isinstance(each, DataError) for problem in each.problems]
    answers = [each for each in examples if isinstance(each, Example)]
    long = [answer for answer in answers if len(answer.input_ids) > tokens.max_length]
    accounts.findings.over_long += len(long)
    for answer in long:
        lost = answer.supervised - cut(answer, tokens.max_length).supervised
        accounts.findings.supervised_tokens_lost_by_cut += lost
        if tokens.truncation == "error":
            found = len(answer.input_ids)
            faults.append(data_problem("data.truncate.too_long", limit=tokens.max_length, tokens=found))
    if faults:
        plain = [problem for problem in faults if isinstance(problem, Problem)]
        problems.add(problem.at(row.origin) if row.origin else problem for problem in plain)
        return []
    fitting = [trained for answer in answers if (trained := within_limit(answer, tokens)) is not None]
    weight *= row.weight
    reason = _why_not(answers, fitting, weight, tokens)
    apart = divided and isinstance(row, Pair)
    if reason is not None:
        accounts.preference(row, 0, [reason] * (1 + apart))
        return []
    accounts.examples.cut += len(long)
    liked = (True, False) if isinstance(row, Pair) else (row.liked,)
    if apart:
        groups = [Group((answer,), (good,), weight) for answer, good in zip(fitting, liked, strict=True)]
    else:
        groups = [Group(tuple(fitting), liked, weight)]
    accounts.preference(row, len(groups), [])
    return groups


def count_untokenized(row: Pair | Judged, accounts: RowCounts, *, divided: bool) -> bool:
    """Count a row whose answers are not tokenized, and return whether it makes groups: its answers differ."""
    groups = 1 + (divided and isinstance(row, Pair))
    kept = not isinstance(row, Pair) or row.chosen != row.rejected
    accounts.preference(row, groups * kept, [] if kept else [say("data.groups.equal_answers")] * groups)
    return kept


def _why_not(answers: Sequence[Example], fitting: Sequence[Example], weight: float, tokens: Tokens) -> str | None:
    """Return why a row with ``answers``, of which ``fitting`` are short enough, makes no group; None if it does."""
    limit = tokens.max_length
    if not weight or not all(answer.spans for answer in answers):
        return say("data.truncate.nothing_learned")
    if _are_equal(answers):
        return say("data.groups.equal_answers")
    if len(fitting) < len(answers):
        return say("data.groups.answer_too_long", limit=limit) if len(answers) > 1 else _longer(limit)
    if not all(answer.spans for answer in fitting):
        return say("data.truncate.nothing_learned_before_cut", limit=limit)
    return say("data.groups.equal_before_cut", limit=limit) if _are_equal(fitting) else None


def _longer(limit: int) -> str:
    return say("data.truncate.longer", limit=limit)


def _are_equal(answers: Sequence[Example]) -> bool:
    return len(answers) == 2 and answers[0].input_ids == answers[1].input_ids
