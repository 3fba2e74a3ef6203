"""Compare an export with base + adapter, and say where they first differ.

    tokens     the export's own template and tokenizer give the prompt that training gave
    answers    the same greedy tokens, or the first other one was within ``margin`` of being the likeliest
    logprobs   mean absolute difference over the tokens of the taught answers, at most ``mean_difference``
    stop       the export ends answers at every token at which the run does, and where the run's own answers end

Bounds belong to the number format; docs/export.md has what they were measured from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from weitune.errors import WeituneError
from weitune.export.verify.outputs import Outputs
from weitune.export.verify.prompts import VerificationPrompt, shortened


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much an export may differ, in natural logarithms of probabilities."""

    mean_difference: float
    margin: float


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: whether it holds, and what was found."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """All comparisons of one export."""

    engine: str
    prompts: int
    bounds: Bounds
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON."""
        return {"verdict": "passed" if self.passed else "failed", **asdict(self)}


class VerificationError(WeituneError):
    """An export does not say what base + adapter say; :attr:`verdict` has every check."""

    exit_code = 2

    def __init__(self, verdict: Verdict, where: str) -> None:
        failed = [f"{check.name}: {check.found}" for check in verdict.checks if not check.passed]
        super().__init__("export.compare.differs", checks="\n  ".join(failed), folder=where)
        self.verdict = verdict


def compare(
    probes: Sequence[VerificationPrompt],
    expected: Sequence[Outputs],
    found: Sequence[Outputs],
    bounds: Bounds,
    text_of: Callable[[int], str],
    running_on: Sequence[int] = (),
) -> tuple[Check, ...]:
    """Compare observations of base + adapter with those of an export.

    ``text_of`` shows a token; ``running_on`` are stop tokens of the run at which the export does not stop.
    """
    rows = list(zip(probes, expected, found, strict=True))
    return (
        _tokens(rows, text_of),
        _answers(rows, bounds, text_of),
        _logprobs(rows, bounds),
        _stops(rows, bounds, [f"{token} {text_of(token)!r}" for token in running_on]),
    )


_Row = tuple[VerificationPrompt, Outputs, Outputs]


def _tokens(rows: Sequence[_Row], text_of: Callable[[int], str]) -> Check:
    for number, (probe, expected, found) in enumerate(rows, 1):
        at = _parting(expected.prompt, found.prompt)
        if at is not None:
            told = _told(expected.prompt, found.prompt, at, text_of)
            return Check("tokens", False, f"{_named(number, probe)}: token {at + 1} of the prompt {told}")
    total = sum(len(expected.prompt) for _, expected, _ in rows)
    return Check("tokens", True, f"all {total:,} tokens of {len(rows)} prompts are the same")


def _answers(rows: Sequence[_Row], bounds: Bounds, text_of: Callable[[int], str]) -> Check:
    """Let answers part only where the two likeliest tokens were close."""
    parted = divergences([expected for _, expected, _ in rows], [found for _, _, found in rows])
    same = f"{len(rows) - len(parted)} of {len(rows)} are the same"
    if not parted:
        return Check("answers", True, same)
    margin, number, at = max((each.margin, each.number, each.at) for each in parted)
    probe, expected, found = rows[number]
    told = f"token {at + 1} of the answer {_told(expected.greedy, found.greedy, at, text_of)}"
    where = f"{_named(number + 1, probe)}: {told}, {margin:.4f} ahead of the second (bound {bounds.margin:g})"
    return Check("answers", margin <= bounds.margin, f"{same}; {where}")


def _logprobs(rows: Sequence[_Row], bounds: Bounds) -> Check:
    each = differences([expected for _, expected, _ in rows], [found for _, _, found in rows])
    mean = sum(difference for difference, _, _ in each) / len(each)
    largest, number, at = max(each)
    return Check(
        "logprobs",
        mean <= bounds.mean_difference,
        f"mean difference {mean:.2e} (bound {bounds.mean_difference:g}) over {len(each)} tokens; "
        f"the largest, {largest:.2e}, at token {at + 1} of answer {number + 1}",
    )


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where the greedy answers to probe ``number`` become different, and by how much the expected token led there."""

    number: int
    at: int
    margin: float


def divergences(expected: Sequence[Outputs], found: Sequence[Outputs]) -> list[Divergence]:
    """Return the first difference of each pair of greedy answers that differ."""
    pairs = enumerate(zip(expected, found, strict=True))
    places = [(number, _parting(a.greedy, b.greedy)) for number, (a, b) in pairs]
    # At the end of a shorter answer, the margin is that of the token that ended it.
    return [Divergence(number, at, expected[number].margins[at]) for number, at in places if at is not None]


def differences(expected: Sequence[Outputs], found: Sequence[Outputs]) -> list[tuple[float, int, int]]:
    """Return for every token of the taught answers how far its log-probabilities are apart, its probe and place."""
    return [
        (abs(a - b), number, at)
        for number, (one, other) in enumerate(zip(expected, found, strict=True))
        for at, (a, b) in enumerate(zip(one.logprobs, other.logprobs, strict=True))
    ]


def _stops(rows: Sequence[_Row], bounds: Bounds, running_on: Sequence[str]) -> Check:
    if running_on:
        return Check("stop", False, f"the export does not stop at {', '.join(running_on)}")
    ended = [
        (number, probe, expected, found)
        for number, (probe, expected, found) in enumerate(rows, 1)
        if expected.stopped and found.greedy[: len(expected.greedy)] == expected.greedy
    ]
    for number, probe, expected, found in ended:
        if found.greedy != expected.greedy and expected.margins[len(expected.greedy)] > bounds.margin:
            return Check("stop", False, f"{_named(number, probe)}: the answer goes on after its end")
    return Check("stop", True, f"at every stop token, and at the end of {len(ended)} answers")


def _parting(expected: Sequence[int], found: Sequence[int]) -> int | None:
    """Return where two sequences part; None if they are the same."""
    if expected == found:
        return None
    pairs = enumerate(zip(expected, found, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(expected), len(found)))


def _told(expected: Sequence[int], found: Sequence[int], at: int, text_of: Callable[[int], str]) -> str:
    def shown(tokens: Sequence[int]) -> str:
        return f"{tokens[at]} {text_of(tokens[at])!r}" if at < len(tokens) else "the end"

    return f"is {shown(expected)} in base + adapter and {shown(found)} in the export"


def _named(number: int, probe: VerificationPrompt) -> str:
    return f"prompt {number} ({shortened(probe.question)!r})"
