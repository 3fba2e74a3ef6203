"""What an answer is passed on as: parts, from the engine's chunks.

The engine streams, but it does not report every token then: one that ends within a character comes with the next. So
an answer whose log-probabilities are asked for is generated as a whole and passed on as one part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from weitune.data.calls.marks import Marks
from weitune.data.calls.reader import AnswerReader, ReadAs, Said
from weitune.errors import InputError
from weitune.generate.constrain.schema import JsonRule
from weitune.generate.detokenize import REPLACEMENT
from weitune.generate.llama_engine import ChunkReader, Finish
from weitune.serve.answers.listed import TokensOfText
from weitune.serve.errors import ApiError

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Part:
    """What an answer says next, how many tokens it has so far, and in the last part why it ended."""

    said: Said
    tokens: int
    finish: FinishReason | None = None
    logprobs: tuple[Mapping[str, Any], ...] = ()
    """For each token of the content its text, bytes and log-probability, and those of alternatives."""
    reasoning_tokens: int = 0
    """How many of :attr:`tokens` are reasoning, with what frames it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the chunks of an answer are read."""

    read_as: ReadAs
    stop_tokens: frozenset[int]
    decode: Callable[[Sequence[int]], str]
    """Gives the text of tokens."""
    likelihoods: Callable[[Sequence[int], int], list[Mapping[str, Any]]] = lambda tokens, first: []
    """Measures each token of an answer from a number on, for answers of which the engine has not reported all."""
    one_call: bool = False
    schema: JsonRule | None = None
    """What content must fit, unless it is cut or ends at a stop string."""


def parts_of(chunks: Iterable[Mapping[str, Any]], reading: Reading) -> Iterator[Part]:
    """Turn the engine's chunks into parts. Raises ApiError if the engine refuses the request or breaks off."""
    reader = ChunkReader(reading.stop_tokens, reading.read_as.marks, reading.decode)
    answer = AnswerReader(reading.read_as)
    contents: list[str] = []
    reasons, thinking_tokens = False, 0
    try:
        for chunk in chunks:
            if "completion_probabilities" in chunk:
                part = _whole(chunk, reading)
                _check(part.said.content, part.finish, chunk, reading)
                yield part
                return
            piece = reader.read(chunk)
            thought = answer.thinks
            said = answer.add(piece.text)
            if thought or answer.thinks or said.reasoning:
                thinking_tokens = piece.tokens
            if piece.finish:
                said += answer.end()
                _check("".join((*contents, said.content)), piece.finish, chunk, reading)
                last = _last(said, piece.tokens, piece.finish, reading)
                yield replace(last, reasoning_tokens=thinking_tokens if reasons or said.reasoning else 0)
                return
            reasons = reasons or bool(said.reasoning)
            contents.append(said.content if reading.schema is not None else "")
            if any(said):
                yield Part(said, piece.tokens)
    except InputError as error:
        raise ApiError(400, "serve.errors.passed_on", message=error.message) from None
    raise ApiError(500, "serve.answering.broke_off")


def joined(parts: Iterable[Part]) -> Iterator[Part]:
    """Yield all parts as one."""
    said = Said()
    for part in parts:
        said += part.said
        last = part
    yield replace(last, said=said)


def _check(content: str, finish: FinishReason | None, last: Mapping[str, Any], reading: Reading) -> None:
    """Raise ApiError if an answer that ends by itself does not fit its schema: the engine drops grammars it cannot go
    on with. ``last`` is its last chunk."""
    by_itself = finish == "stop" and last.get("stop_type") != "word"
    if reading.schema is not None and by_itself and not reading.schema.fits(content):
        raise ApiError(500, "serve.part.left_schema")


def _last(said: Said, tokens: int, finish: Finish, reading: Reading) -> Part:
    calls = said.calls[:1] if reading.one_call else said.calls
    return Part(said._replace(calls=calls), tokens, "tool_calls" if calls else finish)


def _whole(chunk: Mapping[str, Any], reading: Reading) -> Part:
    """Return the answer in ``chunk``, which has all of its tokens."""
    tokens: list[int] = chunk["tokens"]
    end = next((at for at, token in enumerate(tokens) if token in reading.stop_tokens), None)
    tokens = tokens[:end]
    marks: Marks = reading.read_as.marks
    text: str = chunk["content"]
    if end is not None or not set(tokens).isdisjoint(marks.texts):
        text = marks.of_tokens(tokens, reading.decode)
        if chunk["stop_type"] == "word" and end is None:
            text = text.partition(chunk["stopping_word"])[0]
    finish: Finish = "length" if end is None and chunk["stop_type"] == "limit" else "stop"
    answer = AnswerReader(reading.read_as)
    said = answer.add(text.rstrip(REPLACEMENT)) + answer.end()
    begin, end_of_content = answer.content_range
    found = TokensOfText(tokens, marks, reading.decode)
    first, last = found.before(begin), len(tokens)
    if said.calls:
        last = found.until(end_of_content)
    elif chunk["stop_type"] == "word" and end is None:
        last = found.before_text(chunk["stopping_word"])
    part = _last(said, len(tokens), finish, reading)
    told = _likelihoods(chunk, tokens[:last], first, reading) if said.content or not begin else []
    return replace(part, logprobs=tuple(told), reasoning_tokens=first if said.reasoning else 0)


def _likelihoods(
    chunk: Mapping[str, Any], tokens: Sequence[int], first: int, reading: Reading
) -> Sequence[Mapping[str, Any]]:
    """Return the likelihoods of ``tokens`` from number ``first`` on."""
    reported = chunk["completion_probabilities"][: len(tokens)]
    if [token["id"] for token in reported] == list(tokens):
        return list(reported[first:])
    return reading.likelihoods(tokens, first)  # it reports a character of several tokens as one
