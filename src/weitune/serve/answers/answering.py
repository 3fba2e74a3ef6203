"""From a request to text, piece by piece: the bridge between asyncio and the engine.

    request ── frame ──▶ tokens ──▶ slot ──▶ thread: llama.cpp's stream, Part, Part, … ──▶ asyncio queue

A thread reads each running answer, so there are as many threads as slots. llama.cpp streams answers, because it then
notices within a token that nobody reads any more. If the client wants the answer whole, the thread joins it into one
part: waking the event loop at each token would take time from llama.cpp. When the task that iterates is cancelled (its
client has disconnected), the engine's connection is closed, and llama.cpp stops after the current token.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from weitune.data.calls.form import AnswerForm
from weitune.data.calls.reader import ReadAs
from weitune.data.frame.encode import Draft, Text
from weitune.errors import InputError
from weitune.generate.llama_cpp import Completion, LlamaCpp
from weitune.serve.admission import Admission
from weitune.serve.answers.framings import Framings, KnownFraming
from weitune.serve.answers.likelihood import likelihoods
from weitune.serve.answers.part import Part, Reading, joined, parts_of
from weitune.serve.answers.rules import Rule, Rules
from weitune.serve.errors import ApiError
from weitune.serve.requests.messages import NAME
from weitune.serve.requests.request import ChatRequest

T = TypeVar("T")
_MANY_TURNS = 64


@dataclass(frozen=True, slots=True)
class FramedRequest:
    """A request whose prompt has been tokenized and fits."""

    request: ChatRequest
    prompt: tuple[int, ...]
    known: KnownFraming
    rule: Rule | None = None


class Answering:
    """Answers requests with one engine."""

    def __init__(self, llama: LlamaCpp, admission: Admission) -> None:
        self.llama, self.admission = llama, admission
        self.framings = Framings()
        self._rules = Rules()
        self._readers = ThreadPoolExecutor(admission.slots, thread_name_prefix="answer")

    async def framed(self, request: ChatRequest) -> FramedRequest:
        """Return ``request`` framed, with the rule of its answer. Raises ApiError if there is a fault in either."""
        framed = await asyncio.to_thread(self.frame, request)  # a long dialogue takes seconds
        return replace(framed, rule=await self._rules.of(request, framed.known))

    def frame(self, request: ChatRequest) -> FramedRequest:
        """Tokenize the prompt of ``request``. Raises ApiError if it cannot be framed or is too long."""
        known = self.framings.of(request.model.framing, request.template_arguments)
        _check_calls(request, known)
        context = self.llama.context_tokens
        prompt = _text_prompt(request, known) if request.prompt is not None else _prompt(request, known, context)
        if request.prompt is not None:
            known = replace(known, form=AnswerForm())
        room = context - len(prompt)
        if room < 1:
            param = "messages" if request.prompt is None else "prompt"
            raise _too_long(len(prompt), context, param)
        longest = min(request.sampling.max_new_tokens, room)
        request = replace(request, sampling=replace(request.sampling, max_new_tokens=longest))
        return FramedRequest(request, prompt, known)

    async def answer(self, framed: FramedRequest, choice: int = 0) -> AsyncGenerator[Part, None]:
        """Yield one answer, in parts if the request wants it streamed. Raises ApiError if the engine refuses it.

        ``choice`` numbers the answers to one request; each has another seed.
        """
        async with self.admission.slot():
            body = self._body(framed, choice)
            completion = self.llama.complete(body)
            parts = parts_of(completion, self._reading(framed, body, completion))
            wanted = parts if framed.request.stream else joined(parts)
            async with aclosing(_read(wanted, completion, self._readers)) as read:
                async for part in read:
                    yield part

    def _reading(self, framed: FramedRequest, body: dict[str, Any], completion: Completion) -> Reading:
        request, known = framed.request, framed.known
        forced = known.framing.encode([Draft((Text("a", bare=True),))])[0].input_ids[-1]
        return Reading(
            ReadAs(known.form, known.marks, request.conversation.tools or None, NAME),
            request.model.stop_tokens,
            known.framing.decode,
            lambda tokens, first: likelihoods(self.llama, body, tokens, first, forced, completion),
            not request.parallel_calls,
            framed.rule.content if framed.rule is not None else None,
        )

    def _body(self, framed: FramedRequest, choice: int) -> dict[str, Any]:
        request = framed.request
        sampling = request.sampling
        if sampling.seed is not None and choice:
            sampling = replace(sampling, seed=sampling.seed + choice)
        body = self.llama.body(framed.prompt, sampling, request.model.adapter)
        if request.min_p and not sampling.greedy:
            body |= {"min_p": request.min_p, "samplers": [*body["samplers"], "min_p"]}
        if request.logprobs is not None:
            body |= {"stream": False, "n_probs": max(request.logprobs, 1)}
        if framed.rule is not None:
            body["grammar"] = framed.rule.grammar
        preserved = list(framed.known.preserved)
        extra = {**request.extra, **_biases(framed)}
        return {**body, **extra, "stop": list(request.stop), "preserved_tokens": preserved}


def _biases(framed: FramedRequest) -> dict[str, Any]:
    """Return the biases with which presence and frequency count what is generated, as the protocol has it, though the
    engine counts the prompt as well.

    None where there is a repetition penalty, which counts the prompt and is applied in between. A token of the prompt
    counts as present from the first time on that it is generated, and is not punished for that.
    """
    request, extra = framed.request, framed.request.extra
    presence, frequency = (extra.get(f"{kind}_penalty", 0.0) for kind in ("presence", "frequency"))
    if not (presence or frequency) or request.sampling.repetition_penalty != 1:
        return {}
    biases = {token: frequency * count + presence for token, count in Counter(framed.prompt).items()}
    for token, bias in extra.get("logit_bias", ()):
        biases[token] = biases.get(token, 0.0) + bias
    return {"logit_bias": [[token, bias] for token, bias in biases.items()]}


def _too_long(prompt_tokens: int, context_tokens: int, param: str, *, least: bool = False) -> ApiError:
    """Return the refusal of a prompt of that many tokens, or of no fewer."""
    message_id = "serve.answering.far_too_long" if least else "serve.answering.too_long"
    code = "context_length_exceeded"
    return ApiError(400, message_id, prompt_tokens=prompt_tokens, context_tokens=context_tokens, param=param, code=code)


def _prompt(request: ChatRequest, known: KnownFraming, context_tokens: int) -> tuple[int, ...]:
    """Return the tokens of the prompt. Raises ApiError if it cannot be framed, or is known to be too long beforehand.

    Framing renders once for every answer in the dialogue, so one of many turns is first looked at as a whole.
    """
    try:
        if len(request.conversation.turns) > _MANY_TURNS:
            least = known.framing.least_tokens(request.conversation)
            if least >= context_tokens:
                raise _too_long(least, context_tokens, "messages", least=True)
        return tuple(known.framing.prompt(request.conversation))
    except InputError as error:
        raise ApiError(400, "serve.errors.passed_on", message=error.message, param="messages") from None


def _text_prompt(request: ChatRequest, known: KnownFraming) -> tuple[int, ...]:
    """Return the tokens of a text that is continued as it is. Raises ApiError if there are none, or unknown ones."""
    given = request.prompt or ""
    tokens = tuple(known.framing.text_tokens(given)) if isinstance(given, str) else given
    if not tokens or max(tokens) >= known.framing.vocabulary_tokens:
        raise ApiError(400, "serve.text.prompt", param="prompt")
    return tokens


def _check_calls(request: ChatRequest, known: KnownFraming) -> None:
    """Raise ApiError if the request has tools, but the template no calls, or more calls a turn than it writes."""
    turns = request.conversation.turns
    called = max((len(turn.tool_calls) for turn in turns), default=0)
    if (request.conversation.tools or called) and known.form.calls is None:
        raise ApiError(
            400, "serve.answering.no_calls", name=request.model.name, reason=known.form.no_calls, param="tools"
        )
    if called > 1 and not known.form.several:
        raise ApiError(400, "serve.answering.one_call", name=request.model.name, param="messages")


async def _read(items: Iterator[T], completion: Completion, threads: ThreadPoolExecutor) -> AsyncGenerator[T, None]:
    """Yield ``items``, which read ``completion`` in a thread, and close it at the end."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[T | Exception | None] = asyncio.Queue()

    def put(item: T | Exception | None) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, item)

    def read() -> None:
        try:
            for item in items:
                put(item)
        except Exception as error:  # noqa: BLE001  (raised again in the task that reads)
            put(error)
        finally:
            put(None)

    reading = loop.run_in_executor(threads, read)
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        completion.close()
        await asyncio.shield(reading)
