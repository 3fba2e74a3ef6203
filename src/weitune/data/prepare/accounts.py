"""Count rows and examples while they are prepared, and find duplicates among them.

A row may make several examples. It counts as trained if one of them is kept; otherwise it is set aside for the reason
of its first one. Training has no faulty rows: they stop the preparation.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from weitune.data.conversation import Conversation, Origin
from weitune.data.prepare.report import DataReport, Examples, Findings, Lengths, Rows, Unit
from weitune.data.read.conversations import SourceReport
from weitune.data.read.rows import BLANK

_LISTED = 20
"""Rows that are listed for each reason they were set aside."""


class DuplicateCounter:
    """Finds repeated rows, and prompts with different answers, by 64-bit hashes: 16 bytes a row."""

    def __init__(self) -> None:
        self._prompts, self._rows = array("q"), array("q")

    def add(self, conversation: Conversation) -> None:
        keys: list[object] = [conversation.tools and repr(conversation.tools)]
        last = 0
        for role, content, _, reasoning, calls, *_ in conversation.turns:
            if role == "assistant":
                last = len(keys)
            keys += (role, content, reasoning, calls and repr(calls))
        self._prompts.append(hash(tuple(keys[:last])))
        self._rows.append(hash(tuple(keys)))

    def count(self) -> tuple[int, int]:
        """Return how many rows repeat an earlier one, and how many have a prompt that another row answers otherwise."""
        rows = np.frombuffer(self._rows, np.int64) if self._rows else np.zeros(0, np.int64)
        prompts = np.frombuffer(self._prompts, np.int64) if self._prompts else np.zeros(0, np.int64)
        _, first = np.unique(rows, return_index=True)
        _, place, answers = np.unique(prompts[first], return_inverse=True, return_counts=True)
        contested = np.zeros(len(rows), bool)
        contested[first] = answers[place] > 1
        return len(rows) - len(first), int(contested.sum())


def has_empty_answer(conversation: Conversation) -> bool:
    """Return whether a turn of the assistant has neither text nor calls."""
    for turn in conversation.turns:
        if turn.role == "assistant" and not turn.tool_calls and not turn.content.strip():
            return True
    return False


@dataclass(slots=True)
class RowCounts:
    """Counts of the rows so far."""

    rows: int = 0
    trained: int = 0
    made: int = 0
    kept: int = 0
    cut: int = 0
    too_long: int = 0
    lost_by_cut: int = 0
    empty_answers: int = 0
    rows_aside: Counter[str] = field(default_factory=Counter)
    examples_aside: Counter[str] = field(default_factory=Counter)
    listed: dict[str, list[str]] = field(default_factory=dict)
    duplicates: DuplicateCounter = field(default_factory=DuplicateCounter)

    def row(self, conversation: Conversation, kept: int, reasons: list[str]) -> None:
        """Count one row of which ``kept`` examples are kept; ``reasons`` say why each of the others is not."""
        self.rows += 1
        self.made += kept + len(reasons)
        self.kept += kept
        if kept:
            self.trained += 1
        else:
            self.rows_aside[reasons[0]] += 1
        if reasons:
            self.examples_aside.update(reasons)
            for reason in set(reasons):
                self._list(reason, conversation.origin)
        self.duplicates.add(conversation)
        self.empty_answers += has_empty_answer(conversation)

    def blank(self, rows: int, places: list[str]) -> None:
        """Count blank ``rows``; ``places`` are those of the first."""
        if rows:
            self.rows += rows
            self.rows_aside[BLANK] += rows
            self.listed.setdefault(BLANK, []).extend(places[:_LISTED])

    def _list(self, reason: str, origin: Origin | None) -> None:
        places = self.listed.setdefault(reason, [])
        if len(places) < _LISTED:
            places.append(str(origin))

    def report(
        self,
        sources: Sequence[SourceReport],
        faulty: int,
        lengths: npt.NDArray[np.int32],
        supervised: npt.NDArray[np.int32],
        *,
        unit: Unit = "tokens",
    ) -> DataReport:
        """Return the report of all rows counted, ``faulty`` ones besides.

        ``lengths`` and ``supervised`` are those of every kept example, of shape (examples,), in ``unit``.
        """
        duplicates, contested = self.duplicates.count()
        return DataReport(
            sources=sources,
            rows=Rows(self.rows + faulty, self.trained, dict(self.rows_aside), faulty),
            examples=Examples(self.made, self.kept, dict(self.examples_aside), self.cut),
            unit=unit,
            lengths=Lengths.measure(lengths, supervised),
            findings=Findings(duplicates, contested, self.empty_answers, self.too_long, self.lost_by_cut),
            set_aside_rows=self.listed,
        )
