"""Examples on disk: one Arrow file, written in batches and memory-mapped, so that memory holds only what is read.

    input_ids          list<int32>     tokens of an example
    starts, stops      list<int32>     its learned spans
    span_weights       list<float64>
    weight, supervised float64, int32  the example's share of a step's normaliser, and how many tokens are learned
    source, row, line  int32, int64    where it was read (line 0: none)

Cost: 4 bytes a token on disk; opening reads only offsets and spans.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from weitune.data.conversation import Example, Origin, Span

_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("starts", pa.list_(pa.int32())),
        ("stops", pa.list_(pa.int32())),
        ("span_weights", pa.list_(pa.float64())),
        ("weight", pa.float64()),
        ("supervised", pa.int32()),
        ("source", pa.int32()),
        ("row", pa.int64()),
        ("line", pa.int64()),
    ]
)


class ExampleWriter:
    """Writes batches of examples to an Arrow file."""

    def __init__(self, path: Path) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, _SCHEMA)

    def write(self, examples: Sequence[tuple[int, Example]]) -> None:
        """Append one batch of (number of its source, example)."""
        tokens, token_ends, span_ends = array("i"), array("i", [0]), array("i", [0])
        starts, stops, span_weights = array("i"), array("i"), array("d")
        weights, supervised, sources, rows, lines = array("d"), array("i"), array("i"), array("q"), array("q")
        for source, example in examples:
            tokens.extend(example.input_ids)
            token_ends.append(len(tokens))
            weight, learned = 0.0, 0
            for start, stop, each in example.spans:
                starts.append(start)
                stops.append(stop)
                span_weights.append(each)
                weight += (stop - start) * each
                learned += stop - start
            span_ends.append(len(starts))
            weights.append(weight)
            supervised.append(learned)
            origin = example.origin
            sources.append(source)
            rows.append(origin.row if origin else 0)
            lines.append(origin.line or 0 if origin else 0)
        columns = [
            _lists(token_ends, tokens),
            *(_lists(span_ends, column) for column in (starts, stops, span_weights)),
            *(_column(column) for column in (weights, supervised, sources, rows, lines)),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))

    def __enter__(self) -> ExampleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._file.close()


def _lists(ends: array[Any], values: array[Any]) -> Any:
    return pa.ListArray.from_arrays(_column(ends), _column(values))


def _column(values: array[Any]) -> Any:
    """Return ``values`` as an Arrow array, without a copy."""
    return pa.array(np.frombuffer(values, dtype=np.dtype(values.typecode)))


class StoredExamples:
    """Reads examples by number from a file of :class:`ExampleWriter`.

    Raises OSError or pyarrow.ArrowException if the file is not complete.
    """

    def __init__(self, path: Path, source_names: Iterable[str]) -> None:
        self._names = tuple(source_names)
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            self._batches = [_Batch(reader.get_batch(i)) for i in range(reader.num_record_batches)]
        sizes = [len(batch.lengths) for batch in self._batches]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self.lengths = _joined([batch.lengths for batch in self._batches], np.int32)
        self.weights = _joined([batch.weights for batch in self._batches], np.float64)
        self.supervised = _joined([batch.supervised for batch in self._batches], np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Example:
        """Return example ``i``; raises IndexError if there is none."""
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        number = int(np.searchsorted(self._ends, i, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        return self._batches[number].example(i - before, self._names)

    def digest(self) -> str:
        """Return the SHA-256 of the tokens and spans of all examples, in order, without where they were read.

        Cost: one pass over the file.
        """
        whole = hashlib.sha256()
        for column in zip(*(batch.columns() for batch in self._batches), strict=True):
            digest = hashlib.sha256()  # one a column, so that it does not depend on the batches either
            for values in column:
                digest.update(values.tobytes())
            whole.update(digest.digest())
        return whole.hexdigest()


class _Batch:
    """NumPy views of one record batch."""

    def __init__(self, batch: Any) -> None:
        def column(name: str) -> Any:
            return _numbers(batch.column(name))

        def values(name: str) -> Any:
            return _numbers(batch.column(name).values)

        def ends(name: str) -> Any:
            return _numbers(batch.column(name).offsets)

        self._tokens, self._token_ends = values("input_ids"), ends("input_ids")
        self._starts, self._stops, self._weights = values("starts"), values("stops"), values("span_weights")
        self._span_ends = ends("starts")
        self._source, self._row, self._line = map(column, ("source", "row", "line"))
        self.lengths = np.diff(self._token_ends)
        self.weights, self.supervised = column("weight"), column("supervised")

    def columns(self) -> tuple[Any, ...]:
        """Return what decides the examples: tokens, their number, spans, and their number."""
        spans = np.diff(self._span_ends)
        return self._tokens, self.lengths, self._starts, self._stops, self._weights, spans

    def example(self, i: int, names: tuple[str, ...]) -> Example:
        tokens = self._tokens[self._token_ends[i] : self._token_ends[i + 1]].tolist()
        part = slice(self._span_ends[i], self._span_ends[i + 1])
        spans = zip(self._starts[part].tolist(), self._stops[part].tolist(), self._weights[part].tolist(), strict=True)
        origin = Origin(names[self._source[i]], int(self._row[i]), int(self._line[i]) or None)
        return Example(tuple(tokens), tuple(Span(*span) for span in spans), origin)


def _numbers(column: Any) -> Any:
    """Return a NumPy view of an Arrow array of numbers; its own ``to_numpy`` would import pandas, half a second."""
    return np.frombuffer(
        column.buffers()[1], np.dtype(str(column.type)), len(column), column.offset * column.type.byte_width
    )


def _joined(parts: list[Any], dtype: Any) -> Any:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
