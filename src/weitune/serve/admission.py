"""Admission: which answers are generated now, which wait, and which are refused with 429."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from weitune.serve.errors import ApiError


class Admission:
    """``slots`` answers at once, ``queue`` more waiting in order of arrival; any more are refused with 429."""

    def __init__(self, slots: int, queue: int) -> None:
        self.slots, self.queue = slots, queue
        self.running = 0
        """Answers that hold a slot."""
        self._present = 0
        self._free = asyncio.Semaphore(slots)

    @property
    def waiting(self) -> int:
        return self._present - self.running

    @contextmanager
    def admitted(self, answers: int) -> Iterator[None]:
        """Admit a request for ``answers`` answers. Raises ApiError if there is no room for all of them."""
        if answers > self.slots + self.queue:  # there never will be
            raise ApiError(400, "serve.admission.never", answers=answers, most=self.slots + self.queue)
        if self._present + answers > self.slots + self.queue:
            raise ApiError(429, "serve.admission.busy", code="rate_limit_exceeded")
        self._present += answers
        try:
            yield
        finally:
            self._present -= answers

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        async with self._free:
            self.running += 1
            try:
                yield
            finally:
                self.running -= 1
