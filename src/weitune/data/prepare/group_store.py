"""Groups of answers on disk: their answers as examples (:mod:`.store`), and a safetensors file about the groups.

    answers       int8      how many of the examples, in order, are the group's
    liked         int8      whether the first of them is
    weight        float64   how much the group counts
    tokens        int32     its distinct tokens: those of the prompt once
    supervised    int32     tokens of its answers
    prompt        uint64    a hash of the prompt's text

Cost: 26 bytes a group beside its answers, all in memory.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from weitune.data.columns import ExampleColumns, Places
from weitune.data.partition import distinct_tokens
from weitune.data.preference.values import Group, Judged, Pair
from weitune.data.prepare.cache import EXAMPLES, GROUPS
from weitune.data.prepare.store import ExampleWriter, StoredExamples

_TYPES = {"answers": "b", "liked": "b", "weight": "d", "tokens": "i", "supervised": "i", "prompt": "Q"}
"""Columns, by the type of their values in an array."""


def prompt_key(row: Pair | Judged) -> int:
    """Return 64 bits of a hash of the text before the answers; rows with the same prompt have the same."""
    turns = [(turn.role, turn.content, turn.tool_calls) for turn in row.prompt.turns]
    digest = hashlib.sha256(repr((turns, row.prompt.tools)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


class GroupWriter:
    """Writes batches of groups into a folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / GROUPS
        self._examples = ExampleWriter(folder / EXAMPLES)
        self._columns: dict[str, array[Any]] = {name: array(kind) for name, kind in _TYPES.items()}

    def write(self, groups: Sequence[tuple[int, int, Group]]) -> None:
        """Append one batch of (number of its source, :func:`prompt_key` of its row, group)."""
        answers = [(source, answer) for source, _, group in groups for answer in group.answers]
        places = Places.of((source, answer.origin) for source, answer in answers)
        self._examples.write(ExampleColumns.of([answer for _, answer in answers]), places)
        for _, prompt, group in groups:
            sizes = (len(group.answers), group.liked[0], group.weight)
            row = (*sizes, distinct_tokens(group.answers), group.supervised, prompt)
            for column, value in zip(self._columns.values(), row, strict=True):
                column.append(value)

    def __enter__(self) -> GroupWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._examples.__exit__(kind, error, trace)
        if error is None:
            from safetensors.numpy import save

            self._path.write_bytes(save({name: np.asarray(values) for name, values in self._columns.items()}))


class StoredGroups:
    """Reads groups by number from a folder of :class:`GroupWriter`.

    Raises OSError, ValueError or pyarrow.ArrowException if a file is not complete.
    """

    def __init__(self, folder: Path, source_names: Iterable[str]) -> None:
        self.answers = StoredExamples(folder / EXAMPLES, source_names)
        """The answers of all groups, in order."""
        columns = _columns_in(folder / GROUPS)
        self._ends = np.cumsum(columns["answers"], dtype=np.int64)
        if len(self.answers) != (self._ends[-1] if len(self._ends) else 0):
            raise ValueError("groups and answers do not fit")
        self._liked, self._weights, self._prompts = columns["liked"], columns["weight"], columns["prompt"]
        self.lengths: npt.NDArray[np.int32] = columns["tokens"]
        """Tokens of every group, what its answers share once, (groups,)."""
        self.supervised: npt.NDArray[np.int32] = columns["supervised"]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Group:
        """Return group ``i``; raises IndexError if there is none."""
        if not 0 <= i < len(self):
            raise IndexError(f"group {i} of {len(self)}")
        answers = tuple(self.answers[k] for k in range(self._ends[i - 1] if i else 0, self._ends[i]))
        liked = bool(self._liked[i])
        return Group(answers, (liked, not liked)[: len(answers)], float(self._weights[i]))

    def prompt_keys(self) -> Iterator[bytes]:
        """Yield a key for the prompt of each group; equal keys mean equal prompts."""
        return (int(key).to_bytes(8, "big") for key in self._prompts)

    def digest(self) -> str:
        """Return the SHA-256 of all groups, in order, without where they were read. Cost: one pass over the file."""
        whole = hashlib.sha256(self.answers.digest().encode())
        for column in (self._ends, self._liked, self._weights):
            whole.update(column.tobytes())
        return whole.hexdigest()


def _columns_in(path: Path) -> dict[str, npt.NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        columns = load(path.read_bytes())
        return {name: columns[name] for name in _TYPES}
    except (SafetensorError, KeyError) as error:
        raise ValueError(str(error)) from None
