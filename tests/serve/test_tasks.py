"""Tasks that run side by side: whatever the moment at which a client disconnects, its answer ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.limits import HANG_SECONDS
from weitune.serve.asgi import ClientGone
from weitune.serve.response import Response
from weitune.serve.tasks import unless_gone, within

TURNS = range(6)
"""Of the event loop, more than there are between the end of a piece of work and the task that waits for it."""


async def after(turns: int, do: Callable[[], object]) -> None:
    """Call ``do`` in a later turn of the event loop."""
    for _ in range(turns):
        await asyncio.sleep(0)
    do()


@pytest.mark.parametrize("sent_after", TURNS)
@pytest.mark.parametrize("gone_after", TURNS)
def test_a_client_that_goes_as_a_part_is_sent_ends_its_answer(sent_after: int, gone_after: int) -> None:
    async def go() -> None:
        sent, gone, next_part = asyncio.Event(), asyncio.Event(), asyncio.Event()
        goes_on = False

        async def send(message: Any) -> None:
            await sent.wait()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def answer() -> None:
            nonlocal goes_on
            await Response(send).event({"a": "part"})
            await next_part.wait()
            goes_on = True

        answering = asyncio.ensure_future(unless_gone(answer(), receive))
        await after(10, lambda: None)
        await asyncio.gather(after(sent_after, sent.set), after(gone_after, gone.set), after(50, next_part.set))
        with pytest.raises(ClientGone):
            await answering
        assert not goes_on

    asyncio.run(go())


def test_work_within_its_time_gives_its_result_or_its_error() -> None:
    async def work(fails: bool) -> int:
        await asyncio.sleep(0)
        if fails:
            raise ValueError("no")
        return 7

    assert asyncio.run(within(HANG_SECONDS, work(fails=False))) == 7
    with pytest.raises(ValueError, match="no"):
        asyncio.run(within(HANG_SECONDS, work(fails=True)))


def test_work_that_takes_longer_is_ended_before_that_is_told() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.sleep(HANG_SECONDS)
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(within(0.01, work()))
    assert ended
