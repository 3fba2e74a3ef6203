"""Decide about the examples of a row: which are kept, cut or set aside, and for which reason."""

from __future__ import annotations

from collections.abc import Sequence

from weitune.data.conversation import Conversation, Example, Span
from weitune.data.prepare.accounts import RowCounts
from weitune.data.problems import Problem, Problems, data_problem
from weitune.errors import DataError
from weitune.messages import say
from weitune.recipe.schema import Tokens


def truncate(
    conversation: Conversation,
    examples: Sequence[Example | DataError],
    tokens: Tokens,
    accounts: RowCounts,
    problems: Problems,
) -> list[Example]:
    """Return the examples of a row that are kept, cut if need be, and count the row.

    A row with a faulty example keeps none; its faults go to ``problems``.
    """
    limit = tokens.max_length
    kept: list[Example] = []
    reasons: list[str] = []
    faults: list[Problem] = []
    for example in examples:
        if isinstance(example, DataError):
            faults += [problem for problem in example.problems if isinstance(problem, Problem)]
        elif not example.spans:
            reasons.append(say("data.truncate.nothing_learned"))
        elif (trained := within_limit(example, tokens)) is example:
            kept.append(example)
        else:
            shorter = trained or cut(example, limit)
            accounts.findings.over_long += 1
            accounts.findings.supervised_tokens_lost_by_cut += example.supervised - shorter.supervised
            if tokens.truncation == "error":
                faults.append(data_problem("data.truncate.too_long", limit=limit, tokens=len(example.input_ids)))
            elif trained is None:
                reasons.append(say("data.truncate.longer", limit=limit))
            elif not trained.spans:
                reasons.append(say("data.truncate.nothing_learned_before_cut", limit=limit))
            else:
                accounts.examples.cut += 1
                kept.append(trained)
    if faults:
        origin = conversation.origin
        problems.add(problem.at(origin) if origin else problem for problem in faults)
        return []
    accounts.row(conversation, len(kept), reasons)
    return kept


def within_limit(example: Example, tokens: Tokens) -> Example | None:
    """Return ``example`` itself if it is short enough, else what the recipe's ``tokens`` keep of it: its beginning
    (``truncation: cut``) or nothing."""
    if len(example.input_ids) <= tokens.max_length:
        return example
    return cut(example, tokens.max_length) if tokens.truncation == "cut" else None


def cut(example: Example, max_length: int) -> Example:
    """Return the first ``max_length`` tokens of ``example`` and the spans among them."""
    spans = (Span(span.start, min(span.stop, max_length), span.weight) for span in example.spans)
    return Example(example.input_ids[:max_length], tuple(s for s in spans if s.start < s.stop), example.origin)


def weighted(example: Example | DataError, weight: float) -> Example | DataError:
    """Multiply the weights of an example's spans by ``weight``, that of its file."""
    if isinstance(example, DataError):
        return example
    spans = [Span(span.start, span.stop, span.weight * weight) for span in example.spans]
    return Example(example.input_ids, tuple(span for span in spans if span.weight), example.origin)
