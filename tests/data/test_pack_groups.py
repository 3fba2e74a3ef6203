"""Rows of groups: every answer's predictions are its own, wherever they are computed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given

from tests.data.preference.groups import groups
from weitune.data.conversation import Example, Span
from weitune.data.pack import PackedBatch, pack, visible
from weitune.data.pack_groups import pack_groups, pad_groups
from weitune.data.pad import PaddedBatch
from weitune.data.preference.values import Group


def predicted(batch: PackedBatch | PaddedBatch) -> list[tuple[tuple[int, ...], int]]:
    """Return for every prediction the tokens before it and its target."""
    if isinstance(batch, PackedBatch):
        seen = visible(batch)
        before = [tuple(batch.input_ids[seen[row]].tolist()) for row in batch.rows]
    else:
        longest = batch.input_ids.shape[1]
        before = [tuple(batch.input_ids[row // longest, : row % longest + 1].tolist()) for row in batch.rows]
    return list(zip(before, batch.targets.tolist(), strict=True))


@given(groups())
def test_answers_are_made_of_their_own_predictions(drawn: list[Group]) -> None:
    wanted = [
        [(answer.input_ids[:depth], token) for depth, token, _ in answer.predictions()]
        for group in drawn
        for answer in group.answers
    ]
    for batch in (pack_groups(drawn), pad_groups(drawn)):
        answers, made = batch.answers, predicted(batch)
        assert answers is not None
        starts = np.cumsum([0, *answers.lengths]).tolist()
        assert [[made[k] for k in answers.prediction[a:b]] for a, b in pairwise(starts)] == wanted
        assert answers.liked.tolist() == [liked for group in drawn for liked in group.liked]
        assert batch.weights.tolist() == [1.0] * len(batch.rows)
        assert not any([*answers.reference, *answers.coefficient, *answers.sft, answers.shift])
        if isinstance(batch, PackedBatch):
            assert len(set(made)) == len(made)  # what several answers predict is predicted once


@given(groups())
def test_the_row_is_that_of_the_answers_as_examples(drawn: list[Group]) -> None:
    row, examples = pack_groups(drawn), pack([answer for group in drawn for answer in group.answers])
    for name in ("input_ids", "position_ids", "subtree_end", "rows", "targets"):
        assert np.array_equal(getattr(row, name), getattr(examples, name))


def test_the_drawing_of_a_batch_of_answers() -> None:
    s, u, a, b, c, end = range(6)
    answers = [Example((s, u, *answer, end), (Span(2, 5),)) for answer in [(a, b), (a, c)]]
    batch = pack_groups([Group(tuple(answers), (True, False))])
    assert batch.answers is not None
    assert batch.input_ids.tolist() == [s, u, a, b, c]
    assert batch.targets.tolist() == [a, b, c, end, end]
    assert batch.answers.prediction.tolist() == [0, 1, 3, 0, 2, 4]
    assert batch.answers.lengths.tolist() == [3, 3]


def test_all_tokens_of_an_answer_count_alike() -> None:
    answer = Example((1, 2, 3, 4), (Span(1, 2, 0.0), Span(3, 4, 0.5)))
    group, plain = (Group((x,), (True,)) for x in (answer, replace(answer, spans=(Span(1, 2), Span(3, 4)))))
    for lay in (pack_groups, pad_groups):
        assert lay([group]).targets.tolist() == lay([plain]).targets.tolist() == [2, 4]


def test_nothing_to_learn_is_refused() -> None:
    for lay in (pack_groups, pad_groups):
        with pytest.raises(ValueError, match="at least one group"):
            lay([])
        with pytest.raises(ValueError, match="something to learn"):
            lay([Group((Example((1, 2), ()),), (True,))])
