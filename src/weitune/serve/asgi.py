"""The values of ASGI: what a request is, what is received of it, and what is sent back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]


class ClientGone(Exception):  # noqa: N818  (an event, not a fault)
    """The client closed the connection."""


def header(scope: Scope, name: bytes) -> list[str]:
    """Return every value of a header of the request."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]
