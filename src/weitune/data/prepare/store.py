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
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from weitune.data.columns import ExampleColumns, Places
from weitune.data.conversation import Example, Origin

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

    def write(self, examples: ExampleColumns, places: Places) -> None:
        """Append one batch of examples, which were read at ``places``."""
        spans: tuple[npt.NDArray[Any], ...] = (examples.starts, examples.stops, examples.weights)
        lists = [(examples.ends, examples.tokens), *((examples.span_ends, values) for values in spans)]
        numbers = (examples.weight, examples.supervised, *places)
        columns = [pa.ListArray.from_arrays(_column(ends), _column(values)) for ends, values in lists]
        columns += [_column(values) for values in numbers]
        self._writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))

    def __enter__(self) -> ExampleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._file.close()


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

        spans = (values("starts"), values("stops"), values("span_weights"), ends("starts"))
        self._examples = ExampleColumns(values("input_ids"), ends("input_ids"), *spans)
        self._places = Places(*map(column, ("source", "row", "line")))
        self.lengths = self._examples.lengths
        self.weights, self.supervised = column("weight"), column("supervised")

    def columns(self) -> tuple[Any, ...]:
        """Return what decides the examples: tokens, their number, spans, and their number."""
        examples = self._examples
        return examples.tokens, self.lengths, examples.starts, examples.stops, examples.weights, examples.spans

    def example(self, i: int, names: tuple[str, ...]) -> Example:
        source, row, line = (int(column[i]) for column in self._places)
        return self._examples.example(i, Origin(names[source], row, line or None))


def _column(values: npt.NDArray[Any]) -> Any:
    """Return an Arrow array with the memory of ``values``; ``pyarrow.array`` would import pandas, half a second."""
    return pa.Array.from_buffers(pa.type_for_alias(values.dtype.name), len(values), [None, pa.py_buffer(values)])


def _numbers(column: Any) -> Any:
    """Return a NumPy view of an Arrow array of numbers; its own ``to_numpy`` would import pandas too."""
    return np.frombuffer(
        column.buffers()[1], np.dtype(str(column.type)), len(column), column.offset * column.type.byte_width
    )


def _joined(parts: list[Any], dtype: Any) -> Any:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
