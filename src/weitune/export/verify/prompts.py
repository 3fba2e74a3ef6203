"""What an export is asked: dialogues of the run's own data, each with the answer that the run was taught.

messages  without the run's system prompt: the export must know it
prompt    the same dialogue framed by the run, system prompt included: what the model sees
answer    the supervised tokens of the last turn, end of turn included
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from weitune.data.conversation import Conversation
from weitune.data.prepare.prepare import read_options
from weitune.data.read.conversations import read_conversations
from weitune.errors import InputError
from weitune.export.source.export_source import ExportSource
from weitune.messages import say

_ROWS_LOOKED_AT = 2000
_BUILTIN = ("builtin:captain-en", "builtin:storyteller-zh")


@dataclass(frozen=True, slots=True)
class VerificationPrompt:
    """One dialogue that ends with a question, and tokens of its framing and of its answer."""

    asked: Conversation
    prompt: tuple[int, ...]
    context: tuple[int, ...]
    """What comes before :attr:`answer`: the prompt, and what the template writes that is not learned."""
    answer: tuple[int, ...]

    @property
    def question(self) -> str:
        """The last thing that was said to the model."""
        return self.asked.turns[-1].content

    @property
    def messages(self) -> list[dict[str, str]]:
        """The dialogue as programs send it."""
        return [{"role": turn.role, "content": turn.content} for turn in self.asked.turns]


def choose_prompts(tuned: ExportSource, count: int) -> tuple[list[VerificationPrompt], list[str]]:
    """Return ``count`` probes spread over the run's data, and what the user should know about where they are from.

    Built-in dialogues stand in when the data are not here any more. Raises InputError if those cannot be framed either.
    """
    try:
        return _spread(_probes(tuned, tuned.dialogues()), count), []
    except InputError as error:
        reason = " ".join(error.message.split())
        note = say("export.prompts.run_s_data_cannot", reason=reason[:200])
        builtin = read_conversations(_BUILTIN, read_options(tuned.recipe))
        return _spread(_probes(tuned, builtin), count), [note]


def _spread(probes: Iterator[VerificationPrompt], count: int) -> list[VerificationPrompt]:
    """Take ``count`` of the first probes, evenly, the shortest first when there are few."""
    found = list({probe.prompt: probe for probe in islice(probes, _ROWS_LOOKED_AT)}.values())
    step = max(1, len(found) // count)
    return found[::step][:count]


def _probes(tuned: ExportSource, conversations: Iterable[Conversation]) -> Iterator[VerificationPrompt]:
    """Yield a probe for every dialogue that ends with an answer in plain text and fits the run's longest example."""
    for conversation in conversations:
        *before, last = conversation.turns
        plain = not conversation.tools and all(turn.role != "tool" and not turn.tool_calls for turn in before)
        if last.role != "assistant" or last.tool_calls or last.weight == 0 or not plain or not before:
            continue
        try:
            *_, example = tuned.framing.examples(tuned.asked(conversation))
        except InputError:  # this framing cannot take it; training has said so
            continue
        asked = Conversation(tuple(before))
        if not example.spans or len(example.input_ids) > tuned.recipe.tokens.max_length:
            continue
        span = example.spans[-1]
        prompt = tuple(tuned.framing.prompt(tuned.asked(asked)))
        yield VerificationPrompt(
            asked, prompt, example.input_ids[: span.start], example.input_ids[span.start : span.stop]
        )


def shortened(value: Any) -> str:
    """Return a text short enough for one line."""
    text = " ".join(str(value).split())
    return text if len(text) <= 30 else text[:29] + "…"
