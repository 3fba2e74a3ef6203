"""The prefix tree as a value: every property is checked against the examples themselves."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.data.examples import examples
from weitune.data.conversation import OTHERS, Example, Span
from weitune.data.pack import PackedBatch, pack, pack_separately, visible
from weitune.data.pad import pad
from weitune.model.batch import to_tensors


def ancestors(batch: PackedBatch, row: int) -> list[int]:
    return [j for j in range(len(batch)) if j <= row < batch.subtree_end[j]]


@given(examples)
def test_what_a_token_sees_is_its_own_conversation_so_far(batch_examples: list[Example]) -> None:
    batch = pack(batch_examples)
    prefixes = {e.inputs[:n] for e in batch_examples for n in range(1, len(e.inputs) + 1)}
    seen = [tuple(batch.input_ids[ancestors(batch, row)].tolist()) for row in range(len(batch))]
    assert Counter(seen) == Counter(prefixes)  # every distinct prefix that predicts stands once, and nothing else does
    assert all(e.loss_mask[len(e.inputs)] for e in batch_examples)  # what stands in no row is the last target …
    assert not any(any(e.loss_mask[len(e.inputs) + 1 :]) for e in batch_examples)  # … and what comes after it
    assert [len(prefix) - 1 for prefix in seen] == batch.position_ids.tolist()


def test_a_prefix_is_shared_across_an_example_that_ends_before_it() -> None:
    longer = [Example((1, 2, token), (Span(2, 3),)) for token in (3, 5)]
    shorter = Example((1, 2, 4), (Span(1, 2),))
    assert pack([*longer, shorter]).input_ids.tolist() == [1, 2]


@given(examples)
def test_predictions_are_those_of_the_examples(batch_examples: list[Example]) -> None:
    batch = pack(batch_examples)
    wanted: Counter[tuple[tuple[int, ...], int]] = Counter()
    for e in batch_examples:
        for t, weight in enumerate(e.loss_mask):
            if weight:
                wanted[e.input_ids[:t], e.input_ids[t]] += weight
    found = {}
    for row, target, weight in zip(batch.rows, batch.targets, batch.weights, strict=True):
        found[tuple(batch.input_ids[ancestors(batch, row)].tolist()), int(target)] = float(weight)
    assert found == pytest.approx(dict(wanted))


@given(examples)
def test_alternatives_are_predicted_in_place_of_each_token(batch_examples: list[Example]) -> None:
    soft = [replace(e, alternatives=tuple(((7, 0.25), (8, 0.75)) for _ in range(e.supervised))) for e in batch_examples]
    batch, separate = pack(soft), pack_separately(soft)
    assert set(batch.targets) == {7, 8}
    assert batch.weights[batch.targets == 8].sum() == pytest.approx(3 * batch.weights[batch.targets == 7].sum())
    for packed in (batch, separate):
        assert packed.weights.sum() == pytest.approx(sum(e.weight for e in batch_examples))
    padded = pad(soft)
    assert sorted(padded.targets) == sorted(separate.targets)
    assert padded.weights.sum() == pytest.approx(separate.weights.sum())
    assert (np.diff(padded.rows) >= 0).all()


@given(examples)
def test_what_alternatives_leave_is_due_to_all_other_tokens(batch_examples: list[Example]) -> None:
    soft = [replace(e, alternatives=tuple(((7, 0.25), (8, 0.5)) for _ in range(e.supervised))) for e in batch_examples]
    for batch in (pack(soft), pack_separately(soft), pad(soft)):
        assert set(batch.targets) == {7, 8, OTHERS}
        assert batch.weights[batch.targets == OTHERS].sum() == pytest.approx(batch.weights[batch.targets == 7].sum())
        assert batch.weights.sum() == pytest.approx(sum(e.weight for e in batch_examples))
        tensors = to_tensors(batch, torch.device("cpu"))
        assert tensors.others
        assert (tensors.index.diff() >= 0).all()
        pairs = list(zip(tensors.index.tolist(), tensors.targets.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)


@given(examples, st.randoms())
def test_order_of_examples_does_not_matter(batch_examples: list[Example], random) -> None:
    a = pack(batch_examples)
    b = pack(random.sample(batch_examples, len(batch_examples)))
    for name in PackedBatch.__slots__:
        assert np.array_equal(getattr(a, name), getattr(b, name))


@given(examples)
def test_the_separate_layout_predicts_as_much(batch_examples: list[Example]) -> None:
    shared, separate = pack(batch_examples), pack_separately(batch_examples)
    assert len(separate) == sum(len(e.inputs) for e in batch_examples) >= len(shared)
    assert separate.weights.sum() == pytest.approx(shared.weights.sum())
    assert shared.weights.sum() == pytest.approx(sum(e.weight for e in batch_examples))
    mask = visible(separate)
    starts = np.flatnonzero(separate.position_ids == 0)
    assert all(mask[row, starts].sum() == 1 for row in range(len(separate)))  # no token sees two conversations


def test_the_drawing_in_the_docstring() -> None:
    s, u1, u2, a1, a2, a3, end = range(7)
    batch = pack([Example((*ids, end), (Span(2, 4),)) for ids in [(s, u1, a1), (s, u2, a2), (s, u1, a3)]])
    assert batch.input_ids.tolist() == [s, u1, a1, a3, u2, a2]
    assert batch.position_ids.tolist() == [0, 1, 2, 2, 1, 2]
    assert batch.subtree_end.tolist() == [6, 4, 3, 4, 6, 6]
    assert batch.rows.tolist() == [1, 1, 2, 3, 4, 5]  # the fork U1 predicts both of its branches
    assert batch.targets.tolist() == [a1, a3, end, end, a2, end]


def test_an_empty_row_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        pack([])
    with pytest.raises(ValueError, match="something to learn"):
        pack([Example((1, 2), ())])
