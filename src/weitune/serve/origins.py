"""CORS: which web sites' pages may use the server, and the headers that tell a browser so.

    page of https://chat.example.org ── browser ──▶ OPTIONS, with Origin, without the key     204, what it may send
                                                ──▶ POST, with Origin and the key             the answer

A browser shows an answer to a page of another site only if it has ``Access-Control-Allow-Origin``. Pages of allowed
sites get that header on every answer, streams and errors included; pages of other sites get 403 without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from weitune.errors import InputError
from weitune.serve.asgi import Headers, Scope, header
from weitune.serve.vllm.place import ALL, allows

NULL = "null"
"""The origin of pages from files, and of any site's sandboxes."""
_PORTS = {"http": 80, "https": 443}
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::\d{1,5})?")
_METHODS = b"GET, POST"
_ALWAYS_SENT = ("authorization", "content-type")
_SENT = re.compile(
    r"accept|accept-language|api-key|authorization|baggage|cache-control|content-language|content-type|http-referer|"
    r"idempotency-key|last-event-id|openai-[\w-]+|pragma|traceparent|tracestate|user-agent|x-api-key|x-client-[\w-]+|"
    r"x-request-id|x-requested-with|x-stainless-[\w-]+|x-title",
    re.ASCII,
)
"""Headers that clients of the OpenAI API send from pages. The server itself reads only ``authorization``."""
_SECONDS = b"600"
"""How long a browser may remember the answer to a preflight."""
_PRIVATE = b"access-control-request-private-network"


def read_origins(given: Iterable[str]) -> frozenset[str]:
    """Return the values of ``--allow-origin`` as browsers write origins. Raises InputError if one is not an origin."""
    return frozenset(text if text == ALL else _origin(text) for text in given)


def cors_headers(allowed: frozenset[str], scope: Scope) -> Headers:
    """Return the headers for the browser that every answer to this request has, errors included."""
    if not allowed:
        return ()
    vary = (b"vary", b"Origin")  # a shared cache must not give one site's answer to another
    origins = header(scope, b"origin")
    if len(origins) != 1 or not allows(allowed, origins[0]):
        return (vary,)
    return (
        vary,
        (b"access-control-allow-origin", origins[0].encode("latin-1")),
        (b"access-control-expose-headers", b"Retry-After"),
    )


def preflight_headers(allowed: frozenset[str], scope: Scope) -> Headers:
    """Return the further headers for a preflight of an allowed site; none for others, whose browser then stops."""
    if not all(allows(allowed, origin) for origin in header(scope, b"origin")):
        return ()
    asked = ",".join(header(scope, b"access-control-request-headers"))
    names = (name.strip().lower() for name in asked.split(","))
    sent = dict.fromkeys([*_ALWAYS_SENT, *(name for name in names if _SENT.fullmatch(name))])
    private = any(value.lower() == "true" for value in header(scope, _PRIVATE))
    return (
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", ", ".join(sent).encode()),
        (b"access-control-max-age", _SECONDS),
        *([(b"access-control-allow-private-network", b"true")] if private else []),
    )


def is_preflight(scope: Scope) -> bool:
    """Return whether this is a preflight: a browser asks what a page of another site may send."""
    named = header(scope, b"origin") and header(scope, b"access-control-request-method")
    return scope["method"] == "OPTIONS" and bool(named)


def _origin(text: str) -> str:
    """Return an ``--allow-origin`` as browsers write it. Raises InputError if no browser would send it."""
    if text == NULL:
        return text
    origin = ""
    try:
        parts = urlsplit(text.removesuffix("/"))
        host, port = parts.hostname or "", parts.port
        host = f"[{host}]" if ":" in host else host.encode("idna").decode()
        written = f":{port}" if port not in {None, _PORTS.get(parts.scheme)} else ""
        whole = not (parts.path or parts.query or parts.fragment or parts.username is not None)
        origin = f"{parts.scheme}://{host}{written}" if whole else ""
    except ValueError:
        pass
    if not _ORIGIN.fullmatch(origin):
        raise InputError("serve.origins.not_an_origin", text=text)
    return origin
