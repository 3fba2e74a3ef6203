"""The one client of servers that speak the OpenAI protocol: for ``weitune chat --url`` and for a judge of answers."""

from __future__ import annotations

import http.client
import json
import urllib.request
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from weitune.errors import InputError
from weitune.messages import say

_MOST_ERROR_BYTES = 1 << 16
_REFUSALS = {
    http.client.UNAUTHORIZED: "generate.openai_client.key_refused",
    http.client.FORBIDDEN: "generate.openai_client.key_refused",
    http.client.NOT_FOUND: "generate.openai_client.not_found",
    http.client.TOO_MANY_REQUESTS: "generate.openai_client.busy",
}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: they turn POST into GET, and would take the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


class OpenAIClient:
    """Requests to the server at ``url``, such as ``http://localhost:8000/v1``."""

    def __init__(self, url: str, key: str | None = None, *, timeout_seconds: float, proxies: bool = False) -> None:
        """``timeout_seconds`` is how long the server may be silent; ``proxies``: go through those of the environment.

        Raises InputError if ``url`` is not an address with ``http://`` or ``https://``.
        """
        try:
            parts = urlsplit(url)
            valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise InputError("generate.openai_client.not_an_address", url=url)
        self.host = parts.netloc.rpartition("@")[2]
        self.origin = f"{parts.scheme}://{self.host}"
        self.path = parts.path.rstrip("/")
        self._key, self._timeout_seconds = key, timeout_seconds
        through = urllib.request.ProxyHandler(None if proxies else {})
        self._opener = urllib.request.build_opener(through, _NoRedirect)

    @property
    def about(self) -> str:
        return say("generate.openai_client.about", host=self.host)

    def get(self, path: str) -> http.client.HTTPResponse:
        """Return the open response to a GET. Raises InputError if the server refuses or cannot be reached."""
        return self._open(path, None)

    def post(self, path: str, body: Any) -> http.client.HTTPResponse:
        """Return the open response to a POST of JSON. Raises InputError if the server refuses or cannot be reached."""
        return self._open(path, json.dumps(body).encode())

    def models(self) -> list[str]:
        """Return the names of the server's models. Raises InputError if it refuses, or answers something else."""
        try:
            with self.get("/models") as response:
                return [str(model["id"]) for model in json.loads(response.read())["data"]]
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            raise InputError(
                "generate.openai_client.other_protocol",
                about=self.about,
                path=self.path,
                error=error,
                origin=self.origin,
            ) from error

    def _open(self, path: str, payload: bytes | None) -> http.client.HTTPResponse:
        headers = {
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
            "User-Agent": "weitune",
        }
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self.origin}{self.path}{path}", payload, headers)  # noqa: S310  (checked above)
        try:
            response: http.client.HTTPResponse = self._opener.open(request, timeout=self._timeout_seconds)
        except HTTPError as error:
            raise self._refused(error, path) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise InputError("generate.openai_client.unreachable", about=self.about, error=reason) from error
        return response

    def _refused(self, error: HTTPError, path: str) -> InputError:
        with error:
            message = error_message(error.read(_MOST_ERROR_BYTES).decode(errors="replace"))
        message_id = _REFUSALS.get(error.code) or "generate.openai_client.refused"
        if error.code == http.client.NOT_FOUND and path == "/models":
            message_id = "generate.openai_client.no_such_path"
        where = f"{self.path}{path}"
        return InputError(
            message_id, about=self.about, status=error.code, where=where, message=message, origin=self.origin
        )


def error_message(text: str) -> str:
    """Return what the body of an error says, in the protocol's form or in another."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200] or say("generate.openai_client.no_reason")
