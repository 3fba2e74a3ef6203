"""Compare the outputs of an export with those of base + adapter, and report where they first differ.

    tokens     the export's own template and tokenizer give the prompt that training gave
    answers    the same greedy tokens; where they diverge, base + adapter's token led by at most ``margin``
    logprobs   mean absolute difference over the tokens of the taught answers, at most ``mean_difference``
    stop       the export ends answers at every stop token of the run, and where the run's own answers end
    perplexity on dialogues that the run did not learn, at most by ``perplexity`` higher, as a share

The bounds depend on the number format; docs/export.md has the measurements behind them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from weitune.errors import WeituneError
from weitune.export.verify.outputs import Outputs
from weitune.export.verify.prompts import ENOUGH_TOKENS, VerificationPrompt
from weitune.messages import joined, say


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much an export may differ: the first two in natural logarithms of probabilities."""

    mean_difference: float
    margin: float
    perplexity: float
    """By what share of it the perplexity may rise, over at least :data:`.ENOUGH_TOKENS` tokens."""

    def perplexity_over(self, tokens: int) -> float:
        """Return by what share a perplexity over ``tokens`` may rise: if they are few, as far as the mean differs."""
        return self.perplexity if tokens >= ENOUGH_TOKENS else math.expm1(self.mean_difference)


@dataclass(frozen=True, slots=True)
class Perplexity:
    """The perplexity of answers that the run did not learn, from base + adapter and from the export."""

    rows: int
    tokens: int
    of_run: bool
    """Whether the answers are the run's validation data; if not, they are plain ones to general questions."""
    expected: float
    actual: float

    @classmethod
    def of(cls, expected: Sequence[Sequence[float]], actual: Sequence[Sequence[float]], *, of_run: bool) -> Perplexity:
        """Return it from the log-probabilities of the tokens of each answer."""
        tokens = sum(map(len, expected))
        perplexities = (math.exp(-sum(map(math.fsum, each)) / tokens) for each in (expected, actual))
        return cls(len(expected), tokens, of_run, *perplexities)

    @property
    def rise(self) -> float:
        """How much higher that of the export is, as a share; negative if it is lower."""
        return self.actual / self.expected - 1

    def check(self, bounds: Bounds) -> Check:
        bound = bounds.perplexity_over(self.tokens)
        found = say(
            "export.compare.perplexity" if self.of_run else "export.compare.perplexity_of_general",
            actual=self.actual,
            expected=self.expected,
            rows=self.rows,
            tokens=self.tokens,
            change=self.rise,
            bound=bound,
        )
        return Check("perplexity", self.rise <= bound, found)


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison and its result. verification.json has the fields by their names."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """All checks of one export."""

    engine: str
    prompts: int
    bounds: Bounds
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    perplexity: Perplexity | None = None
    """None if the run's framing takes no dialogue that it did not learn."""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {"verdict": "passed" if self.passed else "failed", **asdict(self)}


class VerificationError(WeituneError):
    """An export does not answer as base + adapter does; :attr:`verdict` has every check."""

    exit_code = 2

    def __init__(self, verdict: Verdict, folder: str) -> None:
        failed = [joined(": ", [check.name, check.found]) for check in verdict.checks if not check.passed]
        super().__init__("export.compare.export_differs", checks=joined("\n  ", failed), folder=folder)
        self.verdict = verdict


def compare(
    prompts: Sequence[VerificationPrompt],
    expected: Sequence[Outputs],
    actual: Sequence[Outputs],
    bounds: Bounds,
    text_of: Callable[[int], str],
    ignored_stops: Sequence[int] = (),
    *,
    framed: bool = True,
) -> tuple[Check, ...]:
    """Compare the outputs of base + adapter, ``expected``, with those of an export, ``actual``.

    ``text_of`` shows a token; ``ignored_stops`` are stop tokens of the run at which the export does not stop. An export
    that is not ``framed`` has no template and no tokenizer, so there are no prompts of its own.
    """
    rows = list(zip(prompts, expected, actual, strict=True))
    return (
        *([_tokens(rows, text_of)] if framed else []),
        _answers(rows, bounds, text_of),
        _logprobs(rows, bounds),
        _stops(rows, bounds, [f"{token} {text_of(token)!r}" for token in ignored_stops]),
    )


_Row = tuple[VerificationPrompt, Outputs, Outputs]


def _tokens(rows: Sequence[_Row], text_of: Callable[[int], str]) -> Check:
    for number, (prompt, expected, actual) in enumerate(rows, 1):
        at = _first_difference(expected.prompt_tokens, actual.prompt_tokens)
        if at is not None:
            question = _shortened(prompt.question)
            tokens = _two_tokens(expected.prompt_tokens, actual.prompt_tokens, at, text_of)
            return Check(
                "tokens", False, say("export.compare.prompt_differs", number=number, question=question, **tokens)
            )
    total = sum(len(expected.prompt_tokens) for _, expected, _ in rows)
    return Check("tokens", True, say("export.compare.prompts_are_the_same", tokens=total, prompts=len(rows)))


def _answers(rows: Sequence[_Row], bounds: Bounds, text_of: Callable[[int], str]) -> Check:
    """Let answers diverge only where the two likeliest tokens were close."""
    parted = divergences([expected for _, expected, _ in rows], [actual for _, _, actual in rows])
    if not parted:
        return Check("answers", True, say("export.compare.answers_are_the_same", same=len(rows), count=len(rows)))
    margin, number, at = max((each.margin, each.number, each.at) for each in parted)
    prompt, expected, actual = rows[number]
    same = {"same": len(rows) - len(parted), "count": len(rows)}
    tokens = _two_tokens(expected.greedy, actual.greedy, at, text_of)
    question, margins = _shortened(prompt.question), {"margin": margin, "bound": bounds.margin}
    detail = say("export.compare.answers_differ", number=number + 1, question=question, **same, **tokens, **margins)
    return Check("answers", margin <= bounds.margin, detail)


def _logprobs(rows: Sequence[_Row], bounds: Bounds) -> Check:
    each = differences([expected for _, expected, _ in rows], [actual for _, _, actual in rows])
    mean = sum(difference for difference, _, _ in each) / len(each)
    largest, number, at = max(each)
    detail = say(
        "export.compare.log_probabilities",
        mean=mean,
        bound=bounds.mean_difference,
        tokens=len(each),
        largest=largest,
        position=at + 1,
        number=number + 1,
    )
    return Check("logprobs", mean <= bounds.mean_difference, detail)


def _stops(rows: Sequence[_Row], bounds: Bounds, ignored_stops: Sequence[str]) -> Check:
    if ignored_stops:
        return Check("stop", False, say("export.compare.ignores_stop_tokens", tokens=", ".join(ignored_stops)))
    ended = [
        (number, prompt, expected, actual)
        for number, (prompt, expected, actual) in enumerate(rows, 1)
        if expected.stopped and actual.greedy[: len(expected.greedy)] == expected.greedy
    ]
    for number, prompt, expected, actual in ended:
        if actual.greedy != expected.greedy and expected.margins[len(expected.greedy)] > bounds.margin:
            question = _shortened(prompt.question)
            return Check("stop", False, say("export.compare.answer_goes_on", number=number, question=question))
    if not ended:
        return Check("stop", True, say("export.compare.no_ends_to_compare"))
    return Check("stop", True, say("export.compare.stops_are_the_same", answers=len(ended)))


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where the greedy answers to prompt ``number`` diverge, and by how much the expected token led there."""

    number: int
    at: int
    margin: float


def divergences(expected: Sequence[Outputs], actual: Sequence[Outputs]) -> list[Divergence]:
    """Return the first difference of each pair of greedy answers that differ."""
    pairs = enumerate(zip(expected, actual, strict=True))
    places = [(number, _first_difference(a.greedy, b.greedy)) for number, (a, b) in pairs]
    # At the end of a shorter answer, the margin is that of the token that ended it.
    return [Divergence(number, at, expected[number].margins[at]) for number, at in places if at is not None]


def differences(expected: Sequence[Outputs], actual: Sequence[Outputs]) -> list[tuple[float, int, int]]:
    """Return, for every token of the taught answers, the difference of its log-probabilities, its prompt and place."""
    return [
        (abs(a - b), number, at)
        for number, (one, other) in enumerate(zip(expected, actual, strict=True))
        for at, (a, b) in enumerate(zip(one.logprobs, other.logprobs, strict=True))
    ]


def _first_difference(expected: Sequence[int], actual: Sequence[int]) -> int | None:
    """Return the index at which two sequences diverge; None if they are the same."""
    if expected == actual:
        return None
    pairs = enumerate(zip(expected, actual, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(expected), len(actual)))


def _two_tokens(
    expected: Sequence[int], actual: Sequence[int], at: int, text_of: Callable[[int], str]
) -> dict[str, Any]:
    """Return the values of a message about two different tokens."""
    return {"position": at + 1, "expected": _token_at(expected, at, text_of), "actual": _token_at(actual, at, text_of)}


def _token_at(tokens: Sequence[int], at: int, text_of: Callable[[int], str]) -> str:
    return f"{tokens[at]} {text_of(tokens[at])!r}" if at < len(tokens) else say("export.compare.end")


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 30 else line[:29] + "…"
