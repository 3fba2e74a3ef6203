"""What the blocks of a decoder take in a pass, seen while a few of them run once.

    layers     l l l f l l l f         l, f: kinds of layers
    run        l f l f                 the first layer, one of each kind between, the last

The first and the last layer are special: one passes no gradient on, the other computes the predicted rows only. Each
layer between them takes as much as one of its kind. What precedes the last layer does so in the run too, because the
peak is there, between forward and backward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from itertools import pairwise

from weitune.forecast.fake_batch import mask_bytes
from weitune.forecast.live_memory import LiveBytes
from weitune.model.batch import PackedTensors, TensorBatch
from weitune.model.fast.parts import BlockParts


def layers_to_run(kinds: Sequence[Hashable], known: int) -> list[int]:
    """Return which of the first ``known`` layers to run, and in what order, for a decoder with layers of ``kinds``.

    Every kind is known.
    """
    if len(kinds) == 1:
        return [0]
    latest = {kind: at for at, kind in enumerate(kinds[:known])}  # it makes the keys that later layers read
    inner = kinds[1:-1]
    between = sorted({latest[kind] for kind in inner})
    if inner:
        between.remove(latest[inner[-1]])
        between.append(latest[inner[-1]])
    return [0, *between, latest[kinds[-1]]]


class WatchedParts(list[BlockParts]):
    """The parts of a decoder, which note what exists, apart from the masks of all, when each of them is reached."""

    def __init__(self, parts: Sequence[BlockParts], live: LiveBytes, batch: TensorBatch) -> None:
        super().__init__(parts)
        self._live, self._tree = live, batch.tree if isinstance(batch, PackedTensors) else None
        self._found: list[int] = []

    def __iter__(self) -> Iterator[BlockParts]:
        self._found = []  # of the last time, which is when they run
        for part in super().__iter__():
            self._found.append(self._live.now - mask_bytes(self._tree))
            yield part

    def kept_by_others(self, kinds: Sequence[Hashable], order: Sequence[int]) -> int:
        """Return the bytes that the other layers of a decoder with layers of ``kinds`` keep; ``order`` have run."""
        run = [kinds[at] for at in order[1:-1]]
        kept = [after - before for before, after in pairwise(self._found)][1:]
        of_kind = dict(zip(run, kept, strict=True))
        return sum((count - 1) * of_kind[kind] for kind, count in Counter(kinds[1:-1]).items())
