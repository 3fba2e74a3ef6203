"""How often a model finds the chosen answer of a pair likelier than the rejected one.

    preferred   share of pairs whose chosen answer has the larger log-probability per token
    gained      share of pairs whose chosen answer gained more log-probability over the base than the rejected one:
                the accuracy of the reward that DPO learns (Rafailov et al., arXiv 2305.18290)

Of judged answers, each liked one is compared with each disliked one to the same prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from weitune.data.preference.values import Group
from weitune.evaluate.evaluation import PairScores
from weitune.evaluate.intervals import share_interval

Sums = npt.NDArray[np.float64]


def score_pairs(groups: Sequence[Group], sums: Sequence[Sums], base: Sequence[Sums] | None = None) -> PairScores:
    """Return the measures of ``groups`` whose answers have these summed log-probabilities, in nats.

    ``base`` are those that the base gives; None for the base itself.
    """
    own = np.concatenate(sums)
    answers = [answer for group in groups for answer in group.answers]
    liked = np.asarray([each for group in groups for each in group.liked])
    per_token = own / [answer.supervised for answer in answers]
    pairs = np.asarray(list(compared(groups)), np.int64).reshape(-1, 2)
    preferred = _share(per_token, pairs)
    return PairScores(
        pairs=len(pairs),
        preferred=preferred,
        gained=None if base is None else _share(own - np.concatenate(base), pairs),
        chosen=float(per_token[liked].mean()) if liked.any() else None,
        rejected=float(per_token[~liked].mean()) if not liked.all() else None,
        interval=None if preferred is None else share_interval(preferred * len(pairs), len(pairs)),
    )


def compared(groups: Sequence[Group]) -> Iterator[tuple[int, int]]:
    """Yield the numbers of the answers that are compared, the better one first."""
    judged: dict[tuple[int, ...], tuple[list[int], list[int]]] = {}
    number = 0
    for group in groups:
        first = group.answers[0]
        if len(group.answers) == 2:
            yield number, number + 1
        else:
            prompt = first.input_ids[: first.spans[0].start]
            judged.setdefault(prompt, ([], []))[not group.liked[0]].append(number)
        number += len(group.answers)
    for liked, disliked in judged.values():
        yield from ((better, worse) for better in liked for worse in disliked)


def _share(values: Sums, pairs: npt.NDArray[np.int64]) -> float | None:
    """Return the share of pairs whose first value is larger; equal ones count half."""
    if not len(pairs):
        return None
    differences = values[pairs[:, 0]] - values[pairs[:, 1]]
    return float((np.sign(differences).mean() + 1) / 2)
