"""Tasks that run side by side and end together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

from weitune.serve.asgi import ClientGone, Receive

T = TypeVar("T")


async def unless_gone(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Run ``work``, but cancel it and raise ClientGone if the client disconnects."""
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        working.result()
    finally:
        await _ended(working, listening)


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Return what ``work`` returns. Raises asyncio.TimeoutError, and cancels it, if it takes longer.

    ``asyncio.wait_for`` ignores a cancellation that comes at the moment at which ``work`` ends (CPython's issue 86296;
    before Python 3.12).
    """
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({working}, timeout=seconds)
        if not working.done():
            raise asyncio.TimeoutError
        return working.result()
    finally:
        if not working.done():
            await _ended(working)


async def merged(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Yield the items of all ``sources`` as they come, each with its source's number. An error in one ends all."""
    queue: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue()

    async def read(number: int, source: AsyncGenerator[T, None]) -> None:
        try:
            async for item in source:
                queue.put_nowait((number, item))
            queue.put_nowait(None)
        except Exception as error:  # noqa: BLE001  (raised again below)
            queue.put_nowait(error)
        finally:
            await source.aclose()

    tasks = [asyncio.ensure_future(read(number, source)) for number, source in enumerate(sources)]
    try:
        open_sources = len(tasks)
        while open_sources:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                open_sources -= 1
            else:
                yield item
    finally:
        await _ended(*tasks)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    waiting: Awaitable[Any] = asyncio.gather(*tasks, return_exceptions=True)
    await waiting
