"""The report of a preparation: every row that was read is trained, set aside for a named reason, or faulty.

    rows read = trained + set aside + faulty           examples made = kept + set aside

The report is kept as JSON beside the prepared examples and in the run's ``data.json``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from weitune.data.formats.fields import Notes
from weitune.data.formats.kinds import Kind
from weitune.data.problems import shown_name
from weitune.data.read.conversations import SourceReport
from weitune.data.read.source import blank_reason
from weitune.files.json_files import record_from
from weitune.messages import in_english, joined, say
from weitune.messages.translate import translated

Unit = Literal["tokens", "characters"]
_SOURCE_LINES: Mapping[Kind, str] = {
    "conversations": "data.report.source",
    "pairs": "data.report.source_of_pairs",
    "judged": "data.report.source_of_judged",
}
"""Message ids, by the kind of a source's rows."""
_NAMED = 8
"""Unused fields that a line names."""
_PERCENTILES = (0, 25, 50, 75, 90, 95, 99, 100)


@dataclass(slots=True)
class Rows:
    """What became of the rows; ``set_aside`` has their number by reason."""

    read: int = 0
    trained: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)
    faulty: int = 0


@dataclass(slots=True)
class Examples:
    """What became of the examples; ``set_aside`` has their number by reason."""

    made: int = 0
    kept: int = 0
    set_aside: dict[str, int] = field(default_factory=dict)
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Sums over the kept examples, and mean and percentiles of one example: its whole, its prompt and its answer."""

    all: int = 0
    supervised: int = 0
    per_example: Mapping[str, float] = field(default_factory=dict)
    prompt_per_example: Mapping[str, float] = field(default_factory=dict)
    answer_per_example: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def measure(cls, lengths: npt.NDArray[np.int32], supervised: npt.NDArray[np.int32]) -> Lengths:
        """Measure examples of these ``lengths``, of which ``supervised`` are learned, both of shape (examples,)."""
        spreads = (_spread(values) for values in (lengths, lengths - supervised, supervised))
        return cls(int(lengths.sum()), int(supervised.sum()), *spreads)


@dataclass(slots=True)
class Findings:
    """What is worth a look."""

    exact_duplicates: int = 0
    """Rows that repeat an earlier one."""
    rows_with_contested_prompt: int = 0
    """Rows with a prompt that another row answers differently."""
    empty_answers: int = 0
    over_long: int = 0
    """Examples longer than ``tokens.max_length``."""
    supervised_tokens_lost_by_cut: int = 0
    """Learned tokens that cutting these examples loses, or would lose."""


@dataclass(slots=True)
class Preferences:
    """The rows with answers that were compared or judged."""

    pairs: int = 0
    liked: int = 0
    disliked: int = 0
    divided: int = 0
    """Pairs that were learned as one liked and one disliked answer."""
    equal_answers: int = 0
    """Pairs of two equal answers; they teach nothing and are set aside."""
    contradicting_pairs: int = 0
    """Pairs that another one with the same prompt contradicts."""
    both_ways: int = 0
    """Answers that are chosen or liked in one row, and rejected or disliked in another with the same prompt."""

    def count_lines(self) -> Iterator[str]:
        if self.pairs:
            yield say("data.report.pairs", count=self.pairs)
        if self.divided:
            yield say("data.report.divided_pairs", count=self.divided, answers=2 * self.divided)
        if self.liked or self.disliked:
            yield say("data.report.judged", count=self.liked + self.disliked, liked=self.liked, disliked=self.disliked)

    def finding_lines(self) -> Iterator[str]:
        if self.contradicting_pairs:
            yield say("data.report.contradicting_pairs", count=self.contradicting_pairs)
        if self.both_ways:
            yield say("data.report.both_ways", count=self.both_ways)


@dataclass(frozen=True, slots=True)
class DataReport:
    """The report of a preparation; ``lengths`` are in ``unit``: characters if there is no tokenizer."""

    sources: Sequence[SourceReport]
    rows: Rows
    examples: Examples
    unit: Unit
    lengths: Lengths
    findings: Findings
    set_aside_rows: Mapping[str, Sequence[str]]
    """Places of the first rows that were set aside, by reason."""
    preferences: Preferences | None = None
    """Counts of preferences; None if the rows are conversations."""
    missing: frozenset[str] = frozenset()
    """Counts that another version did not record, such as ``rows.read``; they are 0 here."""

    def to_json(self) -> dict[str, Any]:
        preferences = {"preferences": asdict(self.preferences)} if self.preferences else {}
        return {
            "sources": [source.to_json() for source in self.sources],
            "rows": asdict(self.rows),
            "examples": asdict(self.examples),
            self.unit: asdict(self.lengths),
            "found": asdict(self.findings),
            "set_aside_rows": dict(self.set_aside_rows),
            **preferences,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> DataReport:
        """Read what :meth:`to_json` returned; what another version did not count is 0 and named in ``missing``.

        Raises TypeError, ValueError or AttributeError if ``tree`` is no report.
        """
        unit: Unit = "characters" if "characters" in tree else "tokens"
        counts: dict[str, type[Any]] = {"rows": Rows, "examples": Examples, unit: Lengths, "found": Findings}
        missing = (
            f"{key}.{f.name}" for key, kind in counts.items() for f in fields(kind) if f.name not in tree.get(key, {})
        )
        return cls(
            sources=[_source(source) for source in tree.get("sources", ())],
            rows=record_from(Rows, tree.get("rows", {})),
            examples=record_from(Examples, tree.get("examples", {})),
            unit=unit,
            lengths=record_from(Lengths, tree.get(unit, {})),
            findings=record_from(Findings, tree.get("found", {})),
            set_aside_rows=tree.get("set_aside_rows", {}),
            preferences=record_from(Preferences, tree["preferences"]) if "preferences" in tree else None,
            missing=frozenset(missing),
        )

    def with_source_names(self, names: Sequence[str]) -> DataReport:
        """Return this report of files that are now called ``names``. Raises ValueError if there are not as many."""
        sources = [replace(source, name=name) for source, name in zip(self.sources, names, strict=True)]
        return replace(self, sources=sources)

    def lines(self) -> list[str]:
        """Return the report for the terminal: sources, rows, examples, lengths, and what is worth a look."""
        findings = (joined("", ["  ", line]) for line in self._findings())
        return [*map(source_line, self.sources), *self._count_lines(), *findings]

    def _count_lines(self) -> Iterator[str]:
        rows, examples, lengths = self.rows, self.examples, self.lengths
        counts = {"count": rows.read, "trained": rows.trained, "aside": sum(rows.set_aside.values())}
        if rows.faulty:
            yield say("data.report.rows_with_faulty", **counts, faulty=rows.faulty)
        else:
            yield say("data.report.rows", **counts)
        for reason, count in rows.set_aside.items():
            yield joined("", ["  ", say("data.report.set_aside", count=count, reason=translated(reason, "data"))])
        if self.preferences is not None:
            yield from self.preferences.count_lines()
        elif examples.made != rows.read - rows.faulty - rows.set_aside.get(in_english(blank_reason()), 0):
            aside = sum(examples.set_aside.values())
            yield say("data.report.examples", count=examples.made, kept=examples.kept, aside=aside)
        if lengths.all:
            totals = {"all": lengths.all, "learned": lengths.supervised, "share": lengths.supervised / lengths.all}
            tokens = self.unit == "tokens"
            yield say("data.report.tokens", **totals) if tokens else say("data.report.characters", **totals)

    def _findings(self) -> Iterator[str]:
        findings, lost = self.findings, self.findings.supervised_tokens_lost_by_cut
        if self.examples.cut:
            yield say("data.report.cut", count=self.examples.cut, lost=lost)
        elif findings.over_long:
            yield say("data.report.too_long", count=findings.over_long, lost=lost)
        if findings.exact_duplicates:
            yield say("data.report.exact_duplicates", count=findings.exact_duplicates)
        if self.preferences is not None:
            yield from self.preferences.finding_lines()
        if findings.rows_with_contested_prompt:
            yield say("data.report.contested_prompts", count=findings.rows_with_contested_prompt)
        if findings.empty_answers:
            yield say("data.report.empty_answers", count=findings.empty_answers)


def _source(tree: Mapping[str, Any]) -> SourceReport:
    unused, remarks = (Counter(tree.get(key, {})) for key in ("unused_fields", "remarks"))
    notes = Notes(unused, tree.get("null_fields_removed", 0), remarks)
    values = {
        key: tree[key] for key in ("name", "kind", "encoding", "compression", "format", "rows", "holds") if key in tree
    }
    return SourceReport(**{"kind": "", **values}, notes=notes)


def _spread(values: npt.NDArray[np.int32]) -> dict[str, float]:
    if not len(values):
        return {}
    points = np.percentile(values, _PERCENTILES, method="nearest")
    percentiles = {f"p{p}": int(value) for p, value in zip(_PERCENTILES, points, strict=True)}
    return {"mean": round(float(values.mean()), 2), **percentiles}


def source_line(source: SourceReport) -> str:
    """Return what a source holds and what of it is not used, for the terminal."""
    how = [source.format or say("data.report.unknown_format"), source.encoding, source.compression]
    name, facts = shown_name(source.name), ", ".join(filter(None, how))
    parts = [say(_SOURCE_LINES[source.holds or "conversations"], name=name, count=source.rows, facts=facts)]
    if source.notes.unused:
        fields = sorted(source.notes.unused.items())
        named = ", ".join(f"{shown_name(name)} ({count:,})" for name, count in fields[:_NAMED])
        if more := fields[_NAMED:]:
            named = say("data.report.more_fields", fields=named, count=len(more))
        parts.append(say("data.report.unused_fields", fields=named))
    if source.notes.null_fields:
        parts.append(say("data.report.null_fields_removed", count=source.notes.null_fields))
    parts += [
        say("data.report.remark", count=count, remark=translated(remark, "data"))
        for remark, count in source.notes.remarks.items()
    ]
    return joined("; ", parts)
