"""Decide about examples: which are kept, cut or set aside, and for which reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from weitune.data.columns import ExampleColumns, Places, ends_of
from weitune.data.conversation import Conversation, Example, Span
from weitune.data.prepare.accounts import RowCounts
from weitune.data.prepare.batches import EncodedRows
from weitune.data.problems import Problem, Problems, data_problem
from weitune.errors import DataError
from weitune.messages import say
from weitune.recipe.schema import Tokens


def kept_examples(
    batch: EncodedRows[Conversation], weights: Sequence[float], tokens: Tokens, accounts: RowCounts, problems: Problems
) -> tuple[ExampleColumns, Places]:
    """Return the examples of a batch that are kept, and where they were read; count the rows.

    ``weights`` are those of the sources. :func:`truncate` decides about each row, but is asked only where an example
    is not kept as it is.
    """
    counts = np.diff(batch.ends)
    if any(weight != 1 for weight in weights):
        factors = np.array([weights[source] for source, _ in batch.rows], float)
        batch = replace(batch, examples=batch.examples.weighted(np.repeat(factors, counts)))
    examples, ends = batch.examples, batch.ends
    changed = (examples.lengths > tokens.max_length) | (examples.spans == 0)
    changed[list(batch.faults)] = True
    parts: list[ExampleColumns] = []
    at = 0
    for i in [*np.flatnonzero(np.diff(ends_of(changed)[ends])).tolist(), len(batch.rows)]:
        parts.append(examples.part(ends[at], ends[i]))
        accounts.trained([row for _, row in batch.rows[at:i]], len(parts[-1]))
        if i < len(batch.rows):
            row = batch.rows[i][1]
            kept = truncate(row, batch.of_row(i, row.origin), tokens, accounts, problems)
            parts.append(ExampleColumns.of(kept))
            counts[i] = len(kept)
        at = i + 1
    places = Places.of((source, row.origin) for source, row in batch.rows)
    return ExampleColumns.joined(parts), places.repeated(counts)


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
