"""Kept examples in memory, as bytes for a run's folder, and joined with the run's own examples.

The bytes are a safetensors file:

    tokens       (all tokens,) int32, with lengths (K,)
    starts       (K,) int32: from here to the end, an example's tokens are learned
    choices      (learned tokens, C) int32, and shares (learned tokens, C) float32: what is predicted in place of each,
                 only if the examples have alternatives
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from weitune.data.conversation import Alternatives, Example, Span
from weitune.data.preference.values import Item
from weitune.data.prepare.holdout import ItemSet


class Softened(NamedTuple):
    """Alternatives to the learned tokens of some examples, M in all."""

    choices: npt.NDArray[np.int32]
    """(M, C) tokens"""
    shares: npt.NDArray[np.float32]
    """(M, C) their probabilities"""


class KeptExamples:
    """Examples whose last part, from one token to the end, is learned; held as the arrays of their file."""

    def __init__(self, examples: Sequence[Example], softened: Softened | None = None) -> None:
        """Hold ``examples``, perhaps with probabilities in place of their learned tokens.

        Raises ValueError if one of them learns anything but its end.
        """
        for example in examples:
            if len(example.spans) != 1 or example.spans[0].stop != len(example.input_ids):
                raise ValueError("a kept example learns its end, and nothing else")
        arrays = {
            "tokens": np.asarray([token for example in examples for token in example.input_ids], np.int32),
            "lengths": np.asarray([len(example.input_ids) for example in examples], np.int32),
            "starts": np.asarray([example.spans[0].start for example in examples], np.int32),
        }
        self._hold(arrays if softened is None else {**arrays, **softened._asdict()})

    def _hold(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Hold the arrays of a file. Raises ValueError or KeyError if they do not fit."""
        self._arrays = arrays
        self.lengths: npt.NDArray[np.int32] = arrays["lengths"]
        self.supervised: npt.NDArray[np.int32] = self.lengths - arrays["starts"]
        if self.lengths.sum() != len(arrays["tokens"]) or min((*self.supervised, *arrays["starts"]), default=1) < 1:
            raise ValueError("lengths and tokens do not fit")
        if "choices" in arrays and not len(arrays["choices"]) == len(arrays["shares"]) == self.supervised.sum():
            raise ValueError("alternatives and tokens do not fit")
        self._first = np.cumsum([0, *self.lengths]).tolist()
        self._learned = np.cumsum([0, *self.supervised]).tolist()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Example:
        tokens = self._arrays["tokens"][self._first[i] : self._first[i + 1]].tolist()
        span = Span(int(self._arrays["starts"][i]), len(tokens))
        return Example(tuple(tokens), (span,), alternatives=self._alternatives(slice(*self._learned[i : i + 2])))

    def _alternatives(self, learned: slice) -> tuple[Alternatives, ...]:
        if "choices" not in self._arrays:
            return ()
        choices, shares = (self._arrays[name][learned].tolist() for name in ("choices", "shares"))
        return tuple(tuple(zip(*both, strict=True)) for both in zip(choices, shares, strict=True))

    def digest(self) -> str:
        """Return the SHA-256 of their contents in order."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return a safetensors file of the examples."""
        from safetensors.numpy import save

        contents: bytes = save(self._arrays)
        return contents

    @classmethod
    def from_bytes(cls, contents: bytes) -> KeptExamples:
        """Return the examples of a file of :meth:`to_bytes`. Raises ValueError if it is damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        read = cls([])
        try:
            read._hold(load(contents))
        except (SafetensorError, KeyError) as error:
            raise ValueError(str(error)) from None
        return read


class JoinedExamples:
    """A run's own examples, and after them the kept ones."""

    def __init__(self, own: ItemSet[Item], kept: KeptExamples) -> None:
        self._own, self._kept = own, kept
        self.lengths: npt.NDArray[np.int32] = np.concatenate([own.lengths, kept.lengths])
        self.supervised: npt.NDArray[np.int32] = np.concatenate([own.supervised, kept.supervised])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Item:
        return self._own[i] if i < len(self._own) else self._kept[i - len(self._own)]

    def digest(self) -> str:
        """Return a SHA-256 of both digests."""
        return hashlib.sha256(f"{self._own.digest()} {self._kept.digest()}".encode()).hexdigest()
