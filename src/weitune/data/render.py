"""Framing: from a :class:`Conversation` to tokens, for training and for every later use of the model.

    rendered    <|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\nhello<|im_end|>\\n
    prompt p    ╰────────────────────────────────────────────────────╯
    with turn q ╰──────────────────────────────────────────────────────────────────────╯
    learned                                                            ╰────────────╯  content and end of turn

The assistant's turns are found by rendering, not by reading the template: ``p`` renders the turns before, asking for an
answer; ``q`` renders them with the answer. ``p`` must be a prefix of ``q``, or training would show the model something
that inference never does. If every ``q`` is a prefix of the whole, one example teaches all turns. If not (templates
that drop earlier reasoning), each turn becomes an example of its own, rendered exactly as at inference; the prefix tree
makes their shared beginnings cheap. Cost: two renderings a turn, then one batch through the Rust tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from weitune.data.control import Control, ControlTokens
from weitune.data.conversation import Conversation, Example, ToolCall, Turn
from weitune.data.encode import Draft, EncodingBatch, Learned, PieceEncoder
from weitune.data.template import Script, chat_template
from weitune.errors import DataError, ModelError
from weitune.recipe.schema import Tokens

_ANSWER = "At noon, captain."
_PROBE = Conversation((Turn("user", "When is high tide?"), Turn("assistant", _ANSWER)))
_PROBE_CALL = Conversation((_PROBE.turns[0], Turn("assistant", "", tool_calls=(ToolCall("tide_times", {}),))))


class Framing(ABC):
    """How conversations become tokens: the one place that training, chat, evaluation, serving and export share."""

    end_of_turn: int
    """Id of the token that ends an assistant's turn."""
    stop_tokens: tuple[int, ...]
    """Every id at which generation must stop; :attr:`end_of_turn` is the first."""
    notes: list[str]
    """What the user should hear once about this tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """Share the backend of ``tokenizer``, a transformers fast tokenizer. Raises ModelError if it has none."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"the tokenizer ({type(tokenizer).__name__}) has no tokenizer.json",
                "Use a model that ships a fast tokenizer, or convert its tokenizer to tokenizer.json.",
            )
        self.notes = []
        self._backend = backend
        self._controls = ControlTokens(backend)
        self._encoder = PieceEncoder(backend, self._controls)

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of the tokens that frame, which text never becomes."""
        return frozenset(self._controls.ids.values())

    @abstractmethod
    def draft(self, conversation: Conversation) -> list[Draft]:
        """Return the examples of ``conversation`` before tokenization. Raises DataError that names the row."""

    @abstractmethod
    def prompt(self, conversation: Conversation) -> list[int]:
        """Return the tokens up to where the assistant answers the last turn."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return, as JSON, everything that decides the tokens."""

    def encode(self, drafts: Sequence[Draft]) -> list[Example]:
        """Tokenize ``drafts`` in one batch."""
        return self._encoder.encode(drafts)

    def begin(self, drafts: Sequence[Draft]) -> EncodingBatch:
        """Return the batch of ``drafts``, to be run in another thread."""
        return self._encoder.begin(drafts)

    def examples_batch(self, conversations: Iterable[Conversation]) -> list[list[Example]]:
        """Return the examples of every conversation, in order. Raises DataError at the first that cannot be framed."""
        drafts = [self.draft(conversation) for conversation in conversations]
        examples = iter(self.encode([draft for group in drafts for draft in group]))
        return [list(islice(examples, len(group))) for group in drafts]

    def examples(self, conversation: Conversation) -> list[Example]:
        """Return what ``conversation`` teaches: one example, or one for each learned turn."""
        return self.examples_batch([conversation])[0]

    def tokenizer_hash(self) -> str:
        """Return the SHA-256 of the tokenizer's JSON: vocabulary, merges, added tokens and every step."""
        return hashlib.sha256(self._backend.to_str().encode("utf-8", "surrogatepass")).hexdigest()


class Region(NamedTuple):
    """Where an assistant turn stands in its rendering ``text``: from ``start`` to the end of its end-of-turn token."""

    text: str
    start: int
    stop: int
    learned: tuple[tuple[int, int], ...]


class ChatFraming(Framing):
    """Frames conversations with the tokenizer's own chat template."""

    def __init__(self, tokenizer: Any, tokens: Tokens) -> None:
        """Find the end of an assistant's turn. Raises ModelError if the template writes none."""
        super().__init__(tokenizer)
        self._template, note = chat_template(tokenizer, tokens.template_args)
        self._supervise = tokens.supervise
        self.notes += [note] if note else []
        if self._template.reads_date:
            self.notes.append(
                "The chat template writes today's date, so prompts change from day to day; "
                "`tokens.template_args` can fix it (often under the name `date_string`)."
            )
        self.end_of_turn = self._probe_end_of_turn()
        self.stop_tokens = tuple(dict.fromkeys([self.end_of_turn, *self._probe_end_of_call()]))

    def draft(self, conversation: Conversation) -> list[Draft]:
        """Return one draft for all learned turns, or one for each (see the module's docstring)."""
        turns = conversation.turns
        script = self._script(conversation)
        weights = learned_turns(turns, self._supervise)
        regions = {i: self._region(script, i) for i in weights}
        whole = script.render(len(turns)).text
        self._check_complete(script, whole, regions)
        if all(whole.startswith(region.text[: region.stop]) for region in regions.values()):
            return [self._drafted(script, whole, len(turns), [(r, weights[i]) for i, r in regions.items()])]
        return [self._drafted(script, r.text, i + 1, [(r, weights[i])]) for i, r in regions.items()]

    def prompt(self, conversation: Conversation) -> list[int]:
        """Return the tokens of all turns and the template's opening of an answer."""
        script = self._script(conversation)
        text = script.render(len(conversation.turns), prompting=True).text
        draft = self._drafted(script, text, len(conversation.turns), [])
        return list(self.encode([draft])[0].input_ids)

    def describe(self) -> dict[str, Any]:
        """Return the kind, the template and its arguments, which turns are learned, and the tokenizer's hash."""
        return {
            "kind": "chat",
            **self._template.describe(),
            "supervise": self._supervise,
            "end_of_turn": self.end_of_turn,
            "stop_tokens": list(self.stop_tokens),
            "tokenizer_sha256": self.tokenizer_hash(),
        }

    def _script(self, conversation: Conversation) -> Script:
        return Script(self._template, self._controls, conversation)

    def _region(self, script: Script, i: int) -> Region:
        """Find turn ``i`` in the rendering that ends with it."""
        prompt = script.render(i, prompting=True).text
        text, generated = script.render(i + 1)
        if not text.startswith(prompt):
            without, given = (script.reveal(_around(*pair)) for pair in ((prompt, text), (text, prompt)))
            raise script.problem(
                f"the chat template to write the same before turn {i + 1} whether or not the answer is there",
                f"{without!r} without it and {given!r} with it; the model would learn what it never sees later",
                "Set `tokens.template_args` so that both agree (for thinking models often `enable_thinking: false`), "
                "give the answers what is missing (such as reasoning), or leave out what moves (such as `system`).",
            )
        *_, end = (None, *self._controls.find(text, len(prompt)))
        if end is None or end.id not in self._stops(script.conversation.turns[i]):
            raise script.problem(
                "the model's end-of-turn token after every answer",
                f"none after turn {i + 1}",
                "Use a chat template that ends every assistant turn with the same token.",
            )
        return Region(text, len(prompt), end.stop, self._learned(len(prompt), end, generated))

    def _learned(self, start: int, end: Control, generated: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        """Return the learned character ranges: the turn, or what the template marks of it, and the end of the turn."""
        if not self._template.marks_generation:
            return ((start, end.stop),)
        parts = [(max(a, start), min(b, end.stop)) for a, b in generated if a < end.stop and b >= start]
        if parts and parts[-1][1] < end.stop:
            last = parts.pop()
            parts += [(last[0], end.stop)] if last[1] >= end.start else [last, (end.start, end.stop)]
        return tuple(parts)

    def _drafted(self, script: Script, text: str, turns: int, regions: list[tuple[Region, float]]) -> Draft:
        """Cut ``text``, a rendering of the first ``turns`` turns, where the assistant takes over and where to learn."""
        parts = [(a, b, weight) for region, weight in regions for a, b in region.learned]
        cuts = {edge for a, b, _ in parts for edge in (a, b)}
        cuts.update(self._takeovers(script, text, turns))
        pieces, index = self._encoder.split(text, cuts, script.disguise)
        learned = tuple(Learned(index[a], index[b], weight) for a, b, weight in parts)
        return Draft(tuple(pieces), learned, script.conversation.origin)

    def _takeovers(self, script: Script, text: str, turns: int) -> Iterable[int]:
        """Yield where in ``text`` the assistant took over, for turns learned or not: there inference cut it too."""
        for i, turn in enumerate(script.conversation.turns[:turns]):
            if turn.role == "assistant":
                try:
                    prompt = script.render(i, prompting=True).text
                except DataError:  # an opening turn of the assistant, which nobody asked for
                    continue
                if text.startswith(prompt):
                    yield len(prompt)

    def _stops(self, turn: Turn) -> tuple[int, ...]:
        return self.stop_tokens if turn.tool_calls else (self.end_of_turn,)

    def _check_complete(self, script: Script, whole: str, regions: Mapping[int, Region]) -> None:
        """Refuse a template that leaves out a turn, a call or a tool: what it drops would be dropped in silence."""
        for i, turn in enumerate(script.conversation.turns):
            shown = script.reveal(regions[i].text[regions[i].start :] if i in regions else whole)
            missing = [] if _contains(shown, turn.content) else ["the text"]
            missing += [f"the call of {call.name}" for call in turn.tool_calls if call.name not in shown]
            if missing:
                raise script.problem(
                    "a chat template that writes every turn",
                    f"one that leaves out {missing[0]} of turn {i + 1} ({turn.role})",
                    "Use a model whose chat template writes such turns, or remove them.",
                )
        for tool in script.conversation.tools:
            name = tool.get("function", tool).get("name", "")
            if name not in script.reveal(whole):
                raise script.problem(
                    "a chat template with a place for tools",
                    f"one that leaves out the tool {name!r}",
                    "Use a model whose chat template writes tools, or remove `tools`.",
                )

    def _probe_end_of_turn(self) -> int:
        """Render a question and an answer, and return the last control token after the answer."""
        script = self._script(_PROBE)
        try:
            text = script.render(2).text
            prompt = script.render(1, prompting=True).text
        except DataError as error:
            raise ModelError(
                f"the chat template cannot render a question and an answer: {error.message}",
                "Use a model with a chat template, and check `tokens.template_args`.",
            ) from None
        answer = text.rfind(_ANSWER)
        controls = list(self._controls.find(text, answer + len(_ANSWER))) if answer >= 0 else []
        if not controls:
            raise ModelError(
                "the chat template writes no end-of-turn token after an answer, so the model would never learn to stop",
                "Use a model whose chat template ends the assistant's turn with a control token.",
            )
        if any(True for _ in self._controls.find(text, len(prompt), answer)) and prompt == script.render(1).text:
            self.notes.append("The chat template has no generation prompt; the model learns to open its own turns.")
        return controls[-1].id

    def _probe_end_of_call(self) -> list[int]:
        """Return the token that ends a turn with a tool call, if the template knows such turns."""
        script = self._script(_PROBE_CALL)
        try:
            text = script.render(2).text
        except DataError:
            return []
        called = text.rfind("tide_times")
        return [control.id for control in self._controls.find(text, max(called, 0))][-1:] if called >= 0 else []


def learned_turns(turns: Sequence[Turn], supervise: str) -> dict[int, float]:
    """Return the weight of every assistant turn that is learned, by its place."""
    found = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    chosen = found if supervise == "all" else found[-1:]
    return {i: turns[i].weight for i in chosen if turns[i].weight}


def _contains(shown: str, content: str) -> bool:
    """Tell whether a rendering shows ``content``: trimmed perhaps, or as JSON (tools' answers in some templates)."""
    content = content.strip()
    return content in shown or any(json.dumps(content, ensure_ascii=only)[1:-1] in shown for only in (False, True))


def _around(text: str, other: str) -> str:
    """Return the last characters of ``text`` from where it parts from ``other``, for a message."""
    at = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return text[max(0, at - 20) : at + 20]


def framing_for(tokenizer: Any, tokens: Tokens) -> Framing:
    """Return the framing that a recipe's ``tokens`` ask for; ``tokenizer`` is a transformers fast tokenizer.

    Raises ModelError if the tokenizer cannot frame a turn that ends.
    """
    if tokens.template == "tutorial":
        from weitune.data.tutorial import TutorialFraming

        return TutorialFraming(tokenizer)
    return ChatFraming(tokenizer, tokens)
