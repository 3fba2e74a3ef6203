"""Settle a row: which of its examples are kept, cut or set aside, and for which reason."""

from __future__ import annotations

from collections.abc import Sequence

from weitune.data.conversation import Conversation, Example, Span
from weitune.data.prepare.accounts import RowCounts
from weitune.data.problems import Problem, Problems, data_problem
from weitune.errors import DataError
from weitune.recipe.schema import Tokens


def truncate(
    conversation: Conversation,
    examples: Sequence[Example | DataError],
    tokens: Tokens,
    accounts: RowCounts,
    problems: Problems,
) -> list[Example]:
    """Return the examples of a row that are kept, cut if need be, and book the row."""
    limit, truncation = tokens.max_length, tokens.truncation
    kept: list[Example] = []
    reasons: list[str] = []
    faults: list[Problem] = []
    for example in examples:
        if isinstance(example, DataError):
            faults += [_standing(problem, conversation) for problem in example.problems if isinstance(problem, Problem)]
        elif not example.spans:
            reasons.append("without a learned token")
        elif len(example.input_ids) <= limit:
            kept.append(example)
        else:
            shorter = cut(example, limit)
            accounts.too_long += 1
            accounts.lost_by_cut += example.supervised - shorter.supervised
            if truncation == "error":
                faults.append(_too_long(conversation, len(example.input_ids), limit))
            elif truncation == "drop":
                reasons.append(f"longer than {limit:,} tokens")
            elif not shorter.spans:
                reasons.append(f"with nothing to learn in the first {limit:,} tokens")
            else:
                accounts.cut += 1
                kept.append(shorter)
    if faults:
        problems.add(faults)
        return []
    accounts.row(conversation, len(kept), reasons)
    return kept


def weighted(example: Example | DataError, weight: float) -> Example | DataError:
    """Scale what is learned of an example by the weight of its file."""
    if isinstance(example, DataError):
        return example
    spans = [Span(span.start, span.stop, span.weight * weight) for span in example.spans]
    return Example(example.input_ids, tuple(span for span in spans if span.weight), example.origin)


def cut(example: Example, max_length: int) -> Example:
    """Return the first ``max_length`` tokens of ``example`` and what is learned of them."""
    spans = (Span(span.start, min(span.stop, max_length), span.weight) for span in example.spans)
    return Example(example.input_ids[:max_length], tuple(s for s in spans if s.start < s.stop), example.origin)


def _too_long(conversation: Conversation, tokens: int, limit: int) -> Problem:
    problem = data_problem("data.truncate.too_long", limit=limit, tokens=tokens)
    return _standing(problem, conversation)


def _standing(problem: Problem, conversation: Conversation) -> Problem:
    return problem.at(conversation.origin) if conversation.origin else problem
