"""The accounts of a preparation: every row that was read is trained, set aside for a named reason, or faulty.

    rows read = trained + set aside + faulty           examples made = kept + set aside

A row may make several examples; it is trained if one of them is kept, and set aside for the reason of its first one
otherwise. Whoever trains sees no faulty rows: they stop the preparation.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from weitune.data.conversation import Conversation, Origin
from weitune.data.problems import shown_name
from weitune.data.read.rows import BLANK

_LISTED = 20
"""Rows that are listed for each reason they were set aside."""
_NAMED = 8
"""Fields not used that a line names."""
_PERCENTILES = (0, 25, 50, 75, 90, 95, 99, 100)


class DuplicateCounter:
    """Finds rows that occur twice, and prompts with different answers, by 64-bit hashes: 16 bytes a row."""

    def __init__(self) -> None:
        """Begin with no rows."""
        self._prompts, self._rows = array("q"), array("q")

    def add(self, conversation: Conversation) -> None:
        """Remember a conversation."""
        keys: list[object] = [conversation.tools and repr(conversation.tools)]
        last = 0
        for role, content, _, reasoning, calls, *_ in conversation.turns:
            if role == "assistant":
                last = len(keys)
            keys += (role, content, reasoning, calls and repr(calls))
        self._prompts.append(hash(tuple(keys[:last])))
        self._rows.append(hash(tuple(keys)))

    def count(self) -> tuple[int, int]:
        """Return how many rows repeat an earlier one, and how many share a prompt with one that answers otherwise."""
        rows = np.frombuffer(self._rows, np.int64) if self._rows else np.zeros(0, np.int64)
        prompts = np.frombuffer(self._prompts, np.int64) if self._prompts else np.zeros(0, np.int64)
        _, first = np.unique(rows, return_index=True)
        _, place, answers = np.unique(prompts[first], return_inverse=True, return_counts=True)
        contested = np.zeros(len(rows), bool)
        contested[first] = answers[place] > 1
        return len(rows) - len(first), int(contested.sum())


def has_empty_answer(conversation: Conversation) -> bool:
    """Tell whether the assistant once says nothing and calls nothing."""
    for turn in conversation.turns:
        if turn.role == "assistant" and not turn.tool_calls and not turn.content.strip():
            return True
    return False


@dataclass(slots=True)
class RowCounts:
    """Counts while rows go by."""

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
    twins: DuplicateCounter = field(default_factory=DuplicateCounter)

    def row(self, conversation: Conversation, kept: int, reasons: list[str]) -> None:
        """Book one row: how many examples of it are kept, and why each of the others is not."""
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
        self.twins.add(conversation)
        self.empty_answers += has_empty_answer(conversation)

    def blank(self, rows: int, places: list[str]) -> None:
        """Book ``rows`` that are blank; ``places`` are those of the first."""
        if rows:
            self.rows += rows
            self.rows_aside[BLANK] += rows
            self.listed.setdefault(BLANK, []).extend(places[:_LISTED])

    def _list(self, reason: str, origin: Origin | None) -> None:
        places = self.listed.setdefault(reason, [])
        if len(places) < _LISTED:
            places.append(str(origin))


@dataclass(frozen=True, slots=True)
class DataReport:
    """What a preparation found; kept as JSON beside the examples and in the run's ``data.json``."""

    content: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the whole report."""
        return dict(self.content)

    def lines(self) -> list[str]:
        """Return the report for the terminal: sources, accounts, tokens, and what is worth a look."""
        rows, found, examples = self.content["rows"], self.content["found"], self.content["examples"]
        unit = "tokens" if "tokens" in self.content else "characters"
        amount = self.content[unit]
        lines = [_source_line(source) for source in self.content["sources"]]
        aside = sum(rows["set_aside"].values())
        lines.append(
            f"{_count(rows['read'], 'row')} read = {rows['trained']:,} trained + {aside:,} set aside"
            + (f" + {rows['faulty']:,} faulty" if rows["faulty"] else "")
        )
        lines += [f"  set aside: {n:,} {reason}" for reason, n in rows["set_aside"].items()]
        if examples["made"] != rows["read"] - rows["faulty"] - rows["set_aside"].get(BLANK, 0):
            lines.append(
                f"{_count(examples['made'], 'example')} made = {examples['kept']:,} kept + "
                f"{sum(examples['set_aside'].values()):,} set aside (each learned turn is one example)"
            )
        if amount["all"]:
            share = amount["supervised"] / amount["all"]
            lines.append(f"{amount['all']:,} {unit}, {amount['supervised']:,} of them learned ({share:.0%})")
        lines += [f"  {text}" for text in _found_lines(found, examples)]
        return lines


def _found_lines(found: Mapping[str, int], examples: Mapping[str, Any]) -> list[str]:
    lines = []
    if examples["cut"]:
        lines.append(
            f"{_count(examples['cut'], 'example')} cut; {found['supervised_tokens_lost_by_cut']:,} learned tokens lost"
        )
    elif found["over_long"]:
        lines.append(
            f"{_count(found['over_long'], 'example')} too long; cutting them would lose "
            f"{found['supervised_tokens_lost_by_cut']:,} learned tokens"
        )
    if found["exact_duplicates"]:
        lines.append(f"{_count(found['exact_duplicates'], 'exact copy', 'exact copies')} of an earlier row")
    if found["rows_with_contested_prompt"]:
        lines.append(
            f"{_count(found['rows_with_contested_prompt'], 'row')} with a prompt that another row answers differently"
        )
    if found["empty_answers"]:
        lines.append(f"{_count(found['empty_answers'], 'row')} with an empty answer")
    return lines


def make_report(
    accounts: RowCounts,
    sources: Iterable[Mapping[str, Any]],
    faulty: int,
    lengths: npt.NDArray[np.int32],
    supervised: npt.NDArray[np.int32],
    *,
    unit: str = "tokens",
) -> DataReport:
    """Close the accounts. ``lengths`` and ``supervised`` are those of every kept example, shape (examples,), in
    ``unit``: tokens, or characters where there is no tokenizer."""
    duplicates, contested = accounts.twins.count()
    return DataReport({
        "sources": list(sources),
        "rows": {"read": accounts.rows + faulty, "trained": accounts.trained,
                 "set_aside": dict(accounts.rows_aside), "faulty": faulty},
        "examples": {"made": accounts.made, "kept": accounts.kept, "set_aside": dict(accounts.examples_aside),
                     "cut": accounts.cut},
        unit: {"all": int(lengths.sum()), "supervised": int(supervised.sum()),
                   "per_example": _spread(lengths), "prompt_per_example": _spread(lengths - supervised),
                   "answer_per_example": _spread(supervised)},
        "found": {"exact_duplicates": duplicates, "rows_with_contested_prompt": contested,
                  "empty_answers": accounts.empty_answers, "over_long": accounts.too_long,
                  "supervised_tokens_lost_by_cut": accounts.lost_by_cut},
        "set_aside_rows": accounts.listed,
    })  # fmt: skip


def _spread(values: npt.NDArray[np.int32]) -> dict[str, float]:
    """Return mean and percentiles of ``values``."""
    if not len(values):
        return {}
    points = np.percentile(values, _PERCENTILES, method="nearest")
    return {"mean": round(float(values.mean()), 2),
            **{f"p{p}": int(value) for p, value in zip(_PERCENTILES, points, strict=True)}}  # fmt: skip


def _source_line(source: Mapping[str, Any]) -> str:
    how = [source["format"] or "unknown format", source["encoding"], source["compression"]]
    line = f"{shown_name(source['name'])}: {_count(source['rows'], 'row')} ({', '.join(part for part in how if part)})"
    if source["unused_fields"]:
        fields = sorted(source["unused_fields"].items())
        line += f"; fields not used: {', '.join(f'{shown_name(name)} ({n:,})' for name, n in fields[:_NAMED])}"
        line += f" and {len(fields) - _NAMED:,} more" if len(fields) > _NAMED else ""
    if nulls := source.get("null_fields_removed"):
        line += f"; null fields removed ({nulls:,})"
    return line + "".join(f"; {_count(n, 'row')} {remark}" for remark, n in source.get("remarks", {}).items())


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
