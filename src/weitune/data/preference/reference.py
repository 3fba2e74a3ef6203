"""The log-probabilities of answers under the reference model: in memory, as a file, and joined with their groups.

The reference is the model before its first step. For every answer one number is kept, the sum of the log-probabilities
of its tokens. The bytes are a safetensors file with two arrays for each part of the data:

    PART.sums      (answers,) float64, group by group
    PART.counts    (groups,) int32: answers of each group

The array ``numbers``, (groups,) int32, is there if the run does not learn from every group: it tells which ones
``trained`` is about.

The parts are ``trained`` and, where there are such groups, ``held`` out ones and :mod:`mismatched <.mismatched>` ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from weitune.data.preference.values import Group

TRAINED, HELD, MISMATCHED, MISMATCHED_HELD = "trained", "held", "mismatched", "mismatched_held"
"""The parts of a reference."""
_PARTS = (TRAINED, HELD, MISMATCHED, MISMATCHED_HELD)
_NUMBERS, _SEAL = "numbers", "sha256"
Arrays = dict[str, npt.NDArray[Any]]
"""The arrays of a file, by name."""


class GroupSet(Protocol):
    """Groups by number, in memory or not."""

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of every group, (groups,)."""

    @property
    def supervised(self) -> npt.NDArray[np.int32]:
        """Tokens of every group's answers, (groups,)."""

    def __len__(self) -> int:
        """Return how many groups there are."""

    def __getitem__(self, i: int, /) -> Group:
        """Return group ``i``."""

    def digest(self) -> str:
        """Return the SHA-256 of their contents in order."""


@dataclass(frozen=True, slots=True, eq=False)
class AnswerSums:
    """The summed log-probability of every answer of some groups, in nats."""

    sums: npt.NDArray[np.float64]
    """(answers,) group by group"""
    counts: npt.NDArray[np.int32]
    """(groups,) answers of each group"""
    _ends: npt.NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError if the arrays do not fit each other."""
        ends = np.cumsum(self.counts, dtype=np.int64)
        if len(self.sums) != (ends[-1] if len(ends) else 0) or (len(ends) and self.counts.min() < 1):
            raise ValueError("answers and groups do not fit")
        object.__setattr__(self, "_ends", ends)

    @classmethod
    def of_groups(cls, groups: Sequence[Group], sums: npt.NDArray[np.float64]) -> AnswerSums:
        return cls(sums, np.asarray([len(group.answers) for group in groups], np.int32))

    @classmethod
    def of(cls, sums: Sequence[Sequence[float]]) -> AnswerSums:
        """Return the ``sums`` of each group's answers."""
        flat = np.asarray([each for group in sums for each in group], np.float64)
        return cls(flat, np.asarray([len(group) for group in sums], np.int32))

    @classmethod
    def joined(cls, parts: Sequence[AnswerSums]) -> AnswerSums:
        """Return the sums of several sets of groups, one after the other."""
        return cls(np.concatenate([part.sums for part in parts]), np.concatenate([part.counts for part in parts]))

    def only(self, chosen: npt.NDArray[np.bool_]) -> AnswerSums:
        """Return the sums of the ``chosen`` (groups,) groups."""
        return AnswerSums(self.sums[np.repeat(chosen, self.counts)], self.counts[chosen])

    def __len__(self) -> int:
        """Return how many groups there are."""
        return len(self.counts)

    def __getitem__(self, group: int) -> tuple[float, ...]:
        """Return the numbers of a group's answers."""
        end = int(self._ends[group])
        return tuple(self.sums[end - int(self.counts[group]) : end].tolist())


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """All that a run needs to know of its reference model."""

    parts: Mapping[str, AnswerSums]
    numbers: npt.NDArray[np.int32] | None = None
    """(groups,) ascending: which groups ``trained`` is about; None: all, in order."""

    def __post_init__(self) -> None:
        """Raise ValueError if there are numbers of more or fewer groups than there are."""
        numbers = self.numbers
        if numbers is not None and (len(numbers) != len(self.parts[TRAINED]) or (np.diff(numbers) < 1).any()):
            raise ValueError("the numbers of groups do not fit")

    @property
    def is_finite(self) -> bool:
        """Whether every log-probability is a finite number; only then is it of use."""
        return all(np.isfinite(part.sums).all() for part in self.parts.values())

    def fits(self, groups: int) -> bool:
        """Return whether it may be that of a run that has so many ``groups``."""
        if self.numbers is None:
            return len(self.parts[TRAINED]) == groups
        return not len(self.numbers) or int(self.numbers[-1]) < groups

    def to_bytes(self) -> bytes:
        """Return a safetensors file."""
        return _saved(self._arrays())

    @classmethod
    def from_bytes(cls, contents: bytes) -> Reference:
        """Return the reference in a file of :meth:`to_bytes`. Raises ValueError if it is damaged."""
        return cls._of(_loaded(contents))

    def to_sealed_bytes(self) -> bytes:
        """Return a safetensors file that has its :meth:`digest` in it, as the array ``sha256``."""
        return _saved({**self._arrays(), _SEAL: np.frombuffer(bytes.fromhex(self.digest()), np.uint8)})

    @classmethod
    def from_sealed_bytes(cls, contents: bytes) -> Reference:
        """Return the reference in a file of :meth:`to_sealed_bytes`. Raises ValueError if a number has changed."""
        arrays = _loaded(contents)
        reference = cls._of(arrays)
        if _SEAL not in arrays or arrays[_SEAL].tobytes().hex() != reference.digest():
            raise ValueError("the digest is that of other numbers")
        return reference

    def digest(self) -> str:
        """Return the SHA-256 of its file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def _arrays(self) -> Arrays:
        arrays: Arrays = {}
        for name, part in self.parts.items():
            arrays[f"{name}.sums"], arrays[f"{name}.counts"] = part.sums, part.counts
        return arrays if self.numbers is None else {**arrays, _NUMBERS: self.numbers}

    @classmethod
    def _of(cls, arrays: Arrays) -> Reference:
        names = [name for name in _PARTS if f"{name}.sums" in arrays]
        try:
            parts = {name: AnswerSums(arrays[f"{name}.sums"], arrays[f"{name}.counts"]) for name in names}
            reference = cls(parts, arrays.get(_NUMBERS))
        except KeyError as error:
            raise ValueError(str(error)) from None
        if not reference.is_finite:
            raise ValueError("a log-probability is not finite")
        return reference


def _saved(arrays: Arrays) -> bytes:
    from safetensors.numpy import save

    contents: bytes = save(arrays)
    return contents


def _loaded(contents: bytes) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: Arrays = load(contents)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    return arrays


class ReferencedGroups:
    """The groups of a set, each with its reference: numbers that are not finite where it was not measured."""

    def __init__(self, groups: GroupSet, reference: AnswerSums, numbers: npt.NDArray[np.int32] | None = None) -> None:
        """Join both; ``numbers`` are those of the groups that ``reference`` is about, if not of all.

        Raises ValueError if they have different numbers of groups.
        """
        if len(groups if numbers is None else numbers) != len(reference):
            raise ValueError("the reference is that of other groups")
        self._groups, self._reference = groups, reference
        self._places = None if numbers is None else {int(number): place for place, number in enumerate(numbers)}
        self.lengths: npt.NDArray[np.int32] = groups.lengths
        self.supervised: npt.NDArray[np.int32] = groups.supervised

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, i: int) -> Group:
        group = self._groups[i]
        place = i if self._places is None else self._places.get(i)
        unknown = (math.nan,) * len(group.answers)
        return replace(group, reference=unknown if place is None else self._reference[place])

    def digest(self) -> str:
        """Return the digest of the groups; that of the reference is its own."""
        return self._groups.digest()
