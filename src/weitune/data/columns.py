"""Many examples as columns, which cost no object an example and nothing a token in Python.

    Example((5, 1, 2, 9), [Span(1, 3)])       tokens   5 1 2 9 5 7       starts      1 1      ends       0 4 6
    Example((5, 7),       [Span(1, 2)])                                  stops       3 2      span_ends  0 1 2
                                                                         weights     1 1

E examples, T tokens and S spans in all of them. Integers are int32, as on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from weitune.data.conversation import Example, Origin, Span

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class ExampleColumns:
    """Examples one after another, without their origins; spans count from the beginning of their example."""

    tokens: Ints
    """(T,)"""
    ends: Ints
    """Where each example ends among the tokens, after a 0, (E + 1,)."""
    starts: Ints
    """(S,)"""
    stops: Ints
    """(S,)"""
    weights: Floats
    """(S,)"""
    span_ends: Ints
    """Where the spans of each example end, after a 0, (E + 1,)."""

    def __len__(self) -> int:
        return len(self.ends) - 1

    @classmethod
    def of(cls, examples: Sequence[Example]) -> ExampleColumns:
        """Return the columns of ``examples``."""
        spans = [span for example in examples for span in example.spans]
        starts, stops, weights = transposed(spans, 3)
        return cls(
            np.array(list(chain.from_iterable(example.input_ids for example in examples)), np.int32),
            ends_of([len(example.input_ids) for example in examples]),
            np.array(starts, np.int32),
            np.array(stops, np.int32),
            np.array(weights, np.float64),
            ends_of([len(example.spans) for example in examples]),
        )

    @classmethod
    def joined(cls, parts: Sequence[ExampleColumns]) -> ExampleColumns:
        """Return the examples of all ``parts``, one of which may be all there is."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.tokens for part in parts]),
            ends_of(np.concatenate([part.lengths for part in parts])),
            np.concatenate([part.starts for part in parts]),
            np.concatenate([part.stops for part in parts]),
            np.concatenate([part.weights for part in parts]),
            ends_of(np.concatenate([part.spans for part in parts])),
        )

    def part(self, start: int, stop: int) -> ExampleColumns:
        """Return examples ``start`` to ``stop`` (exclusive)."""
        ends, span_ends = self.ends[start : stop + 1], self.span_ends[start : stop + 1]
        spans = slice(span_ends[0], span_ends[-1])
        return ExampleColumns(
            self.tokens[ends[0] : ends[-1]],
            ends - ends[0],
            self.starts[spans],
            self.stops[spans],
            self.weights[spans],
            span_ends - span_ends[0],
        )

    def weighted(self, factors: Floats) -> ExampleColumns:
        """Return the examples with weights multiplied by ``factors``, (E,), and without spans that weigh nothing."""
        example_of = np.repeat(np.arange(len(self)), self.spans)
        weights = self.weights * factors[example_of]
        kept = weights != 0
        span_ends = ends_of(np.bincount(example_of[kept], minlength=len(self)))
        return ExampleColumns(self.tokens, self.ends, self.starts[kept], self.stops[kept], weights[kept], span_ends)

    def example(self, i: int, origin: Origin | None = None) -> Example:
        """Return example ``i``, which was read at ``origin``."""
        tokens = self.tokens[self.ends[i] : self.ends[i + 1]].tolist()
        part = slice(self.span_ends[i], self.span_ends[i + 1])
        spans = zip(self.starts[part].tolist(), self.stops[part].tolist(), self.weights[part].tolist(), strict=True)
        return Example(tuple(tokens), tuple(Span(*span) for span in spans), origin)

    @property
    def lengths(self) -> Ints:
        """Tokens of each example, (E,)."""
        return np.diff(self.ends)

    @property
    def spans(self) -> Ints:
        """Spans of each example, (E,)."""
        return np.diff(self.span_ends)

    @property
    def supervised(self) -> Ints:
        """Learned tokens of each example, (E,)."""
        ends = ends_of(self.stops - self.starts)
        return ends[self.span_ends[1:]] - ends[self.span_ends[:-1]]

    @property
    def weight(self) -> Floats:
        """The weight of each example: the sum of those of its tokens, (E,)."""
        of_spans = (self.stops - self.starts) * self.weights
        weights: Floats = np.bincount(np.repeat(np.arange(len(self)), self.spans), of_spans, len(self)).astype(float)
        return weights


class Places(NamedTuple):
    """Where examples were read: number of the source, row, and line (0: none), each (E,)."""

    sources: Ints
    rows: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]

    @classmethod
    def of(cls, places: Iterable[tuple[int, Origin | None]]) -> Places:
        """Return the columns of pairs of a source's number and an origin."""
        known = [(source, *(origin[1:] if origin else (0, None))) for source, origin in places]
        sources, rows, lines = transposed(known, 3)
        numbers = [line or 0 for line in lines]
        return cls(np.array(sources, np.int32), np.array(rows, np.int64), np.array(numbers, np.int64))

    def repeated(self, counts: npt.NDArray[Any]) -> Places:
        """Return each place as often as ``counts`` says."""
        sources, rows, lines = self
        return Places(np.repeat(sources, counts), np.repeat(rows, counts), np.repeat(lines, counts))


def transposed(rows: Sequence[tuple[Any, ...]], columns: int) -> Sequence[Sequence[Any]]:
    """Return the ``columns`` of ``rows``, which may be none."""
    return list(zip(*rows, strict=True)) or [()] * columns


def ends_of(sizes: Sequence[int] | npt.NDArray[Any]) -> Ints:
    """Return where parts of these ``sizes`` end that lie one after another, after a 0."""
    ends = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(sizes, dtype=np.int32, out=ends[1:])
    return ends
