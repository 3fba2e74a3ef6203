"""What a run does when it is asked to stop.

    SIGINT, SIGTERM   while training: finish the step at hand, write a checkpoint, end with 130
                      before the first step: end at once with 130; nothing has been computed that could be lost
                      a second time: end at once with 130; what has a name on the disk is complete at any instant
    SIGUSR1           write a checkpoint after the step at hand and go on (a notice that the machine may go)

Python runs signal handlers in the main thread only, between two of its instructions.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from weitune.messages import say

INTERRUPTED = 130
_STOP = (signal.SIGINT, signal.SIGTERM)
_NOTICE: signal.Signals | None = getattr(signal, "SIGUSR1", None)  # Windows has none


class StopRequest:
    """Whether a stop or a checkpoint has been asked for. A program may set both from any thread."""

    def __init__(self, announce: Callable[[str], None] | None = None) -> None:
        """``announce`` is called with what a signal will do, in the signal's handler."""
        self.reason = ""
        """Who asked for a stop, such as ``SIGTERM``; empty if nobody did."""
        self.checkpoint = False
        """Whether a checkpoint is wanted after the step at hand."""
        self._announce = announce or (lambda line: None)
        self._training = False

    def __bool__(self) -> bool:
        return bool(self.reason)

    def stop(self, reason: str = "request") -> None:
        """Ask for a stop after the step at hand."""
        self.reason = reason

    @contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """While the block runs, a first signal waits for the step at hand; outside, it ends what is done at once.

        Raises KeyboardInterrupt instead of beginning if a stop was asked for before.
        """
        self._training = True
        try:
            if self:
                raise KeyboardInterrupt
            yield
        finally:
            self._training = False

    def heed(self, number: int, frame: FrameType | None) -> None:
        if self.reason:
            os._exit(INTERRUPTED)  # no clean-up: whatever a clean-up would wait for may be what hangs
        self.reason = signal.Signals(number).name
        if not self._training:
            raise KeyboardInterrupt
        self._announce(say("training.signals.stopping", signal=self.reason))

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a notice: a checkpoint is wanted."""
        self.checkpoint = True
        self._announce(say("training.signals.checkpoint", signal=signal.Signals(number).name))


@contextmanager
def stop_requests(request: StopRequest | None = None) -> Iterator[StopRequest]:
    """Let signals set ``request``, or a new one, while the block runs; in the main thread only."""
    request = StopRequest() if request is None else request
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.heed) for number in _STOP}
    if _NOTICE is not None:
        before[_NOTICE] = signal.signal(_NOTICE, request.note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
