"""The prompts that an export is verified on: dialogues of the run's own data, with the answers the run was taught.

messages       without the run's system prompt: the export must know it
prompt_tokens  the same dialogue framed by the run, system prompt included: what the model sees
answer         the supervised tokens of the last turn, end of turn included
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from weitune.data.conversation import Conversation
from weitune.data.prepare.recipe_reader import read_options
from weitune.data.read.conversations import Reader, read_conversations
from weitune.errors import InputError
from weitune.export.source.export_source import ExportSource
from weitune.messages import say

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
    try:
        return _spread(_prompts(source, source.dialogues()), count), []
    except InputError as error:
        reason = " ".join(error.message.split())
        builtin = read_conversations(Reader(_BUILTIN, read_options(source.recipe)))
        return _spread(_prompts(source, builtin), count), [say("export.prompts.builtin_dialogues", reason=reason[:200])]


def _spread(prompts: Iterator[VerificationPrompt], count: int) -> list[VerificationPrompt]:
    """Take ``count`` different prompts at even distances from the first ones."""
    different = list({prompt.prompt_tokens: prompt for prompt in islice(prompts, _MOST_ROWS)}.values())
    return different[:: max(1, len(different) // count)][:count]


def _prompts(source: ExportSource, conversations: Iterable[Conversation]) -> Iterator[VerificationPrompt]:
    """Yield a prompt for every dialogue that ends with an answer in plain text and fits the run's longest example."""
    for conversation in conversations:
        *before, last = conversation.turns
        plain = not conversation.tools and all(turn.role != "tool" and not turn.tool_calls for turn in before)
        if last.role != "assistant" or last.tool_calls or last.weight == 0 or not plain or not before:
            continue
        try:
            *_, example = source.framing.examples(source.with_system(conversation))
        except InputError:  # this framing cannot take it, as training has reported
            continue
        if not example.spans or len(example.input_ids) > source.recipe.tokens.max_length:
            continue
        dialogue, span = Conversation(tuple(before)), example.spans[-1]
        yield VerificationPrompt(
            dialogue,
            tuple(source.framing.prompt(source.with_system(dialogue))),
            example.input_ids[: span.start],
            example.input_ids[span.start : span.stop],
        )
