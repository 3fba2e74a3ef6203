"""The prompts that an export is verified on: dialogues of the run's own data, with the answers the run was taught,
and dialogues that it did not learn.

messages       without the run's system prompt: the export must know it
prompt_tokens  the same dialogue framed by the run, system prompt included: what the model sees
answer         the supervised tokens of the last turn, end of turn included
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from weitune.data.conversation import Conversation
from weitune.data.prepare.holdout import hold_out
from weitune.data.prepare.prepare import prepare_items
from weitune.data.prepare.recipe_reader import read_options
from weitune.data.read.conversations import Reader, read_conversations
from weitune.errors import InputError
from weitune.evaluate.evaluation_set import rows_of
from weitune.evaluate.general import general_questions
from weitune.export.source.export_source import ExportSource, questions_in_place_of_data
from weitune.messages import say

ENOUGH_TOKENS = 200
"""Over fewer tokens, a perplexity depends too much on each of them for a bound of its own."""
_MOST_ROWS = 2000
_BUILTIN = ("builtin:captain-en", "builtin:storyteller-zh")


@dataclass(frozen=True, slots=True)
class VerificationPrompt:
    """A dialogue that ends with a question, and the tokens of its framing and of its answer."""

    dialogue: Conversation
    prompt_tokens: tuple[int, ...]
    context: tuple[int, ...]
    """What comes before :attr:`answer`: the prompt, and what the template writes that is not learned."""
    answer: tuple[int, ...]

    @property
    def question(self) -> str:
        return self.dialogue.turns[-1].content

    @property
    def messages(self) -> list[dict[str, str]]:
        """The dialogue as programs send it."""
        return [{"role": turn.role, "content": turn.content} for turn in self.dialogue.turns]


def choose_prompts(source: ExportSource, count: int) -> tuple[list[VerificationPrompt], list[str]]:
    """Return ``count`` prompts spread over the run's data, and notes for the user on where they are from.

    If the data cannot be read any more, built-in dialogues are used. Raises InputError if those cannot be framed.
    """
    unsent: list[Conversation] = []
    try:
        found = _spread(_prompts(source, source.dialogues(), unsent), count)
        if found or not unsent:
            return found, []
        reason = say("export.prompts.cannot_be_sent")
    except InputError as error:
        reason = " ".join(error.message.split())[:200]
    builtin = read_conversations(Reader(_BUILTIN, read_options(source.recipe)))
    return _spread(_prompts(source, builtin), count), [say("export.prompts.builtin_dialogues", reason=reason)]


class HeldOut(NamedTuple):
    """Dialogues that a run did not learn."""

    prompts: Sequence[VerificationPrompt]
    of_run: bool
    """Whether they are the run's validation data; if not, they are general questions with plain answers."""


def held_out_prompts(source: ExportSource, count: int) -> HeldOut:
    """Return ``count`` dialogues that the run did not learn: of its validation data, if it has them and they are there.

    They are more where their answers are so short that they would have too few tokens for a perplexity.
    There are none if the run's framing can take none of the general questions.
    """
    try:
        own = _with_enough_tokens(_prompts(source, _validation_rows(source)), count)
    except InputError:
        own = []
    if own:
        return HeldOut(own, of_run=True)
    asked = {question.prompt for question in questions_in_place_of_data()} if source.made_elsewhere else set()
    general = (question.answered for question in general_questions() if question.prompt not in asked)
    return HeldOut(_with_enough_tokens(_prompts(source, general), count), of_run=False)


def _validation_rows(source: ExportSource) -> Iterator[Conversation]:
    """Yield the run's validation data. Raises InputError if they cannot be read any more."""
    recipe = source.recipe
    if recipe.validation_fraction is None:
        if recipe.validation_files:
            yield from read_conversations(Reader(recipe.validation_files, read_options(recipe)))
        return
    _, held = hold_out(prepare_items(recipe, source.framing), recipe.validation_fraction)
    rows = rows_of(held)
    for conversation in source.dialogues():
        origin = conversation.origin
        if origin is not None and (origin.file, origin.row) in rows:
            yield conversation


def _spread(prompts: Iterator[VerificationPrompt], count: int) -> list[VerificationPrompt]:
    """Take ``count`` different prompts at even distances from the first ones."""
    return _evenly(_different(prompts), count)


def _with_enough_tokens(prompts: Iterator[VerificationPrompt], count: int) -> list[VerificationPrompt]:
    """Take ``count`` different prompts, or more until their answers have :data:`ENOUGH_TOKENS` together."""
    different = _different(prompts)
    chosen = _evenly(different, count)
    while len(chosen) < len(different) and sum(len(prompt.answer) for prompt in chosen) < ENOUGH_TOKENS:
        count *= 2
        chosen = _evenly(different, count)
    return chosen


def _different(prompts: Iterator[VerificationPrompt]) -> list[VerificationPrompt]:
    return list({prompt.prompt_tokens: prompt for prompt in islice(prompts, _MOST_ROWS)}.values())


def _evenly(prompts: list[VerificationPrompt], count: int) -> list[VerificationPrompt]:
    return prompts[:: max(1, len(prompts) // count)][:count]


def _prompts(
    source: ExportSource, conversations: Iterable[Conversation], unsent: list[Conversation] | None = None
) -> Iterator[VerificationPrompt]:
    """Yield a prompt for every dialogue that ends with an answer in plain text and fits the run's longest example.

    Those that other programs cannot be sent as training saw them are added to ``unsent`` instead.
    """
    for conversation in conversations:
        framed = source.with_system(conversation)
        *before, last = framed.turns
        if framed is not conversation:
            before = before[1:]  # the run's own system prompt, which an export adds by itself
        plain = not conversation.tools and all(turn.role != "tool" and not turn.tool_calls for turn in before)
        if last.role != "assistant" or last.tool_calls or last.weight == 0 or not plain or not before:
            continue
        try:
            *_, example = source.framing.examples(framed)
        except InputError:  # this framing cannot take it, as training has reported
            continue
        if not example.spans or len(example.input_ids) > source.recipe.tokens.max_length:
            continue
        dialogue, span = Conversation(tuple(before)), example.spans[-1]
        prompt = source.framing.prompt(source.with_system(dialogue))
        if not _can_be_sent(source, dialogue, prompt):
            if unsent is not None:
                unsent.append(dialogue)
            continue
        yield VerificationPrompt(
            dialogue, tuple(prompt), example.input_ids[: span.start], example.input_ids[span.start : span.stop]
        )


def _can_be_sent(source: ExportSource, dialogue: Conversation, prompt: list[int]) -> bool:
    """Return whether the texts of ``dialogue`` alone make ``prompt``.

    Text that looks like a control token becomes one in other programs, and they are sent no earlier reasoning.
    """
    if any(source.framing.lookalikes(turn.content) for turn in dialogue.turns):
        return False
    if not any(turn.reasoning for turn in dialogue.turns):
        return True
    texts = Conversation(tuple(turn._replace(reasoning=None) for turn in dialogue.turns))
    return source.framing.prompt(source.with_system(texts)) == prompt
