"""What a second signal means."""

from __future__ import annotations

import os
import signal

import pytest

from weitune.training.signals import StopRequest


class _EndedError(Exception):
    """In place of the end of this process."""


@pytest.fixture
def request_(monkeypatch: pytest.MonkeyPatch) -> StopRequest:
    def end(code: int) -> None:
        raise _EndedError(code)

    monkeypatch.setattr(os, "_exit", end)
    request = StopRequest()
    request.finishing = True
    return request


def test_a_sigterm_that_comes_twice_at_once_is_one(request_: StopRequest) -> None:
    """A service manager signals all processes, and the launcher forwards what it got."""
    request_.heed(signal.SIGTERM, None)
    request_.heed(signal.SIGTERM, None)
    assert request_.reason == "SIGTERM"
    request_._again = 0.0  # later
    with pytest.raises(_EndedError):
        request_.heed(signal.SIGTERM, None)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_after_a_stop_ends_at_once(first: signal.Signals, request_: StopRequest) -> None:
    request_.heed(first, None)
    with pytest.raises(_EndedError):
        request_.heed(signal.SIGINT, None)
