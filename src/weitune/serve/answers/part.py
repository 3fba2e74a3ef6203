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
from weitune.serve.errors import ApiError

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Part:
    """What an answer says next, how many tokens it has so far, and in the last part why it ended."""

    said: Said
    tokens: int
    finish: FinishReason | None = None
    logprobs: tuple[Mapping[str, Any], ...] = ()
    """For each token its text, bytes and log-probability, and those of alternatives."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the chunks of an answer are read."""

    read_as: ReadAs
    stop_tokens: frozenset[int]
    decode: Callable[[Sequence[int]], str]
    """Gives the text of tokens; only for whole answers."""
    likelihoods: Callable[[Sequence[int]], list[Mapping[str, Any]]] = lambda tokens: []
    """Measures each token of an answer, for answers of which the engine has not reported all."""
    one_call: bool = False
    schema: JsonRule | None = None
    """What content must fit, unless it is cut."""


def parts_of(chunks: Iterable[Mapping[str, Any]], reading: Reading) -> Iterator[Part]:
    """Turn the engine's chunks into parts. Raises ApiError if the engine refuses the request or breaks off."""
    reader = ChunkReader(reading.stop_tokens, reading.read_as.marks)
    answer = AnswerReader(reading.read_as)
    contents: list[str] = []
    try:
        for chunk in chunks:
            if "completion_probabilities" in chunk:
                part = _whole(chunk, reading)
                _check(part.said.content, part.finish, reading)
                yield part
                return
            piece = reader.read(chunk)
            said = answer.add(piece.text)
            if piece.finish:
                said += answer.end()
                _check("".join((*contents, said.content)), piece.finish, reading)
                yield _last(said, piece.tokens, piece.finish, reading)
                return
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


def _check(content: str, finish: FinishReason | None, reading: Reading) -> None:
    """Raise ApiError if an answer that is not cut does not fit its schema: the engine drops grammars it cannot go on
    with."""
    if reading.schema is not None and finish == "stop" and not reading.schema.fits(content):
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
    listed = tokens
    if chunk["stop_type"] == "word" and end is None:
        listed = _before(chunk["stopping_word"], tokens, reading)
    probabilities = chunk["completion_probabilities"][: len(listed)]
    if [token["id"] for token in probabilities] != listed:  # it reports a character of several tokens as one
        probabilities = reading.likelihoods(listed)
    return replace(_last(said, len(tokens), finish, reading), logprobs=tuple(probabilities))


def _before(stop: str, tokens: list[int], reading: Reading) -> list[int]:
    """Return the ``tokens`` of the text before ``stop``, which they end with; one that has a part of both stays."""

    def text(count: int) -> str:
        return reading.read_as.marks.of_tokens(tokens[:count], reading.decode)

    count, (kept, found, _) = len(tokens), text(len(tokens)).partition(stop)
    while found and count and text(count - 1).startswith(kept):
        count -= 1
    return tokens[:count]
