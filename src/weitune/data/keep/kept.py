"""Kept examples in memory, as bytes for a run's folder, and joined with the run's own examples.

The bytes are a safetensors file:

    tokens       (all tokens,) int32, with lengths (K,)
    starts       (K,) int32: from here to the end, an example's tokens are learned
    choices      (learned tokens, C) int32, and shares (learned tokens, C) float64: what is predicted in place of each,
                 only if the examples have alternatives
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

from weitune.data.conversation import Alternatives, Example, Span
from weitune.data.preference.values import Item
from weitune.data.prepare.holdout import ItemSet


class KeptExamples:
    """Examples whose last part, from one token to the end, is learned."""

    def __init__(self, examples: Sequence[Example]) -> None:
        """Hold ``examples``. Raises ValueError if one of them learns anything but its end."""
        for example in examples:
            if len(example.spans) != 1 or example.spans[0].stop != len(example.input_ids):
                raise ValueError("a kept example learns its end, and nothing else")
        self._examples = list(examples)
        self.lengths: npt.NDArray[np.int32] = np.asarray([len(e.input_ids) for e in examples], np.int32)
        self.supervised: npt.NDArray[np.int32] = np.asarray([e.supervised for e in examples], np.int32)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, i: int) -> Example:
        return self._examples[i]

    def digest(self) -> str:
        """Return the SHA-256 of their contents in order."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return a safetensors file of the examples."""
        from safetensors.numpy import save

        tokens = [token for example in self._examples for token in example.input_ids]
        starts = [example.spans[0].start for example in self._examples]
        arrays = {
            "tokens": np.asarray(tokens, np.int32),
            "lengths": self.lengths,
            "starts": np.asarray(starts, np.int32),
        }
        alternatives = [each for example in self._examples for each in example.alternatives]
        if alternatives:
            arrays["choices"] = np.asarray([[token for token, _ in each] for each in alternatives], np.int32)
            arrays["shares"] = np.asarray([[share for _, share in each] for each in alternatives], np.float64)
        contents: bytes = save(arrays)
        return contents

    @classmethod
    def from_bytes(cls, contents: bytes) -> KeptExamples:
        """Return the examples of a file of :meth:`to_bytes`. Raises ValueError if it is damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(contents)
            tokens, lengths, starts = (arrays[name].tolist() for name in ("tokens", "lengths", "starts"))
            learned = [length - start for length, start in zip(lengths, starts, strict=True)]
            alternatives = _alternatives(arrays, sum(learned))
        except (SafetensorError, KeyError) as error:
            raise ValueError(str(error)) from None
        if sum(lengths) != len(tokens) or any(each < 1 for each in (*learned, *starts)):
            raise ValueError("lengths and tokens do not fit")
        ends = pairwise(accumulate(lengths, initial=0))
        choices = pairwise(accumulate(learned, initial=0))
        return cls(
            [
                Example(tuple(tokens[a:b]), (Span(start, b - a),), alternatives=tuple(alternatives[c:d]))
                for (a, b), (c, d), start in zip(ends, choices, starts, strict=True)
            ]
        )


def _alternatives(arrays: dict[str, npt.NDArray[np.float64]], learned: int) -> list[Alternatives]:
    if "choices" not in arrays:
        return []
    choices, shares = arrays["choices"].tolist(), arrays["shares"].tolist()
    if len(choices) != learned:
        raise ValueError("alternatives and tokens do not fit")
    return [tuple(zip(tokens, each, strict=True)) for tokens, each in zip(choices, shares, strict=True)]


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
