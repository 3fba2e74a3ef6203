"""Stop signals: the first asks a run to stop after the step at hand, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130


class StopRequest:
    """Whether a stop has been asked for, and by which signal."""

    def __init__(self) -> None:
        """Begin with none."""
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        """Return whether to stop."""
        return self.signal is not None

    def heed(self, number: int, frame: FrameType | None) -> None:
        """Take note of the first signal; leave at once on the second. Only finished checkpoints exist, so none is lost."""
        if self.signal is not None:
            os._exit(INTERRUPTED)
        self.signal = signal.Signals(number)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM while the block runs. Python allows it in the main thread only; elsewhere none come."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.heed) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
