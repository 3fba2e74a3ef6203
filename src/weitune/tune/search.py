"""Which settings are tried, for how long: successive halving (Jamieson and Talwalkar, arXiv 1502.07943).

    rung 1   6 candidates, each for a sixth of the rung's steps
    rung 2   the best 3, for twice as many steps each
    rung 3   the best 2 of these, for three times as many as at first

If the best rate is the highest or the lowest that any rung tried, the next has one beyond it as its last candidate.
Every rung has the same number of steps. A trial is the whole run in small: a fresh adapter, a part of the rows, each of
which is learned as often as in the whole run, and the candidate's own whole schedule, which falls to 0. A trial on all
rows, each learned once, would like rates at which the whole run overfits. A rate is that of the whole run; a trial gets
more, as far as short runs need more (:mod:`weitune.recipe.first_rate`). Everything here is a pure function of the
recipe and of the losses so far.

Rates: the candidates stand around the first rate, a factor of two apart. Rates matter more than variants of LoRA
(arXiv 2602.04998).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from weitune.data.schedule import permutation
from weitune.recipe.first_rate import more_for_short
from weitune.recipe.schema import Recipe

ALSO = ("batch_size", "r", "epochs")
"""What can be tried besides the learning rate."""
_RUNGS = ((6, 3, 2), (5, 2), (4, 2), (3,), (2,))
"""Numbers of candidates in each rung, the most first."""
_EVALUATIONS, _PATIENCE = 6, 2
"""How often at least the run is evaluated, and how many evaluations in a row may bring no lower loss."""
FEWEST_STEPS = 6
"""Steps of the shortest trial that is worth making."""
_AROUND = (0, -1, 1, -2, 2, -3)
"""Powers of two around the guess, in the order in which they are taken."""
_TIE = 0.005
"""Losses (nats) that are so near count as equal; then the lower rate is taken, which forgets less."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings to try."""

    learning_rate: float
    """of the whole run"""
    batch_size: int
    epochs: int
    r: int | None = None
    """None where the whole model is trained."""

    @classmethod
    def of(cls, recipe: Recipe) -> Candidate:
        """Return the recipe's own settings."""
        train = recipe.train
        return cls(train.rate, train.batch_size, train.epochs, recipe.adapter.r if recipe.adapter else None)

    def applied(self, recipe: Recipe) -> Recipe:
        """Return ``recipe`` with these settings."""
        train = {"learning_rate": self.learning_rate, "batch_size": self.batch_size, "epochs": self.epochs}
        changed: dict[str, Any] = {"train": recipe.train.model_copy(update=train)}
        if recipe.adapter is not None:
            changed["lora"] = recipe.adapter.model_copy(update={"r": self.r})
        return recipe.model_copy(update=changed)

    def steps(self, examples: int, recipe: Recipe) -> int:
        """Return the steps of a whole run over ``examples`` with these settings."""
        whole = -(-examples // self.batch_size) * self.epochs
        most = recipe.train.max_steps
        return whole if most is None else min(whole, most)


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate that trains for some steps; ``rung`` counts from 1."""

    rung: int
    candidate: Candidate
    steps: int
    rows: int
    """of the data, which are learned as often as all are in the whole run"""
    rate: float
    """the learning rate of so short a run"""

    def applied(self, recipe: Recipe) -> Recipe:
        """Return ``recipe`` with these settings."""
        return replace(self.candidate, learning_rate=self.rate).applied(recipe)


@dataclass(frozen=True, slots=True)
class Search:
    """The trials of a recipe."""

    recipe: Recipe
    examples: int
    guess: float
    """learning rate to try first"""
    also: Sequence[str] = ()
    budget: float = 1.0
    """steps of all trials, as a multiple of those of the recipe's own run"""

    @property
    def rungs(self) -> Sequence[int]:
        """The number of candidates in each rung."""
        cost = self._budget
        return next((sizes for sizes in _RUNGS if cost / len(sizes) / sizes[0] >= FEWEST_STEPS), _RUNGS[-1])

    @property
    def _budget(self) -> float:
        return self.budget * self._cost(Candidate.of(self.recipe))

    def _cost(self, candidate: Candidate) -> float:
        """Return the steps of a whole run of ``candidate``, counted in batches of the recipe's size."""
        return candidate.steps(self.examples, self.recipe) * candidate.batch_size / self.recipe.train.batch_size

    def first(self) -> list[Trial]:
        """Return the trials of the first rung."""
        return self._trials(1, self._candidates()[: self.rungs[0]])

    def after(self, past: Sequence[Mapping[Candidate, float]]) -> list[Trial]:
        """Return the trials that follow the rungs whose candidates had the losses in ``past``; none after the last."""
        rung = len(past)
        if rung == len(self.rungs):
            return []
        tried = {candidate.learning_rate for losses in past for candidate in losses}
        return self._trials(rung + 1, self._going_on(ranked(past[-1]), tried, self.rungs[rung]))

    def found(self, best: Candidate) -> Recipe:
        """Return the recipe with the settings of ``best``, which ends when its held-out loss gets no better.

        Trials on a part of the rows cannot tell when the whole run begins to overfit; the run itself can.
        """
        recipe, steps = best.applied(self.recipe), best.steps(self.examples, self.recipe)
        train = recipe.train
        often = min(train.evaluate_every, -(-steps // _EVALUATIONS))
        patience = _PATIENCE if train.patience is None else train.patience
        watched = train.model_copy(update={"evaluate_every": often, "patience": patience})
        return recipe.model_copy(update={"train": watched})

    def _going_on(self, candidates: Sequence[Candidate], rates: Collection[float], count: int) -> list[Candidate]:
        """Return the best ``count``; one beyond the best is the last, if that is at an end of ``rates``.

        What an earlier rung has dropped is not tried again in place of the second best.
        """
        best = candidates[0]
        going_on = list(candidates[:count])
        if count > 1 and best.learning_rate in {min(rates), max(rates)}:
            beyond = best.learning_rate * (2.0 if best.learning_rate == max(rates) else 0.5)
            going_on[-1] = replace(best, learning_rate=_rounded(beyond))
        return going_on

    def _trials(self, rung: int, candidates: Sequence[Candidate]) -> list[Trial]:
        """Divide the rung's steps so that each candidate makes the same part of its own whole run."""
        part = self._budget / len(self.rungs) / sum(map(self._cost, candidates))
        return [self._trial(rung, each, part) for each in candidates]

    def _trial(self, rung: int, candidate: Candidate, part: float) -> Trial:
        whole = candidate.steps(self.examples, self.recipe)
        steps = min(whole, max(1, round(part * whole)))
        rows = min(self.examples, max(candidate.batch_size, round(self.examples * steps / whole)))
        more = 1.0 if candidate.r is None else more_for_short(steps) / more_for_short(whole)
        return Trial(rung, candidate, steps, rows, _rounded(candidate.learning_rate * more))

    def _candidates(self) -> list[Candidate]:
        """Return candidates, the most promising first: rates around the guess, with the recipe's other settings."""
        own = Candidate.of(self.recipe)
        rates = [self.guess * 2.0**power for power in _AROUND]
        others = list(self._others(own))
        drawn = permutation(len(others), self.recipe.train.seed, 0).tolist() if others else []
        candidates = [replace(own, learning_rate=_rounded(rate)) for rate in rates]
        for at in range(len(candidates)):
            if others and at % 2:  # every other rate comes with other settings
                changed = others[drawn[at // 2 % len(drawn)]]
                candidates[at] = replace(candidates[at], **changed)
        return candidates

    def _others(self, own: Candidate) -> Iterator[dict[str, int]]:
        """Yield every other combination of the settings that are to be tried too."""
        values = {name: _near(getattr(own, name)) for name in self.also if getattr(own, name) is not None}
        for chosen in product(*values.values()):
            changed = dict(zip(values, chosen, strict=True))
            if changed and any(getattr(own, name) != value for name, value in changed.items()):
                yield changed


def epochs_cut_off(recipe: Recipe, examples: int, also: Sequence[str]) -> bool:
    """Return whether ``train.max_steps`` ends every candidate before its epochs do, which then make no difference."""
    own, most = Candidate.of(recipe), recipe.train.max_steps
    fewest = min(_near(own.epochs))
    largest = max(_near(own.batch_size)) if "batch_size" in also else own.batch_size
    return most is not None and -(-examples // largest) * fewest >= most


def ranked(losses: Mapping[Candidate, float]) -> list[Candidate]:
    """Return the candidates, the best first: by loss and, of those that are as good as the best, by rate."""
    finite = {each: loss for each, loss in losses.items() if math.isfinite(loss)}
    lowest = min(finite.values(), default=math.inf)
    good = sorted((each for each, loss in finite.items() if loss <= lowest + _TIE), key=lambda c: c.learning_rate)
    rest = sorted(finite.keys() - good, key=finite.__getitem__)
    return [*good, *rest, *(each for each in losses if each not in finite)]


def _near(value: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys((value, max(1, value // 2), 2 * value)))


def _rounded(rate: float) -> float:
    """Return ``rate`` with two digits, as a person would write it."""
    return float(f"{rate:.1e}")
