"""Answers from a running server that speaks the OpenAI protocol, such as ``weitune serve``."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any
from urllib.parse import urlsplit

from weitune.data.conversation import Conversation
from weitune.errors import InputError
from weitune.generate.sampling import Sampling
from weitune.generate.sse import server_sent_events
from weitune.generate.stream import Answer

_SECONDS = 300
"""How long a server may be silent, waiting in its queue included."""
_OPTIONS = {"max_new_tokens": "max_tokens"}
"""What the protocol calls our options, where it has another name."""
_ALWAYS = ("max_new_tokens", "temperature")
"""Options that are sent even if they are at their default: servers have others."""
_VERSION = re.compile(r"/v\d+\Z")
_CURE = "Check the address, and that the server runs:  weitune serve RUN"


class RemoteEngine:
    """A model on a server. It keeps its own context, so nothing of a long dialogue is dropped here."""

    context_tokens = None
    notes: Sequence[str] = ()

    def __init__(self, url: str, model: str, key: str | None = None) -> None:
        """Ask for ``model`` at ``url``, with ``/v1`` or without, or with the path that is asked for.

        Raises InputError if that is not an address.
        """
        parts = urlsplit(url if "//" in url else f"http://{url}")
        try:
            known = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            known = False
        if not known:
            raise InputError("generate.remote.not_address_server", url=url)
        self.model, self._url, self._key = model, parts, key
        self._path = _base_path(parts.path)

    @property
    def about(self) -> str:
        """Where the answers come from."""
        return f"the server at {self._url.netloc.rpartition('@')[2]}"

    def prompt_tokens(self, conversation: Conversation) -> int:
        """Return 0: only the server can tell, and it does when a conversation is too long."""
        return 0

    def stream(self, conversation: Conversation, sampling: Sampling | None = None) -> RemoteStream:
        """Return the answer as a stream of text. Raises InputError if the server refuses or cannot be reached."""
        sampling = sampling or Sampling()
        asked = [option for option in fields(sampling) if getattr(sampling, option.name) != option.default]
        names = dict.fromkeys([*_ALWAYS, *(option.name for option in asked)])
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in conversation.turns],
            "stream": True,
            **{_OPTIONS.get(name, name): getattr(sampling, name) for name in names},
        }
        return RemoteStream(*self._post("/chat/completions", body))

    def models(self) -> list[str]:
        """Return the names of the models there are. Raises InputError if the server refuses or cannot be reached."""
        connection, response = self._request("GET", "/models", None)
        try:
            return [str(model["id"]) for model in json.loads(response.read())["data"]]
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            raise InputError(
                "generate.remote.does_not_speak_openai",
                about=self.about,
                path=self._path,
                error=error,
                address_fix=self._address_fix,
            ) from error
        finally:
            connection.close()

    def _fix(self, status: int, path: str) -> str:
        """Return what to do about a refusal."""
        if status in {http.client.UNAUTHORIZED, http.client.FORBIDDEN}:
            return "Give the server's key by --api-key or WEITUNE_API_KEY."
        if status == http.client.NOT_FOUND and path == "/models":
            return self._address_fix
        return "Wait a moment and ask again." if status == http.client.TOO_MANY_REQUESTS else "Change what it names."

    @property
    def _address_fix(self) -> str:
        return f"Give the address up to the version, such as {self._url.scheme}://{self._url.netloc.rpartition('@')[2]}/v1."

    def _post(self, path: str, body: Any) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        return self._request("POST", path, json.dumps(body).encode())

    def _request(
        self, method: str, path: str, payload: bytes | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(self._url.hostname), self._url.port, timeout=_SECONDS)
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            connection.request(method, self._path + path, payload, headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise InputError("generate.remote.cannot_reached", about=self.about, error=error) from error
        if response.status != http.client.OK:
            message = _message(response.read(1 << 16).decode(errors="replace"))
            connection.close()
            where = f" for {self._path}{path}" if response.status == http.client.NOT_FOUND else ""
            raise InputError(
                "generate.remote.refuses",
                about=self.about,
                status=response.status,
                where=where,
                message=message,
                fix=self._fix(response.status, path),
            )
        return connection, response


class RemoteStream(Iterator[str]):
    """One answer of a server's, as text."""

    length_tokens = None

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        """Read the events of ``response``."""
        self._connection, self._response = connection, response
        self._events = server_sent_events(connection, response)
        self._texts: list[str] = []
        self._stopped = False

    def __next__(self) -> str:
        """Return the next piece of text, never an empty one. Raises InputError if the server reports an error."""
        for event in self._events:
            if "error" in event:
                raise InputError("generate.remote.server_broke_off", message=_message(json.dumps(event)))
            for choice in event.get("choices", ()):
                self._stopped = self._stopped or choice.get("finish_reason") == "stop"
                if text := (choice.get("delta") or {}).get("content"):
                    self._texts.append(text)
                    return str(text)
        raise StopIteration

    def close(self) -> None:
        """End generation by closing the connection."""
        self._events.close()
        self._response.close()
        self._connection.close()

    @property
    def answer(self) -> Answer:
        """The answer as far as it has been read; its tokens are not known here."""
        return Answer("".join(self._texts), (), self._stopped)


def _message(text: str) -> str:
    """Return what an error says, in the protocol's form or another."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200] or "without a reason"


def _base_path(path: str) -> str:
    """Return the path that ``/models`` and ``/chat/completions`` are put after; it ends with a version."""
    path = path.rstrip("/")
    for asked in ("/chat/completions", "/completions", "/models"):
        path = path.removesuffix(asked)
    return path if _VERSION.search(path) else f"{path}/v1"
