"""Figures of preferences, by hand."""

from __future__ import annotations

from typing import get_args

import pytest

from tests.data.preference.groups import answer
from weitune.data.preference.values import Group
from weitune.recipe.preference import Method, Preference
from weitune.run.events import FIGURES
from weitune.training.preference.figures import NO_TALLY, FigureTally


def pair(chosen: int, rejected: int, reference: tuple[float, ...] = ()) -> Group:
    """Return a pair whose answers have so many tokens."""
    return Group((answer([1], [2] * chosen), answer([1], [3] * rejected)), (True, False), reference=reference)


PAIRS = [pair(2, 4, (-5.0, -6.0)), pair(1, 5, (-2.0, -8.0))]
SUMS = [-4.0, -8.0, -3.0, -8.5]  # gained 1, −2, −1, −0.5


def told(method: Method, groups: list[Group], sums: list[float], shift: float = 0.0) -> dict[str, float]:
    tally = FigureTally(Preference(method=method, beta=0.5), shift)
    return tally.figures(tally.of(groups, sums))


@pytest.mark.parametrize(
    ("method", "chosen", "rejected"),
    [("dpo", 0.0, -1.25), ("hinge", 0.0, -1.25), ("ipo", (1 / 2 - 1) / 2, (-2 / 4 - 0.5 / 5) / 2)],
)
def test_rewards_are_what_the_loss_compares(method: Method, chosen: float, rejected: float) -> None:
    found = told(method, PAIRS, SUMS)
    assert found == pytest.approx({
        "rewards/chosen": 0.5 * chosen, "rewards/rejected": 0.5 * rejected,
        "rewards/margins": 0.5 * (chosen - rejected), "rewards/accuracies": 0.5,
        "logps/chosen": -3.5, "logps/rejected": -8.25, "logps/chosen_gain": 0.0,
    })  # fmt: skip


def test_without_a_reference_log_probabilities_are_the_rewards() -> None:
    groups = [pair(2, 4), pair(1, 5)]
    assert told("cpo", groups, SUMS)["rewards/chosen"] == pytest.approx(0.5 * -3.5)
    assert told("simpo", groups, SUMS)["rewards/rejected"] == pytest.approx(0.5 * (-8 / 4 - 8.5 / 5) / 2)
    assert "logps/chosen_gain" not in told("orpo", groups, SUMS)


def test_judged_answers_are_right_on_their_side_of_z() -> None:
    def judged(liked: bool) -> Group:
        return Group((answer([1], [2]),), (liked,), reference=(-4.0,))

    found = told("kto", [judged(True), judged(True), judged(False)], [-2.0, -3.9, -4.5], shift=0.5)
    assert found["rewards/accuracies"] == pytest.approx(2 / 3)  # gained 2 and 0.1 beside z = 0.5; −0.5
    assert found["kl"] == 0.5
    alone = told("kto", [judged(False)], [-4.5])
    assert alone.keys() == {"rewards/rejected", "logps/rejected", "rewards/accuracies", "kl"}


def test_equal_rewards_are_half_right() -> None:
    assert told("dpo", PAIRS, [-5.0, -6.0, -2.0, -8.0])["rewards/accuracies"] == 0.5


def test_tallies_of_parts_add_up() -> None:
    tally = FigureTally(Preference(method="dpo"))
    whole = tally.of(PAIRS, SUMS)
    assert (tally.of(PAIRS[:1], SUMS[:2]) + tally.of(PAIRS[1:], SUMS[2:]) == whole).all()
    assert tally.figures(NO_TALLY) == {}


@pytest.mark.parametrize("method", get_args(Method))
def test_every_figure_is_known_to_the_events(method: Method) -> None:
    groups = [Group(group.answers[:1], (True,)) for group in PAIRS] if method == "kto" else PAIRS
    assert set(told(method, groups, SUMS)) <= set(FIGURES)
