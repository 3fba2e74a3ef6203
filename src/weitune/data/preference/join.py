"""Join two sets of answers into pairs by their prompts.

    chosen      q1: a    q1: b    q2: c    q3: d
    rejected    q1: e    q1: f    q2: c                     (q1: a | e)   (q1: b | f)   q2: equal   q3: alone

The answers to one prompt are joined in order; where one side has a single answer, it is joined with all of the other's.
A prompt is what was said before the last answer, the system prompt included.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from weitune.data.conversation import Conversation, Turn
from weitune.data.preference.values import Pair
from weitune.errors import DataError


@dataclass(frozen=True, slots=True)
class Joined:
    """Pairs in the order of their chosen answers, and what became of the other answers."""

    pairs: Sequence[Pair]
    equal: int
    """Pairs that were left out because their answers have the same text."""
    alone: Sequence[Conversation]
    """Those that have no partner."""


def join_answers(chosen: Iterable[Conversation], rejected: Iterable[Conversation]) -> Joined:
    """Return the pairs of ``chosen`` and ``rejected`` answers to the same prompts.

    Raises DataError if a conversation does not end with an answer.
    """
    better, worse = _by_prompt(chosen), _by_prompt(rejected)
    pairs: list[Pair] = []
    alone = [answered for prompt, others in worse.items() if prompt not in better for answered in others]
    equal = 0
    for prompt, answers in better.items():
        joined, left = _partners(answers, worse.get(prompt, []))
        alone += left
        for one, other in joined:
            better_turn, worse_turn = one.turns[one.last_answer], other.turns[other.last_answer]
            if _text(better_turn) == _text(worse_turn):
                equal += 1
            else:
                asked = one.before(one.last_answer)
                prompt_of_both = replace(asked, turns=_unweighted(asked.turns))
                pairs.append(Pair(prompt_of_both, _unweighted((better_turn,)), _unweighted((worse_turn,))))
    return Joined(pairs, equal, alone)


def _by_prompt(answers: Iterable[Conversation]) -> dict[str, list[Conversation]]:
    found: dict[str, list[Conversation]] = defaultdict(list)
    for answered in answers:
        if answered.last_answer != len(answered.turns) - 1:
            raise DataError("data.join.unanswered", origin=answered.origin)
        asked = answered.before(answered.last_answer)
        asked = replace(asked, turns=_unweighted(asked.turns))
        found[json.dumps([asked.turns, asked.tools], sort_keys=True, default=dict)].append(answered)
    return found


def _unweighted(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Return ``turns`` without the weights that their rows had: a pair has none."""
    return tuple(turn._replace(weight=1.0) for turn in turns)


def _partners(
    some: Sequence[Conversation], others: Sequence[Conversation]
) -> tuple[list[tuple[Conversation, Conversation]], Sequence[Conversation]]:
    """Return the partners among the answers to one prompt, and those that have none."""
    if len(some) == 1:
        some = [*some] * max(1, len(others))
    elif len(others) == 1:
        others = [*others] * len(some)
    both = min(len(some), len(others))
    return list(zip(some, others, strict=False)), [*some[both:], *others[both:]]


def _text(answer: Turn) -> tuple[str, ...]:
    return answer.content.strip(), answer.reasoning or "", repr(answer.tool_calls)
