"""Answers from a running server that speaks the OpenAI protocol, such as ``weitune serve``."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any
from urllib.parse import urlsplit

from weitune.data.calls.protocol import StreamedCalls, with_call_ids
from weitune.data.conversation import Conversation
from weitune.data.show.convert import to_messages
from weitune.errors import InputError
from weitune.generate.constrain.response_format import response_format_of
from weitune.generate.openai_client import OpenAIClient, error_message
from weitune.generate.sampling import Sampling
from weitune.generate.sse import server_sent_events
from weitune.generate.stream import Answer
from weitune.messages import say

_TIMEOUT_SECONDS = 300
"""How long a server may be silent, waiting in its queue included."""
_OPTIONS = {"max_new_tokens": "max_tokens"}
"""What the protocol calls our options, where it has another name."""
_ALWAYS = ("max_new_tokens", "temperature")
"""Options that are sent even if they are at their default: servers have others."""
_BY_ITSELF = ("stop", "tool_calls")
"""Why an answer ends that is not cut."""
_VERSION = re.compile(r"/v\d+\Z")


class RemoteEngine:
    """A model on a server. It keeps its own context, so nothing of a long dialogue is dropped here."""

    context_tokens = None
    notes: Sequence[str] = ()

    def __init__(self, url: str, model: str, key: str | None = None) -> None:
        """Ask for ``model`` at ``url``, with ``/v1`` or without, or with the path of a request.

        Raises InputError if that is not an address.
        """
        self.model = model
        self._client = OpenAIClient(_with_version(url), key, timeout_seconds=_TIMEOUT_SECONDS)

    @property
    def about(self) -> str:
        return self._client.about

    def prompt_tokens(self, conversation: Conversation) -> int:
        """Return 0: only the server can tell, and it does when a conversation is too long."""
        return 0

    def stream(
        self, conversation: Conversation, sampling: Sampling | None = None, schema: Mapping[str, Any] | None = None
    ) -> RemoteStream:
        """Return the answer as a stream of text, which the server keeps to ``schema`` if there is one.

        The server is sent all that the protocol can carry: tools, calls, their results and reasoning.

        Raises InputError if the server refuses or cannot be reached.
        """
        sampling = sampling or Sampling()
        asked = [option for option in fields(sampling) if getattr(sampling, option.name) != option.default]
        names = dict.fromkeys([*_ALWAYS, *(option.name for option in asked)])
        body: dict[str, Any] = {
            "model": self.model,
            **_asked(conversation),
            "stream": True,
            **{_OPTIONS.get(name, name): getattr(sampling, name) for name in names},
        }
        if schema is not None:
            body["response_format"] = response_format_of(schema)
        return RemoteStream(self._client.post("/chat/completions", body))

    def models(self) -> list[str]:
        """Return the names of the models there are. Raises InputError if the server refuses or cannot be reached."""
        return self._client.models()


def engine_on_server(url: str, model: str | None, key: str | None = None) -> RemoteEngine:
    """Return the engine of ``model`` at ``url``, or of the only model there.

    Raises InputError if the server does not have it, has several and none is named, or cannot be reached.
    """
    known = RemoteEngine(url, "", key).models()
    engine = RemoteEngine(url, known[0] if model is None and len(known) == 1 else model or "", key)
    if model is None and len(known) != 1:
        raise InputError("generate.remote.several_models", about=engine.about, known=", ".join(known[:20]))
    if engine.model not in known:
        values = {"about": engine.about, "model": model, "known": ", ".join(known[:20])}
        raise InputError("generate.remote.has_no_model", **values)
    return engine


def _asked(conversation: Conversation) -> dict[str, Any]:
    """Return the fields of a request that are the conversation; weights are for training alone."""
    turns = tuple(turn._replace(weight=1.0) for turn in with_call_ids(conversation.turns))
    return to_messages(replace(conversation, turns=turns))


class RemoteStream(Iterator[str]):
    """One answer of a server's, as text; the calls in it are only in :attr:`answer`."""

    length_tokens = None

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self._events = server_sent_events(response)
        self._texts: list[str] = []
        self._calls = StreamedCalls()
        self._stopped = self._thinking = self._closed = False
        self.complete = False
        """Whether the server has said why the answer ends."""

    def __next__(self) -> str:
        """Return the next piece of text, never an empty one.

        Raises InputError if the server reports an error or does not say how the answer ends.
        """
        while (event := self._next_event()) is not None:
            if "error" in event:
                raise InputError("generate.remote.server_broke_off", message=error_message(json.dumps(event)))
            for choice in event.get("choices", ()):
                self._stopped = self._stopped or choice.get("finish_reason") in _BY_ITSELF
                self.complete = self.complete or choice.get("finish_reason") is not None
                delta = choice.get("delta") or {}
                self._calls.add(delta.get("tool_calls") or ())
                if text := self._text_of(delta):
                    self._texts.append(text)
                    return text
        if not (self.complete or self._closed):
            raise InputError("generate.remote.server_broke_off", message=say("generate.remote.no_end"))
        raise StopIteration

    def _next_event(self) -> dict[str, Any] | None:
        """Return the next event; None after the last. Raises InputError if it breaks off."""
        try:
            return next(self._events, None)
        except ValueError as error:
            raise InputError("generate.remote.server_broke_off", message=error) from None

    def _text_of(self, delta: Mapping[str, Any]) -> str:
        """Return what ``delta`` adds, with reasoning in tags before the content, as engines here have it."""
        reasoning, content = delta.get("reasoning_content") or "", delta.get("content") or ""
        opening = "<think>\n" if reasoning and not self._thinking else ""
        follows = content or delta.get("tool_calls")
        closing = "\n</think>\n\n" if follows and (self._thinking or reasoning) else ""
        self._thinking = bool(self._thinking or reasoning) and not closing
        return f"{opening}{reasoning}{closing}{content}"

    def close(self) -> None:
        self._closed = True
        self._events.close()
        self._response.close()

    @property
    def answer(self) -> Answer:
        """The answer as far as it has been read; its tokens are not known here.

        It is empty if a call in it cannot be read: without the call it would be another answer.
        """
        calls = self._calls.read()
        if calls is None:
            return Answer("", (), self._stopped)
        return Answer("".join(self._texts), (), self._stopped, calls)


def _with_version(url: str) -> str:
    """Return the address before ``/models`` and ``/chat/completions``, with a scheme and a version: ``…/v1``."""
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
    except ValueError:  # the client says that it is no address
        return url
    path = parts.path.rstrip("/")
    for request in ("/chat/completions", "/completions", "/models"):
        path = path.removesuffix(request)
    return parts._replace(path=path if _VERSION.search(path) else f"{path}/v1", query="", fragment="").geturl()
