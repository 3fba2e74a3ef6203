"""Decode many rows, some at a time: a row that finishes makes room for the next.

    slots   0  ▒▒▒▒■■■■■■■■■■■■■■■■■■■■■            ▒  the prompts' common prefix, read once and copied
            1  ▒▒▒▒■■■■■│▒▒▒▒■■■■■■■■■■■            ■  prompt and answer
            2  ▒▒▒▒■■■■■■■■■■■■│▒▒▒▒■■■■            │  a row has ended; the next one takes its slot
               ──── steps ────▶

Equal prompts that follow each other, as several samples of one do, are read once and copied too.

When no row waits any more, the last slot's row moves into a free slot, so a step computes only rows that go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise, takewhile

import torch
from torch import Tensor

from weitune.generate.decode.cache import KeyValueCache
from weitune.generate.decode.choose import Chooser, choose
from weitune.generate.decode.decoder import StepDecoder
from weitune.generate.decode.draft import Draft, Speculation

_LEAST_SHARED = 8
"""A shorter common prefix is not worth a copy."""
_REFILLED = 4
"""Rows enter together when one of so many slots is free: reading a prompt takes as long as reading several."""
_LEAST_DRAFTED = 16
"""Tokens that may still follow for which a draft is worth making."""


@dataclass(slots=True)
class Row:
    """A prompt to be answered with at most ``limit`` tokens; ``number`` is the caller's."""

    number: int
    prompt: Sequence[int]
    limit: int
    chooser: Chooser
    tokens: list[int] = field(default_factory=list)
    """The answer so far, with the stop token that ended it."""

    @property
    def position(self) -> int:
        """Of the last token, which has not been read yet."""
        return len(self.prompt) + len(self.tokens) - 1


def decode_rows(
    decoder: StepDecoder,
    rows: Iterable[Row],
    stop_tokens: frozenset[int],
    slots: int,
    draft: Callable[[], Draft | None] = lambda: None,
) -> Iterator[tuple[Row, int]]:
    """Decode ``rows``, at most ``slots`` at a time, and yield each with every new token as it is chosen.

    The last row that goes on is decoded with ``draft``, which is called when there is a use for it.
    """
    waiting = list(rows)[::-1]
    slots = min(slots, len(waiting))
    cache = decoder.new_cache(slots)
    reader = _PromptReader(decoder, [row.prompt for row in waiting])
    active: list[Row] = []

    def goes_on(row: Row, token: int) -> bool:
        row.tokens.append(token)
        return token not in stop_tokens and len(row.tokens) < row.limit

    while active or waiting:
        if waiting and (slots - len(active)) * _REFILLED >= slots:
            entering = [waiting.pop() for _ in range(min(slots - len(active), len(waiting)))]
            logits = reader.read([row.prompt for row in entering], cache, len(active))
            first = list(zip(entering, choose([row.chooser for row in entering], logits), strict=True))
            slot_of = len(active)
            for offset, (row, token) in enumerate(first):
                if goes_on(row, token):
                    if len(active) != slot_of + offset:
                        cache.copy(cache, slot_of + offset, len(active), len(row.prompt))
                    active.append(row)
            yield from first
            continue
        if len(active) == 1 and not waiting:
            yield from _alone(decoder, active.pop(), cache, draft, goes_on)
            continue
        logits = decoder.step([row.tokens[-1] for row in active], [row.position for row in active], cache)
        chosen = list(zip(active, choose([row.chooser for row in active], logits), strict=True))
        for slot, (row, token) in reversed(list(enumerate(chosen))):  # a row that moves has been looked at
            if not goes_on(row, token):
                last = active.pop()
                if last is not row:
                    cache.copy(cache, len(active), slot, last.position)
                    active[slot] = last
        yield from chosen


def _alone(
    decoder: StepDecoder,
    row: Row,
    cache: KeyValueCache,
    draft: Callable[[], Draft | None],
    goes_on: Callable[[Row, int], bool],
) -> Iterator[tuple[Row, int]]:
    """Decode the row in the first slot to its end."""
    made = draft() if row.limit - len(row.tokens) >= _LEAST_DRAFTED else None
    speculation = Speculation(decoder, made, row.prompt) if made else None
    while True:
        if speculation is not None and speculation.pays:
            tokens = speculation.next(row.tokens, cache, row.chooser)
        else:
            tokens = iter(choose([row.chooser], decoder.step([row.tokens[-1]], [row.position], cache)))
        for token in tokens:
            goes = goes_on(row, token)
            yield row, token
            if not goes:
                return


class _PromptReader:
    """Reads prompts: how all of them begin is read once, and so are equal prompts that follow each other."""

    def __init__(self, decoder: StepDecoder, prompts: Sequence[Sequence[int]]) -> None:
        self._decoder = decoder
        self._length = common_prefix(prompts) if len(prompts) > 1 else 0
        if self._length < _LEAST_SHARED:
            self._length = 0
        self._shared: KeyValueCache | None = None
        if self._length:
            self._shared = decoder.new_cache(1)
            decoder.read([prompts[0][: self._length]], self._shared, 0)
        repeats = any(one == other for one, other in pairwise(prompts))
        self._kept = decoder.new_cache(1) if repeats else None
        self._last: tuple[Sequence[int], Tensor] | None = None
        """The prompt that was read last, in ``_kept``, and the logits (1, V) after it."""

    def read(self, prompts: Sequence[Sequence[int]], cache: KeyValueCache, first: int) -> Tensor:
        """Read ``prompts`` into the slots of ``cache`` from ``first`` on.

        Returns the logits (B, V) of the first token of each answer.
        """
        if self._kept is None:
            return self._read(prompts, cache, first)
        logits = []
        known = 0
        if self._last is not None:
            last, after = self._last
            known = sum(1 for _ in takewhile(lambda prompt: prompt == last, prompts))
            for slot in range(first, first + known):
                cache.copy(self._kept, 0, slot, len(last))
            logits.append(after.expand(known, -1))
        if known < len(prompts):
            logits.append(self._read_equal_once(prompts[known:], cache, first + known))
            self._kept.copy(cache, first + len(prompts) - 1, 0, len(prompts[-1]))
            self._last = prompts[-1], logits[-1][-1:]
        return torch.cat(logits)

    def _read_equal_once(self, prompts: Sequence[Sequence[int]], cache: KeyValueCache, first: int) -> Tensor:
        different = [list(equal) for _, equal in groupby(prompts)]
        logits = self._read([equal[0] for equal in different], cache, first)
        source = [at for at, equal in enumerate(different) for _ in equal]
        for at in reversed(range(len(prompts))):  # from the end: no slot is written before it has been copied
            if source[at] != at:
                cache.copy(cache, first + source[at], first + at, len(prompts[at]))
        return logits[source]

    def _read(self, prompts: Sequence[Sequence[int]], cache: KeyValueCache, first: int) -> Tensor:
        if self._shared is not None:
            for slot in range(first, first + len(prompts)):
                cache.copy(self._shared, 0, slot, self._length)
        return self._decoder.read([prompt[self._length :] for prompt in prompts], cache, first, self._length)


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all ``prompts`` begin with alike; each keeps at least one of its own."""
    alike = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False)))
    return min(alike, min(map(len, prompts)) - 1)
