"""Framing with a tokenizer's own chat template.

    rendered    <|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\nhello<|im_end|>\\n
    prompt p    ╰────────────────────────────────────────────────────╯
    with turn q ╰──────────────────────────────────────────────────────────────────────╯
    learned                                                            ╰────────────╯  content and end of turn

The assistant's turns are found by rendering, not by reading the template: ``p`` renders the turns before an answer with
the generation prompt, ``q`` renders them with the answer. ``p`` must be a prefix of ``q``, or training would show the
model something that inference never does. If every ``q`` is a prefix of the whole conversation, one example teaches all
turns. If not (templates that drop earlier reasoning), each turn becomes an example of its own, rendered exactly as at
inference; the prefix tree makes their common prefixes cheap. Cost: two renderings a turn, then one batch through the
Rust tokenizer.

An empty reasoning block that the template writes before an answer without reasoning (``<think>\\n\\n</think>\\n\\n``)
is context and not learned, unless the recipe asks for it: learning it would teach the model not to think.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from weitune.data.conversation import Conversation, Turn
from weitune.data.frame.completeness import check_complete, check_reasoning, never_seen
from weitune.data.frame.control_tokens import Control
from weitune.data.frame.conventions import Conventions
from weitune.data.frame.encode import Draft, Learned
from weitune.data.frame.fixes import Advisor, Fix
from weitune.data.frame.forms import FormDrafts
from weitune.data.frame.framing import Framing
from weitune.data.frame.script import Refusal, Script
from weitune.data.frame.template import chat_template
from weitune.data.frame.turn_ends import TurnEnd, TurnEnds
from weitune.errors import ModelError
from weitune.messages import say
from weitune.recipe.schema import Tokens

Ranges = tuple[tuple[int, int], ...]


class Region(NamedTuple):
    """An assistant turn in its rendering ``text``: characters ``start`` to ``stop``, its end-of-turn token included."""

    text: str
    start: int
    stop: int
    learned: Ranges


class ChatFraming(Framing):
    """Frames conversations with the tokenizer's own chat template.

    Raises ModelError if the template writes no end of an assistant's turn.
    """

    def __init__(self, tokenizer: Any, tokens: Tokens) -> None:
        super().__init__(tokenizer)
        self._tokenizer, self._tokens = tokenizer, tokens
        self._template, note = chat_template(tokenizer, tokens.template_args)
        self._conventions = Conventions(self._template, self._controls)
        with_tools = self._template.for_tools()
        own = with_tools is not self._template
        self._with_tools = Conventions(with_tools, self._controls) if own else self._conventions
        self.notes += [note] if note else []
        if self._template.reads_date:
            self.notes.append(say("data.chat.writes_date"))
        ends = TurnEnds(self._template, self._controls, self._conventions)
        self._end = ends.of_answer()
        self._end_of_call = ends.of_call(self._end)
        if ends.opens_turns():
            self.notes.append(say("data.chat.no_generation_prompt"))
        self.end_of_turn = self._end.token
        self.stop_tokens = tuple(dict.fromkeys(end.token for end in (self._end, self._end_of_call) if end))
        self._advisor = Advisor(self._works)
        self._others: dict[str, ChatFraming] = {}

    def draft(self, conversation: Conversation) -> list[Draft]:
        """Return one draft for all learned turns, or one for each (see the module's docstring)."""
        conversation = self._conventions_of(conversation).read(conversation)
        try:
            return self._draft(conversation)
        except Refusal as refusal:
            advice = self._advisor.advice(refusal.reason, refusal.turn, conversation, self._template)
            raise refusal.error(conversation, advice) from None

    def drafting(self) -> Callable[[Conversation], list[Draft]]:
        return FormDrafts(self.draft, self._template, self._controls).draft

    def prompt(self, conversation: Conversation) -> list[int]:
        """Return the tokens of all turns and the template's opening of an answer."""
        script, text = self._prompted(conversation)
        draft = self._drafted(script, text, len(conversation.turns), [])
        return list(self.encode([draft])[0].input_ids)

    def least_tokens(self, conversation: Conversation) -> int:
        return sum(1 for _ in self._controls.find(self._prompted(conversation)[1]))

    def _prompted(self, conversation: Conversation) -> tuple[Script, str]:
        """Return the conversation's script, and what that renders for the next answer."""
        try:
            script = self._script(self._conventions_of(conversation).read(conversation))
            return script, script.render(len(conversation.turns), prompting=True).text
        except Refusal as refusal:
            raise refusal.error(conversation) from None

    @property
    def argument_names(self) -> frozenset[str]:
        return frozenset(name for name, _ in self._template.asks_for)

    @property
    def variables(self) -> frozenset[str]:
        return self._template.reads

    @property
    def specials(self) -> Mapping[str, str]:
        return self._template.specials

    def with_arguments(self, arguments: Mapping[str, Any]) -> ChatFraming:
        together = {**(self._tokens.template_args or {}), **arguments}
        return ChatFraming(self._tokenizer, self._tokens.model_copy(update={"template_args": together}))

    def describe(self) -> dict[str, Any]:
        empty = {} if self._learns_empty_reasoning else {"empty_reasoning": "context"}
        return {
            "kind": "chat",
            **self._template.describe(),
            "supervise": self._tokens.supervise,
            **empty,
            "end_of_turn": self.end_of_turn,
            "stop_tokens": list(self.stop_tokens),
            "tokenizer_sha256": self.tokenizer_hash,
        }

    @cached_property
    def _learns_empty_reasoning(self) -> bool:
        """Whether an empty reasoning block is learned; true as well where the template writes none."""
        blocks = (*self._conventions.empty_blocks, *self._with_tools.empty_blocks)
        return self._tokens.learn_empty_reasoning or not blocks

    def _script(self, conversation: Conversation) -> Script:
        return Script(self._template, self._controls, self._conventions_of(conversation), conversation)

    def _conventions_of(self, conversation: Conversation) -> Conventions:
        return self._with_tools if conversation.tools else self._conventions

    def _draft(self, conversation: Conversation) -> list[Draft]:
        """Return the drafts. Raises Refusal if the template cannot frame the conversation."""
        turns = conversation.turns
        script = self._script(conversation)
        weights = learned_turns(turns, self._tokens.supervise)
        regions = {i: self._region(script, i) for i in weights}
        last = len(turns) - 1
        whole = regions[last].text if last in regions else script.render(len(turns)).text
        check_complete(script, whole, {i: region.text[region.start :] for i, region in regions.items()})
        if all(whole.startswith(region.text[: region.stop]) for region in regions.values()):
            return [self._drafted(script, whole, len(turns), [(r, weights[i]) for i, r in regions.items()])]
        return [self._drafted(script, r.text, i + 1, [(r, weights[i])]) for i, r in regions.items()]

    def _region(self, script: Script, i: int) -> Region:
        """Find turn ``i`` in the rendering that ends with it."""
        turn = script.conversation.turns[i]
        prompt = self._prompt_of(script, i)
        text, generated = script.render(i + 1)
        if not text.startswith(prompt):
            text, generated = self._after_prefill(prompt, text, generated)
        if not text.startswith(prompt):
            raise never_seen(script, i, prompt, text)
        end_of_turn = self._end_of(turn)
        text += end_of_turn.following
        controls = list(self._controls.find(text, len(prompt)))
        end = self._last(controls, text, turn)
        if end is None:
            raise Refusal("data.chat.no_end_of_turn", number=i + 1)
        ids = [control.id for control in controls]
        check_reasoning(turn, i, prompt, ids, self._conventions.tags, self._controls.ids)
        start = len(prompt)
        if turn.reasoning is None and not self._learns_empty_reasoning:
            start += self._conventions_of(script.conversation).empty_block_at(text, start)
        learned = self._learned(start, end, generated)
        if turn.reasoning and learned and text.find(script.hide(turn.reasoning).strip(), start) < learned[0][0]:
            learned = ((start, learned[0][1]), *learned[1:])  # the template marks the answer, but not its reasoning
        return Region(text, len(prompt), end.stop, learned)

    def _after_prefill(self, prompt: str, text: str, generated: Ranges) -> tuple[str, Ranges]:
        """Return the rendering with the beginning of the answer that only the prompt has, if there is one."""
        header = prompt.removesuffix(self._prefill)
        if not self._prefill or header == prompt or not text.startswith(header):
            return text, generated
        rest = text[len(header) :]
        opening, closing = self._conventions.tags
        if prompt.rstrip().endswith(closing.strip()):
            rest = rest.removeprefix(opening + closing)  # the prompt has the empty reasoning block already
        shift = len(prompt) + len(rest) - len(text)
        moved = tuple((max(a + shift, len(prompt)), b + shift) if a >= len(header) else (a, b) for a, b in generated)
        return prompt + rest, moved

    @cached_property
    def _prefill(self) -> str:
        """The beginning of an answer that every prompt has, unless an argument of the template can leave it out."""
        prefill = self._conventions.prefill
        if prefill.rstrip().endswith(self._conventions.tags[0].strip()):
            return ""  # it opens the reasoning, which the answer has to close
        switched = prefill and any(self._prefill_with({name: value}) == "" for name, value in self._template.asks_for)
        return "" if switched else prefill

    def _prefill_with(self, arguments: Mapping[str, Any]) -> str | None:
        try:
            return self._with_arguments(arguments)._conventions.prefill
        except ModelError:
            return None

    def _prompt_of(self, script: Script, i: int) -> str:
        """Return the prompt for turn ``i``. Raises Refusal if there is none: the conversation opens with an answer."""
        before = script.conversation.turns[:i]
        asked = any(turn.role in ("user", "tool") for turn in before)
        try:
            prompt = script.render(i, prompting=True).text
            if asked or script.render(i + 1).text.startswith(prompt):
                return prompt
        except Refusal:
            if asked:
                raise
        raise Refusal("data.chat.opens_with_assistant", reason="first", turn=i, number=i + 1)

    def _last(self, controls: Sequence[Control], text: str, turn: Turn) -> Control | None:
        """Return the token that ends ``turn``; only control tokens and white space may follow it."""
        stops = self.stop_tokens if turn.tool_calls else (self.end_of_turn,)
        rest = len(text)
        for control in reversed(controls):
            if text[control.stop : rest].strip():
                return None
            if control.id in stops:
                return control
            rest = control.start
        return None

    def _end_of(self, turn: Turn) -> TurnEnd:
        return self._end_of_call or self._end if turn.tool_calls else self._end

    def _learned(self, start: int, end: Control, generated: Ranges) -> Ranges:
        """Return the learned character ranges: the turn, or the parts that the template marks, and the end of turn."""
        if not self._template.marks_generation:
            return ((start, end.stop),)
        parts = [(max(a, start), min(b, end.stop)) for a, b in generated if a < end.stop and b >= start]
        if parts and parts[-1][1] < end.stop:
            last = parts.pop()
            parts += [(last[0], end.stop)] if last[1] >= end.start else [last, (end.start, end.stop)]
        return tuple(parts)

    def _drafted(self, script: Script, text: str, turns: int, regions: list[tuple[Region, float]]) -> Draft:
        """Cut ``text``, a rendering of the first ``turns`` turns, where answers begin and around what is learned."""
        parts = [(a, b, weight) for region, weight in regions for a, b in region.learned]
        cuts = {edge for a, b, _ in parts for edge in (a, b)}
        cuts.update(self._takeovers(script, text, turns))
        pieces, index = self._encoder.split(text, cuts, script.disguise)
        learned = tuple(Learned(index[a], index[b], weight) for a, b, weight in parts)
        return Draft(tuple(pieces), learned, script.conversation.origin)

    def _takeovers(self, script: Script, text: str, turns: int) -> Iterable[int]:
        """Yield where the assistant's turns begin in ``text``, learned or not: inference tokenizes up to there."""
        for i, turn in enumerate(script.conversation.turns[:turns]):
            if turn.role == "assistant":
                try:
                    prompt = script.render(i, prompting=True).text
                except Refusal:  # the conversation opens with an answer
                    continue
                if text.startswith(prompt):
                    yield len(prompt)

    def _works(self, fix: Fix) -> bool:
        """Return whether ``fix`` makes a conversation framable."""
        try:
            self._with_arguments(fix.arguments)._draft(fix.conversation)
        except (Refusal, ModelError):
            return False
        return True

    def _with_arguments(self, arguments: Mapping[str, Any]) -> ChatFraming:
        if not arguments:
            return self
        key = repr(arguments)
        if key not in self._others:
            self._others[key] = self.with_arguments(arguments)
        return self._others[key]


def learned_turns(turns: Sequence[Turn], supervise: str) -> dict[int, float]:
    """Return the weight of each learned turn by its place in ``turns``; ``supervise`` is ``all`` or ``last``."""
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    chosen = answers if supervise == "all" else answers[-1:]
    return {i: turns[i].weight for i in chosen if turns[i].weight}
