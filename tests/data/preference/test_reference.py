"""The reference of groups: its file, and groups joined with it."""

from __future__ import annotations

import numpy as np
import pytest

from weitune.data.conversation import Example, Span
from weitune.data.preference.reference import HELD, TRAINED, AnswerSums, Reference, ReferencedGroups
from weitune.data.preference.values import Group


def answered(prompt: tuple[int, ...], answer: tuple[int, ...]) -> Example:
    return Example((*prompt, *answer), (Span(len(prompt), len(prompt) + len(answer)),))


def pair(number: int) -> Group:
    return Group((answered((1, number), (7, 8)), answered((1, number), (9,))), (True, False))


class Groups(list[Group]):
    """A set of groups in memory."""

    lengths = np.asarray([7, 7, 3], np.int32)
    supervised = np.asarray([3, 3, 1], np.int32)

    def digest(self) -> str:
        return "digest"


GROUPS = Groups([pair(2), pair(3), Group((answered((1, 2), (5,)),), (False,))])
SUMS = np.asarray([-1.5, -2.25, -3.0, -4.0, -0.125])


def test_every_group_gets_its_own_numbers() -> None:
    joined = ReferencedGroups(GROUPS, AnswerSums.of_groups(GROUPS, SUMS))
    assert [joined[i].reference for i in range(3)] == [(-1.5, -2.25), (-3.0, -4.0), (-0.125,)]
    assert [joined[i].answers for i in range(3)] == [group.answers for group in GROUPS]
    assert joined.digest() == "digest"


def test_groups_that_were_not_measured_have_no_finite_number() -> None:
    sums = AnswerSums.of_groups([GROUPS[0], GROUPS[2]], SUMS[[0, 1, 4]])
    reference = Reference({TRAINED: sums}, np.asarray([0, 2], np.int32))
    again = Reference.from_bytes(reference.to_bytes())
    assert again.digest() == reference.digest() != Reference({TRAINED: sums}).digest()
    joined = ReferencedGroups(GROUPS, again.parts[TRAINED], again.numbers)
    assert [joined[0].reference, joined[2].reference] == [(-1.5, -2.25), (-0.125,)]
    assert np.isnan(joined[1].reference).tolist() == [True, True]
    assert [again.fits(groups) for groups in (2, 3)] == [False, True]
    for numbers in ([0], [2, 0], [0, 1, 2]):
        with pytest.raises(ValueError, match="do not fit"):
            Reference({TRAINED: sums}, np.asarray(numbers, np.int32))


def test_parts_of_several_sets_come_apart_and_together() -> None:
    whole = AnswerSums.of_groups(GROUPS, SUMS)
    odd = np.asarray([False, True, False])
    parts = [whole.only(odd), whole.only(~odd)]
    assert [parts[0][0], parts[1][0], parts[1][1]] == [(-3.0, -4.0), (-1.5, -2.25), (-0.125,)]
    again = AnswerSums.joined([whole.only(np.arange(3) < 1), whole.only(np.arange(3) >= 1)])
    assert (again.sums == whole.sums).all()
    assert (again.counts == whole.counts).all()


def test_a_file_gives_the_same_bits_back() -> None:
    sums = AnswerSums.of_groups(GROUPS, SUMS * np.pi)
    reference = Reference({TRAINED: sums, HELD: sums.only(np.asarray([True, False, False]))})
    again = Reference.from_bytes(reference.to_bytes())
    assert again.parts.keys() == reference.parts.keys()
    for name, part in reference.parts.items():
        assert again.parts[name].sums.tobytes() == part.sums.tobytes()
    assert again.digest() == reference.digest()


def test_a_sealed_file_with_a_changed_bit_is_refused() -> None:
    reference = Reference({TRAINED: AnswerSums.of_groups(GROUPS, SUMS)})
    sealed = reference.to_sealed_bytes()
    assert Reference.from_sealed_bytes(sealed).digest() == reference.digest()
    at = sealed.index(np.float64(-2.25).tobytes())
    changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
    assert Reference.from_bytes(changed).parts[TRAINED].sums[1] == pytest.approx(-2.25)
    for other in (changed, reference.to_bytes()):
        with pytest.raises(ValueError, match="digest"):
            Reference.from_sealed_bytes(other)


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-3], lambda b: b"", lambda b: b.replace(b"trained.counts", b"trained.county")],
    ids=["cut", "empty", "renamed"],
)
def test_damage_is_a_value_error(damage: object) -> None:
    contents = Reference({TRAINED: AnswerSums.of_groups(GROUPS, SUMS)}).to_bytes()
    with pytest.raises(ValueError, match=r"."):
        Reference.from_bytes(damage(contents))  # type: ignore[operator]


def test_what_cannot_be_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        AnswerSums(SUMS[:-1], np.asarray([2, 2, 1], np.int32))
    with pytest.raises(ValueError, match="not finite"):
        Reference.from_bytes(Reference({TRAINED: AnswerSums.of([[np.nan]])}).to_bytes())
    with pytest.raises(ValueError, match="other groups"):
        ReferencedGroups(GROUPS, AnswerSums.of_groups(GROUPS[:2], SUMS[:4]))
