"""The prefix tree as a value: every property is checked against the examples themselves."""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weitune.data.conversation import Example, Span
from weitune.data.pack import PackedBatch, pack, pack_separately, visible
from weitune.data.schedule import Plan, share, split


@st.composite
def example(draw: st.DrawFn) -> Example:
    ids = draw(st.lists(st.integers(0, 2), min_size=2, max_size=8))
    cuts = sorted(draw(st.lists(st.integers(1, len(ids)), min_size=2, max_size=4, unique=True)))
    spans = tuple(
        Span(a, b, draw(st.sampled_from([1.0, 0.5, 2.0]))) for a, b in zip(cuts[::2], cuts[1::2], strict=False)
    )
    return Example(tuple(ids), spans)


examples = st.lists(example(), min_size=1, max_size=12)


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


@given(examples, st.integers(1, 40))
def test_micro_batches_hold_every_example_once_and_fit(batch_examples: list[Example], micro_tokens: int) -> None:
    batches = split(batch_examples, micro_tokens)
    assert Counter(e for batch in batches for e in batch) == Counter(batch_examples)
    for batch in batches:
        assert len(pack(batch)) <= micro_tokens or len(batch) == 1 or len({e.inputs for e in batch}) == 1


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


@given(
    st.integers(1, 100), st.integers(1, 20), st.integers(1, 3), st.integers(0, 2**63 - 1), st.none() | st.integers(1, 9)
)
def test_an_epoch_sees_every_example_once(n: int, batch_size: int, epochs: int, seed: int, most: int | None) -> None:
    plan = Plan(n, batch_size, epochs, seed, most)
    steps = [plan.step(k) for k in range(plan.steps)]
    assert all(1 <= len(step) <= batch_size for step in steps)
    if most is None:
        for epoch in range(epochs):
            part = steps[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch]
            assert sorted(np.concatenate(part).tolist()) == list(range(n))
    with pytest.raises(IndexError):
        plan.step(plan.steps)


def test_the_plan_is_fixed_for_ever() -> None:
    """Resuming an old run on a new version must see the same steps: these numbers may never change."""
    assert Plan(10, 4, 2, 42).step(0).tolist() == [7, 1, 6, 4]
    assert Plan(10, 4, 2, 42).step(5).tolist() == [6, 8]


@given(st.lists(example(), min_size=1, max_size=7), st.integers(1, 4))
def test_shares_are_whole_and_the_largest_is_as_small_as_a_cut_can_make_it(
    batch_examples: list[Example], devices: int
) -> None:
    shares = share(batch_examples, devices)
    assert len(shares) == devices
    assert [e for part in shares for e in part] == in_order(batch_examples)
    assert largest(shares) == min(map(largest, cuts(batch_examples, most=devices)))


@given(st.lists(example(), min_size=1, max_size=7), st.integers(1, 25))
def test_micro_batches_are_few_and_the_largest_is_as_small_as_a_cut_can_make_it(
    batch_examples: list[Example], micro_tokens: int
) -> None:
    found = split(batch_examples, micro_tokens)
    assert [e for part in found for e in part] == in_order(batch_examples)
    fitting = [
        cut
        for cut in cuts(batch_examples, most=len(batch_examples))
        if all(len(part) == 1 or len(pack(part)) <= micro_tokens for part in cut)
    ]
    assert found in fitting
    assert (len(found), largest(found)) == min((len(cut), largest(cut)) for cut in fitting)


def in_order(batch_examples: list[Example]) -> list[Example]:
    return sorted(batch_examples, key=lambda e: (e.input_ids, e.spans))


def largest(parts: list[list[Example]]) -> int:
    return max(len(pack(part)) for part in parts if part)


def cuts(batch_examples: list[Example], *, most: int) -> Iterator[list[list[Example]]]:
    """Yield every way to cut the examples into at most ``most`` parts."""
    ordered = in_order(batch_examples)
    for count in range(most):
        for inner in combinations(range(1, len(ordered)), count):
            yield [ordered[a:b] for a, b in zip((0, *inner), (*inner, len(ordered)), strict=True)]
