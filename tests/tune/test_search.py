"""What a search tries is a pure function of the recipe and the losses, and keeps to its budget."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weitune.recipe.load import build_recipe
from weitune.recipe.schema import Recipe
from weitune.tune.search import ALSO, Candidate, Search, Trial, ranked


def recipe(**train: object) -> Recipe:
    return build_recipe({"model": "m", "data": "d", "train": train})


def loss_of(candidate: Candidate) -> float:
    """A bowl around 4e-4."""
    return 3 + abs(math.log(candidate.learning_rate / 4e-4)) / 10


def whole(search: Search) -> list[list[Trial]]:
    rungs = [search.first()]
    while trials := search.after([{trial.candidate: loss_of(trial.candidate) for trial in rung} for rung in rungs]):
        rungs.append(trials)
    return rungs


@given(
    st.integers(50, 50_000),
    st.integers(1, 64),
    st.integers(1, 4),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.lists(st.sampled_from(ALSO), unique=True),
)
def test_a_search_keeps_to_its_budget(examples: int, batch: int, epochs: int, budget: float, also: list[str]) -> None:
    chosen = recipe(batch_size=batch, epochs=epochs)
    search = Search(chosen, examples, 8e-4, also, budget)
    own = Candidate.of(chosen).steps(examples, chosen)
    rungs = whole(search)
    assert [len(rung) for rung in rungs] == list(search.rungs)
    cost = sum(trial.steps * trial.candidate.batch_size / batch for rung in rungs for trial in rung)
    rounding = sum(max(1, trial.candidate.batch_size / batch) for rung in rungs for trial in rung)
    assert cost <= budget * own + rounding
    for rung in rungs:
        assert all(trial.steps >= 1 for trial in rung)
        assert len({trial.candidate for trial in rung}) == len(rung)
    assert rungs == whole(Search(chosen, examples, 8e-4, also, budget))


def test_later_rungs_train_longer() -> None:
    rungs = whole(Search(recipe(), 3500, 8e-4))
    assert [len(rung) for rung in rungs] == [6, 3, 2]
    steps = [rung[0].steps for rung in rungs]
    assert steps == sorted(steps)
    assert steps[-1] > 2 * steps[0]


def test_the_best_go_on() -> None:
    search = Search(recipe(), 3500, 8e-4)
    losses = {trial.candidate: loss_of(trial.candidate) for trial in search.first()}
    following = {trial.candidate for trial in search.after([losses])}
    assert following == set(ranked(losses)[:3])


@pytest.mark.parametrize(("best", "factor"), [(max, 2.0), (min, 0.5)])
def test_a_rate_at_an_end_is_gone_beyond(best: object, factor: float) -> None:
    search = Search(recipe(), 3500, 8e-4)
    rates = [trial.candidate.learning_rate for trial in search.first()]
    end = best(rates)  # type: ignore[operator]
    losses = {trial.candidate: 3 + abs(math.log(trial.candidate.learning_rate / end)) for trial in search.first()}
    following = [trial.candidate.learning_rate for trial in search.after([losses])]
    assert following[0] == end
    assert following[-1] == pytest.approx(factor * end, rel=0.05)


@pytest.mark.parametrize(("best", "following"), [(2e-4, [2e-4, 4e-4]), (8e-4, [8e-4, 4e-4]), (1.6e-3, [1.6e-3, 8e-4])])
def test_a_rate_that_a_rung_dropped_is_not_tried_in_place_of_the_second_best(
    best: float, following: list[float]
) -> None:
    search = Search(recipe(), 3500, 8e-4)

    def losses(rung: list[Trial], best: float) -> dict[Candidate, float]:
        return {t.candidate: 3 + abs(math.log(t.candidate.learning_rate / best)) for t in rung}

    first = losses(search.first(), 5e-4 if best < 1e-3 else 1e-3)
    second = losses(search.after([first]), best)
    assert len(first) == 6
    assert best in {candidate.learning_rate for candidate in second}
    third = [trial.candidate.learning_rate for trial in search.after([first, second])]
    assert third == following


def test_rates_that_are_as_good_are_taken_from_below() -> None:
    low, high, bad = (Candidate(rate, 16, 3, 8) for rate in (1e-4, 1e-3, 1e-2))
    assert ranked({high: 2.0, low: 2.004, bad: math.inf}) == [low, high, bad]
    assert ranked({high: 2.0, low: 2.02, bad: math.nan}) == [high, low, bad]


def test_the_run_that_is_found_ends_when_it_gets_no_better() -> None:
    best = Candidate(3e-4, 16, 3, 8)
    for keys, often, patience in (
        ({}, 50, 2),
        ({"max_steps": 60}, 10, 2),
        ({"evaluate_every": 5, "patience": 7}, 5, 7),
    ):
        tree = {"model": "m", "data": "d", "validation": 0.1, "train": keys}
        found = Search(build_recipe(tree), 3500, 8e-4).found(best)
        assert (found.train.evaluate_every, found.train.patience) == (often, patience)
        assert found.train.rate == 3e-4


def test_only_what_is_asked_for_changes_besides_the_rate() -> None:
    for also in ([], ["r"], ["batch_size", "epochs"]):
        for trial in Search(recipe(), 3500, 8e-4, also).first():
            changed = {name for name in ALSO if getattr(trial.candidate, name) != getattr(Candidate.of(recipe()), name)}
            assert changed <= set(also)
    tried = [trial.candidate for trial in Search(recipe(), 3500, 8e-4, ["r"]).first()]
    assert {candidate.r for candidate in tried} > {8}


def test_settings_are_put_into_the_recipe() -> None:
    now = Candidate(3e-4, 4, 2, 32).applied(recipe())
    assert (now.train.learning_rate, now.train.batch_size, now.train.epochs) == (3e-4, 4, 2)
    assert now.adapter is not None
    assert (now.adapter.r, now.adapter.alpha) == (32, 32)
    none = build_recipe({"model": "m", "data": "d", "lora": "none"})
    assert Candidate.of(none).applied(none) == none


def test_the_candidates_stand_around_the_guess() -> None:
    rates = [trial.candidate.learning_rate for trial in Search(recipe(), 3500, 8e-4).first()]
    assert rates == [8e-4, 4e-4, 1.6e-3, 2e-4, 3.2e-3, 1e-4]


@given(st.integers(50, 50_000), st.integers(1, 64), st.integers(1, 9), st.none() | st.integers(40, 400))
def test_a_trial_is_the_run_in_small(examples: int, batch: int, epochs: int, most: int | None) -> None:
    """A part of the rows, each as often as in the whole run, at a rate for so short a run."""
    chosen = recipe(batch_size=batch, epochs=epochs, max_steps=most)
    search = Search(chosen, examples, 8e-4)
    whole_run = Candidate.of(chosen).steps(examples, chosen)
    often = whole_run / -(-examples // batch)
    for trial in (trial for rung in whole(search) for trial in rung):
        assert min(batch, examples) <= trial.rows <= examples
        assert trial.rate >= trial.candidate.learning_rate * 0.95
        if batch < trial.rows and trial.steps > 20:
            assert trial.steps * batch / trial.rows == pytest.approx(often, rel=0.2)
        if trial.steps >= 100:
            assert trial.rate == trial.candidate.learning_rate


def test_a_model_that_is_trained_whole_needs_no_more_in_a_short_run() -> None:
    none = build_recipe({"model": "m", "data": "d", "lora": "none"})
    assert all(trial.rate == trial.candidate.learning_rate for trial in Search(none, 500, 8e-5).first())
    assert all(trial.rate > trial.candidate.learning_rate for trial in Search(recipe(), 500, 8e-4).first())
