"""What every request must pass before anything reads it: host, origin, key, size and time.

    Host      another name        403    stops pages whose own name points here (:mod:`.vllm.place`)
    Origin    another site        403    stops pages that post here directly (:mod:`.origins`)
    key       missing or wrong    401    on every path, if the server has a key
    body      too large           413    counted while it arrives, whatever its header says
              too slow            408

It needs nothing but ASGI's three values, so it is tested without a network.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from weitune.errors import InputError
from weitune.serve.asgi import ClientGone, Receive, Scope, header
from weitune.serve.errors import ApiError
from weitune.serve.tasks import within
from weitune.serve.vllm.place import HOST, ORIGIN, Place


@dataclass(frozen=True, slots=True)
class Guard:
    """Rules for requests. ``bound_to`` is the address the server listens at, ``key`` what clients must show."""

    bound_to: str = "127.0.0.1"
    key: str | None = None
    hosts: frozenset[str] = frozenset()
    """Other names under which the server may be asked for."""
    origins: frozenset[str] = frozenset()
    """Web sites whose pages may use the server, such as ``https://chat.example.org``; ``*`` for all."""
    body_bytes: int = 4 << 20
    body_seconds: float = 30

    def check(self, scope: Scope) -> None:
        """Raise ApiError unless the request's headers are in order."""
        self.check_place(scope)
        self.check_client(scope)

    def check_place(self, scope: Scope) -> None:
        """Raise ApiError unless the request names this server, and comes from no page of another site."""
        place = Place(self.bound_to, self.hosts, self.origins)
        refusal = place.refusal(header(scope, b"host"), header(scope, b"origin"))
        if refusal == HOST:
            raise ApiError(403, "serve.guard.host_not_allowed", code=refusal)
        if refusal == ORIGIN:
            raise ApiError(403, "serve.guard.origin_not_allowed", code=refusal)

    def check_client(self, scope: Scope) -> None:
        """Raise ApiError unless the request shows the key and announces a body that is not too large."""
        if self.key is not None and not _same(header(scope, b"authorization"), f"Bearer {self.key}"):
            raise ApiError(401, "serve.guard.wrong_key", code="invalid_api_key")
        for length in header(scope, b"content-length"):
            if not length.isdecimal() or int(length[:20]) > self.body_bytes:
                raise self._too_large()

    async def body(self, receive: Receive) -> bytes:
        """Return the whole body. Raises ApiError if it is too large or too slow, ClientGone if it breaks off."""
        try:
            return await within(self.body_seconds, self._read(receive))
        except asyncio.TimeoutError:
            raise ApiError(408, "serve.guard.body_too_slow", seconds=self.body_seconds) from None

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            if len(body) > self.body_bytes:
                raise self._too_large()
            if not message.get("more_body"):
                return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError(413, "serve.guard.body_too_large", most_bytes=self.body_bytes)


def host_name(text: str) -> str:
    """Return the name in an ``--allow-host``, as the Host header of a request has it.

    Raises InputError if it could never be one.
    """
    try:
        parts = urlsplit(f"//{text}")
        name = (parts.hostname or "").rstrip(".")
        ascii_name = name.encode("idna").decode() if parts.port != 0 else ""
    except ValueError:  # a port that is no number, or a part of the name that is too long
        ascii_name = ""
    if not ascii_name or set(text) & set("/@?#*\\") or text != text.strip():
        raise InputError("serve.guard.not_a_host", text=text)
    return ascii_name


def _same(given: list[str], expected: str) -> bool:
    shown = given[0] if len(given) == 1 else ""
    return hmac.compare_digest(hashlib.sha256(shown.encode()).digest(), hashlib.sha256(expected.encode()).digest())
