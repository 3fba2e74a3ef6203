"""The comparison: what it lets pass, what it does not, and where it says the first difference is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from weitune.data.conversation import Conversation, Turn
from weitune.export.verify.compare import Bounds, Check, Perplexity, Verdict, VerificationError, compare
from weitune.export.verify.outputs import Outputs
from weitune.export.verify.prompts import VerificationPrompt
from weitune.export.verify.verification import BOUNDS as VERIFIED

BOUNDS = Bounds(mean_difference=0.01, margin=0.1, perplexity=0.01)
PROMPTS = [
    VerificationPrompt(Conversation((Turn("user", question),)), (1, 2), (1, 2), (3, 4))
    for question in ("Who are you?", "你是谁？")
]
SAME = Outputs((1, 2), (7, 8, 9), True, (-1.0, -2.0), (3.0, 0.05, 2.0, 4.0))


def checks(*actual: Outputs, ignored_stops: tuple[int, ...] = ()) -> dict[str, Check]:
    results = compare(PROMPTS, [SAME, SAME], actual, BOUNDS, lambda token: f"t{token}", ignored_stops)
    return {check.name: check for check in results}


def test_what_is_the_same_passes() -> None:
    results = checks(SAME, SAME)
    assert all(check.passed for check in results.values())
    assert results["answers"].found == "2 of 2 are the same"


def test_another_prompt_fails_at_its_first_token() -> None:
    check = checks(SAME, replace(SAME, prompt_tokens=(1, 5)))["tokens"]
    assert not check.passed
    assert check.found == (
        "prompt 2 ('你是谁？'): token 2 of the prompt is 2 't2' in base + adapter and 5 't5' in the export"
    )
    longer = checks(replace(SAME, prompt_tokens=(1, 2, 3)), SAME)["tokens"]
    assert "token 3 of the prompt is the end in base + adapter and 3 't3' in the export" in longer.found


@pytest.mark.parametrize(("greedy", "passed"), [((7, 1, 9), True), ((7, 8, 1), False), ((1, 8, 9), False)])
def test_answers_may_part_only_at_a_near_tie(greedy: tuple[int, ...], passed: bool) -> None:
    check = checks(replace(SAME, greedy=greedy), SAME)["answers"]
    assert check.passed is passed
    assert "1 of 2 are the same" in check.found


def test_the_widest_margin_is_told() -> None:
    check = checks(replace(SAME, greedy=(7, 1)), replace(SAME, greedy=(1,)))["answers"]
    assert not check.passed
    assert "prompt 2" in check.found
    assert "3.0000 ahead of the second (bound 0.1)" in check.found


def test_log_probabilities_have_a_bound_on_their_mean() -> None:
    close = checks(replace(SAME, logprobs=(-1.03, -2.0)), SAME)["logprobs"]
    assert close.passed
    assert "mean difference 7.50e-03 (bound 0.01) over 4 tokens; the largest, 3.00e-02, at token 1 of answer 1" in (
        close.found
    )
    assert not checks(replace(SAME, logprobs=(-1.05, -2.0)), SAME)["logprobs"].passed
    assert not checks(replace(SAME, logprobs=(-0.95, -2.0)), SAME)["logprobs"].passed


def test_an_answer_must_end_where_the_runs_does() -> None:
    check = checks(replace(SAME, greedy=(7, 8, 9, 1, 2), stopped=False), SAME)["stop"]
    assert not check.passed
    assert "prompt 1 ('Who are you?'): the answer goes on after its end" in check.found
    unclear = replace(SAME, margins=(3.0, 0.05, 2.0, 0.01))
    results = compare(
        PROMPTS[:1], [unclear], [replace(SAME, greedy=(7, 8, 9, 1), stopped=False)], BOUNDS, str
    )  # fmt: skip
    assert all(check.passed for check in results)


def test_ends_that_cannot_be_compared_are_not_counted_as_the_same() -> None:
    check = checks(*[replace(SAME, greedy=(7, 9))] * 2)["stop"]
    assert check.passed
    assert "no end of an answer to compare" in check.found


def test_a_stop_token_that_does_not_stop_fails() -> None:
    check = checks(SAME, SAME, ignored_stops=(5,))["stop"]
    assert not check.passed
    assert check.found == "the export does not stop at 5 't5'"


def test_an_engine_that_ends_answers_sooner_is_compared_up_to_there() -> None:
    assert SAME.ended_at({8}) == replace(SAME, greedy=(7,), stopped=True)
    assert SAME.ended_at({1}) is SAME
    shorter = replace(SAME, greedy=(7,), margins=())
    results = compare(PROMPTS[:1], [SAME.ended_at({8})], [shorter], BOUNDS, str)
    assert [check.found for check in results if check.name == "answers"] == ["1 of 1 are the same"]


def test_a_failed_verdict_is_an_error_that_names_what_failed() -> None:
    verdict = Verdict("x", 2, BOUNDS, (Check("tokens", True, "fine"), Check("stop", False, "no end")))
    error = VerificationError(verdict, "out.failed")
    assert error.exit_code == 2
    assert "stop: no end" in str(error)
    assert "fine" not in str(error)
    assert verdict.to_json()["verdict"] == "failed"


def perplexity_after(rise: float, tokens: int) -> Perplexity:
    """Return a perplexity of e² over ``tokens`` tokens in rows of two, and one that is higher by the share ``rise``."""
    expected = [(-1.5, -2.5)] * (tokens // 2)
    return Perplexity.of(expected, [tuple(each - math.log1p(rise) for each in row) for row in expected], of_run=True)


def test_a_perplexity_may_rise_by_less_than_its_bound() -> None:
    perplexity = perplexity_after(0.0101, 200)
    assert (perplexity.rows, perplexity.tokens) == (100, 200)
    assert perplexity.expected == pytest.approx(math.exp(2))
    assert perplexity.rise == pytest.approx(0.0101)
    check = perplexity.check(Bounds(9.0, 9.0, 0.011))
    assert check.passed
    assert check.found == (
        "7.464 on 100 rows that were held out (200 tokens), 7.389 for base + adapter: +1.01% (bound +1.10%)"
    )
    assert not perplexity.check(Bounds(9.0, 9.0, 0.010)).passed
    verdict = Verdict("x", 2, BOUNDS, (check,), perplexity=perplexity)
    assert verdict.to_json()["perplexity"] == {
        "rows": 100, "tokens": 200, "of_run": True, "expected": perplexity.expected, "actual": perplexity.actual,
    }  # fmt: skip
    assert verdict.to_json()["bounds"]["perplexity"] == 0.01


def test_a_perplexity_may_be_lower() -> None:
    lower = Perplexity.of([(-1.0, -2.5)], [(-1.0, -2.0)], of_run=False).check(Bounds(0.0, 1.0, 0.0))
    assert lower.passed
    assert "1 general questions (2 tokens; no held-out rows of the run can be read)" in lower.found


@pytest.mark.parametrize(("tokens", "bound"), [(198, math.expm1(0.3)), (200, 0.05)])
def test_a_perplexity_over_few_tokens_may_rise_as_far_as_log_probabilities_may_differ(
    tokens: int, bound: float
) -> None:
    bounds = Bounds(mean_difference=0.3, margin=1.0, perplexity=0.05)
    assert perplexity_after(0.99 * bound, tokens).check(bounds).passed
    assert not perplexity_after(1.01 * bound, tokens).check(bounds).passed


@pytest.mark.parametrize(("gguf_type", "rise"), [("Q4_K_M", 0.29), ("Q8_0", 0.036), ("F32", 0.0004)])
def test_what_good_files_cost_passes_and_what_a_refused_one_cost_does_not(gguf_type: str, rise: float) -> None:
    """Q4_K_M and Q4_0 are those of docs/lab/exports.md; of the others, the mean difference is the most possible."""
    assert perplexity_after(rise, 400).check(VERIFIED[gguf_type]).passed
    assert not perplexity_after(0.62, 400).check(VERIFIED["Q4_0"]).passed
    assert not perplexity_after(0.62, 400).check(VERIFIED[gguf_type]).passed


def test_no_bound_of_a_perplexity_is_wider_than_that_of_log_probabilities_allows() -> None:
    """It would never decide: a perplexity changes by no more than the mean of the absolute differences."""
    assert all(each.perplexity <= math.expm1(each.mean_difference) for each in VERIFIED.values())


def test_an_adapter_has_no_prompts_of_its_own() -> None:
    other = replace(SAME, prompt_tokens=())
    results = compare(PROMPTS, [SAME, SAME], [other, other], BOUNDS, lambda token: f"t{token}", framed=False)
    assert {check.name for check in results} == {*checks(SAME, SAME)} - {"tokens"}
