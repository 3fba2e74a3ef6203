"""Count preferences while they are prepared, and find what contradicts itself among them.

same prompt      A over B · A over B      a copy
                 A over B · B over A      contradicting pairs
                 A over B · B over C      B is chosen in one row and rejected in another
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

from weitune.data.conversation import Turn
from weitune.data.preference.values import Answer, Judged, Pair
from weitune.data.prepare.report import Preferences

Hashes = npt.NDArray[np.int64]


class PreferenceCounter:
    """Counts pairs and judged answers, and compares their texts by 64-bit hashes: 40 bytes a pair."""

    def __init__(self) -> None:
        self.counts = Preferences()
        self._rows, self._liked, self._disliked = array("q"), array("q"), array("q")
        self._pairs, self._turned = array("q"), array("q")

    def add(self, row: Pair | Judged) -> None:
        prompt = hash((row.prompt.tools and repr(row.prompt.tools), *map(_key, row.prompt.turns)))
        if isinstance(row, Judged):
            answer = _hashed(prompt, row.answer)
            self.counts.liked += row.liked
            self.counts.disliked += not row.liked
            self._rows.append(hash((answer, row.liked)))
            (self._liked if row.liked else self._disliked).append(answer)
            return
        chosen, rejected = _hashed(prompt, row.chosen), _hashed(prompt, row.rejected)
        self.counts.pairs += 1
        self._rows.append(hash((chosen, rejected)))
        if chosen == rejected:
            self.counts.equal_answers += 1
            return
        self._liked.append(chosen)
        self._disliked.append(rejected)
        self._pairs.append(hash((chosen, rejected)))
        self._turned.append(hash((rejected, chosen)))

    def count(self) -> tuple[Preferences, int]:
        """Return the counts, and how many rows repeat an earlier one."""
        self.counts.contradicting_pairs = int(np.isin(_array(self._pairs), _array(self._turned)).sum())
        self.counts.both_ways = len(np.intersect1d(_array(self._liked), _array(self._disliked)))
        rows = _array(self._rows)
        return self.counts, len(rows) - len(np.unique(rows))


def _hashed(prompt: int, answer: Answer) -> int:
    return hash((prompt, *map(_key, answer)))


def _key(turn: Turn) -> tuple[object, ...]:
    return turn.role, turn.content, turn.reasoning, turn.tool_calls and repr(turn.tool_calls)


def _array(values: array[int]) -> Hashes:
    return np.frombuffer(values, np.int64) if values else np.zeros(0, np.int64)
