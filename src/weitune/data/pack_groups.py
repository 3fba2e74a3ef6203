"""Lay out groups of answers for one forward pass: as one row in which they share what they have in common, or padded.

    pair:    prompt P, chosen A, rejected B              row:   P ─┬─ A
                                                                  └─ B

The prompt of a pair is computed once, and so is the beginning that its two answers share, or any two groups. A
prediction that several answers make is one prediction of the batch; :class:`.AnswerBatch` says whose it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from weitune.data.answers import AnswerBatch
from weitune.data.conversation import Example, Span
from weitune.data.pack import PackedBatch, PrefixTree, depth_first
from weitune.data.pad import PaddedBatch, pad
from weitune.data.preference.values import Group


def pack_groups(groups: Sequence[Group]) -> PackedBatch:
    """Lay the prefix tree of all answers of ``groups`` out as one row. The weights of its predictions are 1.

    The row does not depend on the order of the groups; its answers are in that order. Raises ValueError if there are
    no groups or an answer has nothing to learn.
    """
    answers = _answers(groups)
    tree = PrefixTree()
    made: list[list[tuple[int, int]]] = [[] for _ in answers]  # (row, target) of every prediction of every answer
    for k in sorted(range(len(answers)), key=lambda k: depth_first(answers[k])):
        path = tree.add(answers[k].inputs)
        made[k] = [(path[depth - 1], token) for depth, token, _ in answers[k].predictions()]
    distinct = sorted({prediction for own in made for prediction in own})
    number = {prediction: k for k, prediction in enumerate(distinct)}
    prediction = [number[each] for own in made for each in own]
    return tree.laid_out(distinct, [1.0] * len(distinct), _answer_batch(groups, answers, prediction))


def pad_groups(groups: Sequence[Group], pad_token: int = 0) -> PaddedBatch:
    """Lay the answers of ``groups`` out one a row, each with its prompt: for models that cannot share.

    Raises ValueError as :func:`pack_groups` does.
    """
    answers = _answers(groups)
    batch = pad(answers, pad_token)
    return replace(batch, answers=_answer_batch(groups, answers, range(len(batch.targets))))


def _answers(groups: Sequence[Group]) -> list[Example]:
    """Return the answers in order. In a log-probability all tokens of an answer count alike."""
    answers = [answer for group in groups for answer in group.answers]
    if not answers or not all(answer.inputs for answer in answers):
        raise ValueError("a batch needs at least one group, and every answer something to learn")
    return [replace(answer, spans=tuple(Span(start, stop) for start, stop, _ in answer.spans)) for answer in answers]


def _answer_batch(groups: Sequence[Group], answers: Sequence[Example], prediction: Sequence[int]) -> AnswerBatch:
    liked = [liked for group in groups for liked in group.liked]
    return AnswerBatch.of(prediction, [answer.supervised for answer in answers], liked)


def split_groups_by_length(groups: Sequence[Group], micro_tokens: int) -> list[list[Group]]:
    """Split a step's groups into rectangles of at most ``micro_tokens`` positions, longest first.

    A rectangle holds at least one group, however long. The split does not depend on the order of ``groups``.
    """
    ordered = sorted(groups, key=lambda group: (-_longest(group), group.sort_key()))
    batches: list[list[Group]] = []
    rows = 0
    for group in ordered:
        if not batches or (rows + len(group.answers)) * _longest(batches[-1][0]) > micro_tokens:
            batches.append([])
            rows = 0
        batches[-1].append(group)
        rows += len(group.answers)
    return batches


def _longest(group: Group) -> int:
    return max(len(answer.inputs) for answer in group.answers)
