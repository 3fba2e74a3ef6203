"""The ASGI application: its paths, and how a request becomes a reply (:mod:`.http` connects it to the network).

    GET   /health               {"status": "ok"}
    GET   /v1/models            the models
    GET   /metrics              counts, in Prometheus' format
    POST  /v1/chat/completions  answers, whole or streamed
    POST  /v1/completions       texts continued as they are
    POST  /v1/responses         answers in the newer form of the protocol
    OPTIONS, any path           what pages of allowed sites may send (CORS)

A client that disconnects is noticed at once, whether its answer is streamed or not: one task waits for that while
another answers, and whichever ends first cancels the other.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

from weitune.data.calls.reader import Said
from weitune.export.llama_models import LlamaModel
from weitune.serve.answers.answering import Answering, FramedRequest
from weitune.serve.answers.part import Part
from weitune.serve.asgi import ClientGone, Receive, Scope, Send
from weitune.serve.errors import ApiError
from weitune.serve.guard import Guard
from weitune.serve.metrics import Metrics
from weitune.serve.origins import cors_headers, is_preflight, preflight_headers
from weitune.serve.replies.completion_json import ChatReply, Reply, usage_of
from weitune.serve.replies.responses_json import ResponsesReply
from weitune.serve.replies.text_json import TextReply
from weitune.serve.requests.request import ChatRequest, Limits, parse_request
from weitune.serve.requests.responses import chat_body
from weitune.serve.requests.text import parse_text_request
from weitune.serve.response import Response
from weitune.serve.tasks import merged, unless_gone
from weitune.serve.unread import closing

_GONE = 499
_ALLOW = {"GET": b"GET, HEAD", "POST": b"POST"}
_EXTRA_REQUESTS = 256
"""Requests that may be open besides those for answers; any more would cost memory and get 503."""
Handler = Callable[[Receive, Response], Awaitable[None]]


class App:
    """Serves ``models``, by their names, through ``answering``."""

    def __init__(self, models: Mapping[str, LlamaModel], answering: Answering, guard: Guard, limits: Limits) -> None:
        self._models, self._answering, self._guard, self._limits = models, answering, guard, limits
        self._metrics = Metrics(answering.admission)
        for model in models.values():  # so that no request waits for it
            answering.framings.of(model.framing)
        self._open = 0
        self._routes: dict[str, tuple[str, Handler]] = {
            "/health": ("GET", self._health),
            "/v1/models": ("GET", self._list_models),
            "/metrics": ("GET", self._show_metrics),
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._continue),
            "/v1/responses": ("POST", self._respond),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever is wrong with it."""
        if scope["type"] != "http":
            return
        receive, send = closing(scope, receive, send)
        response = Response(send, headers=cors_headers(self._guard.origins, scope))
        status = _GONE
        self._open += 1
        try:
            status = await self._answer(scope, receive, response)
        except ApiError as error:
            status = error.status
            await self._refuse(response, error)
        except ClientGone:
            pass
        except asyncio.CancelledError:  # the server ends
            status = 503
            await self._refuse(response, ApiError(503, "serve.app.stopping", code="stopping"))
        except Exception:
            status = 500
            logging.getLogger(__name__).exception("a request could not be answered; this is a fault in weitune")
            await self._refuse(response, ApiError(500, "serve.app.failed"))
        finally:
            self._open -= 1
            self._metrics.finished(status)

    async def _answer(self, scope: Scope, receive: Receive, response: Response) -> int:
        """Answer a request and return the status. Raises ApiError if it is refused."""
        admission = self._answering.admission
        if self._open > admission.slots + admission.queue + _EXTRA_REQUESTS:
            raise ApiError(503, "serve.app.too_many_open", code="overloaded")
        self._guard.check_place(scope)
        if is_preflight(scope):  # it never carries a key
            await response.nothing(preflight_headers(self._guard.origins, scope))
            return 204
        self._guard.check_client(scope)
        await self._handler(scope)(receive, response)
        return 200

    async def _refuse(self, response: Response, error: ApiError) -> None:
        with suppress(ClientGone):
            await response.error(error)

    def _handler(self, scope: Scope) -> Handler:
        path: str = scope["path"].removeprefix(scope.get("root_path", "")) or "/"  # of an application it is mounted in
        if path in self._routes:
            method, handler = self._routes[path]
        elif path.startswith("/v1/models/") and path.strip("/") != "v1/models":
            method, handler = "GET", self._model_named(path.removeprefix("/v1/models/"))
        else:
            raise self._no_such_path(path)
        if scope["method"] not in {method, "HEAD" if method == "GET" else method}:
            raise ApiError(
                405, "serve.app.wrong_method", path=path[:100], method=method, headers=((b"allow", _ALLOW[method]),)
            )
        return handler

    def _no_such_path(self, path: str) -> ApiError:
        meant = next((known for known in self._routes if _plain(known) == _plain(path)), None)
        if meant is None and _plain(path).startswith("models/"):
            meant = "/v1/models/NAME"
        if meant is None:
            return ApiError(404, "serve.app.no_such_path", path=path[:100], known=", ".join(self._routes))
        return ApiError(404, "serve.app.no_such_path_but", path=path[:100], meant=meant)

    async def _health(self, receive: Receive, response: Response) -> None:
        await response.json(200, {"status": "ok"})

    async def _list_models(self, receive: Receive, response: Response) -> None:
        await response.json(200, {"object": "list", "data": [_model(name) for name in self._models]})

    def _model_named(self, name: str) -> Handler:
        if name not in self._models:
            meant = name.rstrip("/")
            message_id = "serve.app.no_such_model_but" if meant in self._models else "serve.app.no_such_model"
            raise ApiError(404, message_id, name=name[:100], meant=meant, param="model", code="model_not_found")
        return lambda receive, response: response.json(200, _model(name))

    async def _show_metrics(self, receive: Receive, response: Response) -> None:
        await response.text(200, self._metrics.text(), "text/plain; version=0.0.4; charset=utf-8")

    async def _chat(self, receive: Receive, response: Response) -> None:
        body = await self._guard.body(receive)
        request = parse_request(_parsed(body), self._models, self._limits)
        await self._reply([request], ChatReply(request.model.name, request.logprobs), receive, response)

    async def _continue(self, receive: Receive, response: Response) -> None:
        body = await self._guard.body(receive)
        requests, before = parse_text_request(_parsed(body), self._models, self._limits)
        reply = TextReply(requests[0].model.name, before, requests[0].logprobs)
        await self._reply(requests, reply, receive, response)

    async def _respond(self, receive: Receive, response: Response) -> None:
        body = _parsed(await self._guard.body(receive))
        chat, names = chat_body(body)
        try:
            request = parse_request(chat, self._models, self._limits)
            await self._reply([request], ResponsesReply(request.model.name, body, request.logprobs), receive, response)
        except ApiError as error:
            raise error.renamed(names) from None

    async def _reply(self, requests: Sequence[ChatRequest], reply: Reply, receive: Receive, response: Response) -> None:
        """Send one reply with the answers to ``requests``, which differ in their prompts alone."""
        await unless_gone(self._answered(requests, reply, response), receive)

    async def _answered(self, requests: Sequence[ChatRequest], reply: Reply, response: Response) -> None:
        framed = [await self._answering.framed(request) for request in requests]
        answering = self._stream if requests[0].stream else self._whole
        with self._answering.admission.admitted(sum(request.choices for request in requests)):
            await answering(framed, reply, response)

    async def _whole(self, framed: Sequence[FramedRequest], reply: Reply, response: Response) -> None:
        answers = [Part(Said(), 0)] * len(_choices(framed))
        async with aclosing(self._answers(framed)) as parts:
            async for index, part in parts:  # one for each answer
                answers[index] = part
        usage = usage_of(
            sum(len(each.prompt) for each in framed),
            sum(part.tokens for part in answers),
            sum(part.reasoning_tokens for part in answers),
        )
        await response.json(200, reply.whole(answers, usage))

    async def _stream(self, framed: Sequence[FramedRequest], reply: Reply, response: Response) -> None:
        generated = reasoning = 0
        async with aclosing(self._answers(framed)) as parts:
            async for index, part in parts:
                if not response.begun:  # before the first part an error can still have its own status
                    openings = [event for i in range(len(_choices(framed))) for event in reply.opening(i)]
                    await response.events(openings)
                await response.events(reply.chunk(index, part))
                if part.finish:
                    generated, reasoning = generated + part.tokens, reasoning + part.reasoning_tokens
        usage = usage_of(sum(len(each.prompt) for each in framed), generated, reasoning)
        await response.events(reply.closing(usage, framed[0].request.include_usage))
        await response.end_events(done=reply.ends_with_done)

    async def _answers(self, framed: Sequence[FramedRequest]) -> AsyncGenerator[tuple[int, Part], None]:
        """Yield the parts of all answers, each with its choice's number, and count finished answers."""
        choices = _choices(framed)
        async with aclosing(merged([self._answering.answer(each, i) for each, i in choices])) as parts:
            async for index, part in parts:
                if part.finish:
                    answered, _ = choices[index]
                    self._metrics.answered(answered.request.model.name, len(answered.prompt), part.tokens)
                yield index, part


def _choices(framed: Sequence[FramedRequest]) -> list[tuple[FramedRequest, int]]:
    """Return for each choice of a reply its request, and its number among the answers to that."""
    return [(each, i) for each in framed for i in range(each.request.choices)]


def _plain(path: str) -> str:
    """Return ``path`` without what clients get wrong: a missing or repeated ``/v1``, slashes, capitals."""
    parts = [part for part in path.lower().split("/") if part]
    while parts and parts[0] == "v1":
        parts.pop(0)
    return "/".join(parts)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "weitune"}


def _parsed(body: bytes) -> Any:
    """Return the JSON in ``body``. Raises ApiError if it is none."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "serve.app.not_json", error=error) from None
