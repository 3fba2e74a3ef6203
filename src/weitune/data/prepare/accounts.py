"""Count rows and examples while they are prepared, and find duplicates among them.

A row may make several examples. It counts as trained if one of them is kept; otherwise it is set aside for the reason
of its first one. Training has no faulty rows: they stop the preparation.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from weitune.data.conversation import Conversation, Origin
from weitune.data.preference.values import Judged, Pair
from weitune.data.prepare.preference_counts import PreferenceCounter
from weitune.data.prepare.report import DataReport, Examples, Findings, Lengths, Rows, Unit
from weitune.data.read.conversations import Reader
from weitune.data.read.source import blank_reason
from weitune.messages import in_english

Ints = npt.NDArray[np.int32]
_LISTED = 20
"""Rows that are listed for each reason they were set aside."""


class DuplicateCounter:
    """Finds repeated rows, and prompts with different answers, by 64-bit hashes: 16 bytes a row."""

    def __init__(self) -> None:
        self._prompts, self._rows = array("q"), array("q")

    def add(self, conversation: Conversation) -> None:
        keys: list[object] = [conversation.tools and repr(conversation.tools)]
        last = 0
        for role, content, _weight, reasoning, calls, _name, _id in conversation.turns:
            if role == "assistant":
                last = len(keys)
            keys += (role, content, reasoning, calls and repr(calls))
        prompt = hash(tuple(keys[:last]))
        self._prompts.append(prompt)
        self._rows.append(hash((prompt, *keys[last:])))

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

    rows: Rows = field(default_factory=Rows)
    examples: Examples = field(default_factory=Examples)
    findings: Findings = field(default_factory=Findings)
    places: dict[str, list[str]] = field(default_factory=dict)
    """Places of the first rows that were set aside, by reason."""
    duplicates: DuplicateCounter = field(default_factory=DuplicateCounter)
    preferences: PreferenceCounter | None = None
    """None while there were no preferences."""

    def row(self, conversation: Conversation, kept: int, reasons: list[str]) -> None:
        """Count one row of which ``kept`` examples are kept; ``reasons`` say why each of the others is not."""
        self._count(conversation.origin, kept, reasons)
        self.duplicates.add(conversation)
        self.findings.empty_answers += has_empty_answer(conversation)

    def trained(self, conversations: Sequence[Conversation], examples: int) -> None:
        """Count rows whose ``examples`` are all kept."""
        self.rows.read += len(conversations)
        self.rows.trained += len(conversations)
        self.examples.made += examples
        self.examples.kept += examples
        for conversation in conversations:
            self.duplicates.add(conversation)
            self.findings.empty_answers += has_empty_answer(conversation)

    def preference(self, row: Pair | Judged, kept: int, reasons: list[str]) -> None:
        """Count one row of which ``kept`` groups are kept; ``reasons`` say why each of the others is not."""
        self._count(row.origin, kept, reasons)
        self.preferences = self.preferences or PreferenceCounter()
        self.preferences.add(row)
        answers = (*row.chosen, *row.rejected) if isinstance(row, Pair) else row.answer
        self.findings.empty_answers += has_empty_answer(Conversation(answers))
        if kept > 1:
            self.preferences.counts.divided += 1

    def _count(self, origin: Origin | None, kept: int, reasons: list[str]) -> None:
        reasons = in_english(reasons)  # the account is read again from files, and told in the reader's language
        self.rows.read += 1
        self.examples.made += kept + len(reasons)
        self.examples.kept += kept
        if kept:
            self.rows.trained += 1
        else:
            _add(self.rows.set_aside, reasons[0])
        for reason in reasons:
            _add(self.examples.set_aside, reason)
        for reason in set(reasons):
            places = self.places.setdefault(reason, [])
            if len(places) < _LISTED:
                places.append(str(origin))

    def blank(self, rows: int, places: list[str]) -> None:
        """Count blank ``rows``; ``places`` are those of the first."""
        if rows:
            self.rows.read += rows
            _add(self.rows.set_aside, in_english(blank_reason()), rows)
            self.places.setdefault(in_english(blank_reason()), []).extend(places[:_LISTED])

    def report(self, reader: Reader, lengths: Ints, supervised: Ints, *, unit: Unit = "tokens") -> DataReport:
        """Return the report of all rows that ``reader`` has read.

        ``lengths`` and ``supervised`` are those of every kept example, or of every answer, of shape (examples,), in
        ``unit``.
        """
        faulty = reader.problems.rows
        rows = replace(self.rows, read=self.rows.read + faulty, faulty=faulty)
        duplicates, contested = self.duplicates.count()
        preferences = None
        if self.preferences is not None:
            preferences, copies = self.preferences.count()
            duplicates += copies
        findings = replace(self.findings, exact_duplicates=duplicates, rows_with_contested_prompt=contested)
        spread = Lengths.measure(lengths, supervised)
        return DataReport(reader.reports, rows, self.examples, unit, spread, findings, self.places, preferences)


def _add(counts: dict[str, int], reason: str, count: int = 1) -> None:
    counts[reason] = counts.get(reason, 0) + count
