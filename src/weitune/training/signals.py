"""What a run does when it is asked to stop.

    SIGINT, SIGTERM   while training: finish the step at hand, write a checkpoint, end with 130
                      before the first step: end at once with 130; nothing has been computed that could be lost
                      a second time: end at once with 130; what has a name on the disk is complete at any instant
                      (SIGTERM within a second of the first: the same stop, from a service manager and a launcher)
    SIGUSR1           write a checkpoint after the step at hand and go on (a notice that the machine may go)
    a file `stop`     in the folder of the run or the search, made by the user: as SIGTERM

Python runs signal handlers in the main thread only, between two of its instructions.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from weitune.messages import say
from weitune.progress import Phase, watching_phases
from weitune.run.lock import lock_state
from weitune.run.names import STOP

INTERRUPTED = 130
_STOP = (signal.SIGINT, signal.SIGTERM)
_SAME_SECONDS = 1.0
_PAUSE_SECONDS = 0.25
"""Between two looks for the stop file."""
_OWN = signal.SIGTERM if hasattr(signal, "pthread_kill") else signal.SIGINT
"""The signal by which another thread interrupts the main one."""
_NOTICE: signal.Signals | None = getattr(signal, "SIGUSR1", None)  # Windows has none


class StopRequest:
    """Whether a stop or a checkpoint has been asked for. A program may set both from any thread."""

    def __init__(self, announce: Callable[[str], None] | None = None, began: float | None = None) -> None:
        """``announce`` is called with what a signal will do, in its handler; the work ``began`` now if not given."""
        self.reason = ""
        """Who asked for a stop, such as ``SIGTERM``; empty if nobody did."""
        self.checkpoint = False
        """Whether a checkpoint is wanted after the step at hand."""
        self.began = time.time() if began is None else began
        """A stop file that is older was meant for another process."""
        self.finishing = False
        """Whether a stop waits for the step at hand."""
        self.handles_signals = False
        self._announce = announce or (lambda line: None)
        self._asked = ""
        self._again = 0.0
        """Until when a second SIGTERM is the first one again."""

    def __bool__(self) -> bool:
        return bool(self.reason)

    def stop(self, reason: str = "request") -> None:
        """Ask for a stop after the step at hand."""
        self.reason = reason

    def interrupt(self, reason: str) -> None:
        """Ask for a stop as a signal does, from another thread than the main one."""
        if not self.handles_signals:
            self.stop(reason)
        elif not self:
            self._asked = reason
            _signal_main_thread()

    def check(self, phase: Phase | None, done: int | None, total: int | None) -> None:
        """Raise KeyboardInterrupt if what is done should have ended: in a thread that downloads, no signal does."""
        if self and not self.finishing:
            raise KeyboardInterrupt

    @contextmanager
    def finishing_steps(self) -> Iterator[None]:
        """While the block runs, a first signal waits for the step at hand; outside, it ends what is done at once.

        Raises KeyboardInterrupt instead of beginning if a stop was asked for before.
        """
        self.finishing = True
        try:
            if self:
                raise KeyboardInterrupt
            yield
        finally:
            self.finishing = False

    def heed(self, number: int, frame: FrameType | None) -> None:
        asked = ""
        if self._asked and number == _OWN:  # from `interrupt`, and no second request
            asked, self._asked = self._asked, ""
            if self.reason:
                return
        if self.reason:
            if self.reason == signal.Signals(number).name == "SIGTERM" and time.monotonic() < self._again:
                return  # one stop that comes twice: from a service manager to all processes, and from the launcher
            os._exit(INTERRUPTED)  # no clean-up: whatever a clean-up would wait for may be what hangs
        self.reason, self._again = asked or signal.Signals(number).name, time.monotonic() + _SAME_SECONDS
        if not self.finishing:
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
    handled, request.handles_signals = request.handles_signals, True
    try:
        with watching_phases(request.check):
            yield request
    finally:
        request.handles_signals = handled
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def heeding_stop_file(folder: Path, request: StopRequest, *, main: bool = True, alone: bool = True) -> Iterator[None]:
    """Let the stop file in ``folder``, which need not be there yet, set ``request`` while the block runs.

    A file that is older than ``request`` is not for this process. Of several processes that are not ``alone``, all
    heed the file until they train, and the ``main`` one after that; it deletes the file, and the folder with it if
    that was made for the file.
    """
    file, ended = folder / STOP, threading.Event()
    left = _changed(file)
    if left is not None and left < request.began and main and not lock_state(folder).held:
        with suppress(OSError):
            file.unlink()
    reason = say("training.signals.stop_file", file=STOP)

    def watch() -> None:
        while not ended.wait(_PAUSE_SECONDS) and (main or not request.finishing):
            made = _changed(file)
            if made is not None and (made != left or made >= request.began):
                request.interrupt(reason)
                return

    watcher = threading.Thread(target=watch, name="stop file", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        if main and request.reason == reason:
            if not alone:
                time.sleep(2 * _PAUSE_SECONDS)  # the other processes look for it, too
            with suppress(OSError):
                file.unlink()
                folder.rmdir()  # which only an empty one lets happen


def _changed(file: Path) -> float | None:
    """Return when ``file`` was last changed, in seconds since the epoch; None if it is not there."""
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def _signal_main_thread() -> None:
    """Have the main thread handle a signal as soon as it can, even if it waits for something."""
    main = threading.main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, _OWN)
    else:  # Windows
        _thread.interrupt_main(_OWN)
