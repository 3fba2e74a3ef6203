"""The engine on llama.cpp for chat, and the reader of its chunks for chat and serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from weitune.data.conversation import Conversation
from weitune.errors import InputError
from weitune.generate.constrain.opening import content_opening
from weitune.generate.constrain.schema import JsonRule
from weitune.generate.detokenize import REPLACEMENT
from weitune.generate.llama_cpp import Completion, LlamaCpp, takes_grammars
from weitune.generate.sampling import Sampling
from weitune.generate.stream import Answer
from weitune.messages import say

if TYPE_CHECKING:
    from weitune.data.calls.marks import Marks
    from weitune.data.frame.framing import Framing

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of an answer, how many tokens the answer has so far, and in the last piece why it ended."""

    text: str
    tokens: int
    finish: Finish | None = None


class ChunkReader:
    """Turns the chunks of one answer into pieces. The run's stop tokens end it, whether llama.cpp knows them or not.

    llama.cpp ends an answer that is cut within a character with U+FFFD in its place; as everywhere in weitune, what is
    not a whole character at an answer's end is left out. So U+FFFD is held back until something follows it.

    llama.cpp holds text back while it ends in the beginning of a stop string: it reports tokens without text. The text
    comes with that of the next token, its own end of an answer included; of an answer that is cut it never comes.
    """

    def __init__(
        self,
        stop_tokens: frozenset[int],
        marks: Marks | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        """With ``marks`` the pieces are marked text; answers with stop strings need them, and the text of tokens."""
        self._stop_tokens, self._marks, self._decode = stop_tokens, marks, decode
        self._tokens, self._held = 0, ""
        self._silent: list[int] = []
        """Tokens whose text has not come."""

    def read(self, chunk: Mapping[str, Any]) -> Piece:
        """Return what ``chunk`` adds, which may be nothing."""
        stop_token = next((token for token in chunk.get("tokens", ()) if token in self._stop_tokens), None)
        if stop_token is not None:
            text = self._held + self._before(stop_token, chunk)
            return Piece(text.rstrip(REPLACEMENT), self._tokens, "stop")
        self._tokens = chunk.get("tokens_predicted", self._tokens)
        text = self._held + self._content(chunk)
        cut = chunk.get("stop") and chunk["stop_type"] == "limit"
        if cut:
            text += self._withheld()
        whole = text.rstrip(REPLACEMENT)
        self._held = text[len(whole) :]
        if not chunk.get("stop"):
            return Piece(whole, self._tokens)
        return Piece(whole, self._tokens, "length" if cut else "stop")

    def _content(self, chunk: Mapping[str, Any]) -> str:
        content, tokens = str(chunk.get("content", "")), chunk.get("tokens", ())
        if self._marks is None:
            return content
        if not content:
            self._silent += tokens
            return ""
        content = self._marks.in_order(self._marks.ending(content, tokens), self._silent)
        self._silent = []
        return content

    def _before(self, stop_token: int, chunk: Mapping[str, Any]) -> str:
        """Return the text that has not come before that of ``stop_token``, which may be in ``chunk`` as well."""
        if self._marks is None:
            return ""
        content = str(chunk.get("content", "")).removesuffix(self._marks.texts.get(stop_token, ""))
        return self._marks.in_order(content, self._silent) if content else self._withheld()

    def _withheld(self) -> str:
        if self._marks is None or self._decode is None:
            return ""
        return self._marks.of_tokens(self._silent, self._decode)


class LlamaStream(Iterator[str]):
    """One answer of llama.cpp, as text. It is generated at once, whether it is read or not."""

    def __init__(self, completion: Completion, stop_tokens: frozenset[int], rule: JsonRule | None = None) -> None:
        self._completion, self._reader, self._rule = completion, ChunkReader(stop_tokens), rule
        self._texts: list[str] = []
        self._last = Piece("", 0)

    def __next__(self) -> str:
        """Return the next piece of text, never an empty one.

        Raises InputError if llama.cpp refuses the request, or at the end of an answer that does not fit its rule.
        """
        while self._last.finish is None:
            self._last = self._reader.read(next(self._completion))  # StopIteration for one that was closed
            if self._last.finish is not None:
                self.close()
            if self._last.text:
                self._texts.append(self._last.text)
                return self._last.text
        if self._rule is not None and self.answer.stopped and not self._rule.fits(self.answer.text):
            raise InputError("generate.llama_engine.left_schema")  # it drops grammars that it cannot go on with
        raise StopIteration

    def close(self) -> None:
        self._completion.close()

    @property
    def answer(self) -> Answer:
        """The answer as far as it has been read, without its tokens: llama.cpp does not report all of them."""
        return Answer("".join(self._texts), (), self._last.finish == "stop")

    @property
    def length_tokens(self) -> int:
        return self._last.tokens


class LlamaEngine:
    """A model in llama.cpp that answers conversations, with one of the loaded adapters or with none."""

    def __init__(
        self, llama: LlamaCpp, framing: Framing, stop_tokens: frozenset[int], adapter: int | None, name: str
    ) -> None:
        self._llama, self._framing, self._stop_tokens = llama, framing, stop_tokens
        self._adapter, self._name = adapter, name

    @property
    def context_tokens(self) -> int:
        return self._llama.context_tokens

    @property
    def about(self) -> str:
        return say("generate.llama_engine.about", name=self._name)

    @property
    def notes(self) -> Sequence[str]:
        return self._framing.notes

    def prompt_tokens(self, conversation: Conversation) -> int:
        return len(self._framing.prompt(conversation))

    def stream(
        self, conversation: Conversation, sampling: Sampling | None = None, schema: Mapping[str, Any] | None = None
    ) -> LlamaStream:
        """Return the answer as a stream of text; with ``schema`` it is JSON that fits it, unless it is cut.

        Raises InputError if the conversation is too long, or answers cannot be kept to the schema.
        """
        sampling = sampling or Sampling()
        prompt = list(self._framing.prompt(conversation))
        rule = None if schema is None else self._rule(schema)
        if rule is not None:
            prompt += content_opening(self._framing)
        room = self.context_tokens - len(prompt)
        if room < 1:
            raise InputError(
                "generate.llama_engine.too_long", prompt_tokens=len(prompt), context_tokens=self.context_tokens
            )
        body = self._llama.body(prompt, sampling, self._adapter)
        body["n_predict"] = min(sampling.max_new_tokens, room)
        if rule is not None:
            body["grammar"] = rule.lark
        return LlamaStream(self._llama.complete(body), self._stop_tokens, rule)

    def _rule(self, schema: Mapping[str, Any]) -> JsonRule:
        if not takes_grammars():
            raise InputError("generate.llama_engine.no_llguidance")
        return JsonRule(schema)
