"""``ollama``: a GGUF file and a Modelfile for ``ollama create``.

Ollama frames with a Go template, not with the model's Jinja template. weitune does not translate one into the other: it
renders a few dialogues, reads off the text around each role's content, and writes that as a Go template.

    <|im_start|>system\\n  you are…  <|im_end|>\\n  <|im_start|>user\\n  hi  <|im_end|>\\n  <|im_start|>assistant\\n  …
    ╰── before system ──╯            ╰─ after ─╯

Then it renders other dialogues both ways and compares: a template that does more than frame turns is refused. The
token that the tokenizer adds at the beginning (``<|begin_of_text|>``) is left out, because Ollama adds it too.

The run's system prompt becomes the Modelfile's SYSTEM if that can hold it as training framed it (:mod:`.modelfile`).
Otherwise the template contains it, framed, for dialogues without a system message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from jinja2.exceptions import TemplateError

from weitune.errors import ModelError
from weitune.export.formats.modelfile import can_hold, go_action, quoted

Messages = list[dict[str, str]]
Render = Callable[[Messages, bool], str]
"""Renders messages, with or without the generation prompt."""

_TEST_DIALOGUES = ("su", "u", "suau", "uau", "suauau")
"""Dialogues that reveal templates which do more than frame turns; each letter is a role."""
_ROLES = {"s": "system", "u": "user", "a": "assistant"}


class Frames(Protocol):
    """What a Modelfile is written from: how dialogues are framed."""

    @property
    def system(self) -> str | None:
        """The run's system prompt, for SYSTEM; Ollama puts it before dialogues that have none."""

    def go_template(self) -> str:
        """Return the Go template."""


@dataclass(frozen=True, slots=True)
class TurnFrames:
    """The text before and after the content of each role."""

    around: Mapping[str, tuple[str, str]]
    opening: str
    """The generation prompt."""
    head: str
    """The beginning of a dialogue without a system message: the model's default system prompt, or the run's."""
    system: str | None = None
    """The run's system prompt, for SYSTEM, if that can hold it; Ollama puts it before dialogues that have none."""

    def render(self, messages: Messages) -> str:
        """Frame ``messages`` and ask for an answer, as :meth:`go_template` does."""
        head = self.head if messages[0]["role"] != "system" else ""
        turns = (f"{before}{m['content']}{after}" for m in messages for before, after in [self.around[m["role"]]])
        return "".join([head, *turns, self.opening])

    def go_template(self) -> str:
        head = f'{{{{- if ne (index .Messages 0).Role "system" }}}}{go_action(self.head)}{{{{- end }}}}' * bool(
            self.head
        )
        words = ("if", "else if", "else if")
        branches = "".join(
            f'{{{{- {word} eq .Role "{role}" }}}}{go_action(before)}{{{{ .Content }}}}{go_action(after)}'
            for word, (role, (before, after)) in zip(words, self.around.items(), strict=True)
        )
        return f"{head}{{{{- range .Messages }}}}{branches}{{{{- end }}}}{{{{- end }}}}{go_action(self.opening)}"


def turn_frames(render: Render, automatic: str = "", system: str | None = None) -> TurnFrames:
    """Read the frames off dialogues that ``render`` renders; ``automatic`` is what the tokenizer adds at the beginning.

    ``system`` is the run's system prompt. Raises ModelError if the template does more than frame turns.
    """

    def shown(roles: str, ask: bool = False) -> str:
        return render(_dialogue(roles), ask).removeprefix(automatic)

    frames = None
    try:
        frames = _read_off(shown)
        strange = next((case for case in _TEST_DIALOGUES if shown(case, True) != frames.render(_dialogue(case))), None)
        if system is not None and strange is None:
            asked = [{"role": "system", "content": system}, *_dialogue("u")]
            frames = _opened(frames, system, render(asked, True).removeprefix(automatic))
    except (ValueError, TemplateError):
        strange = _TEST_DIALOGUES[2]
    if strange is not None or frames is None:
        strange = strange or _TEST_DIALOGUES[2]
        raise ModelError("export.ollama.template_does_more", roles=", ".join(_ROLES[letter] for letter in strange))
    return frames


def _read_off(shown: Callable[..., str]) -> TurnFrames:
    """Take renderings apart. Raises ValueError unless every text is in them exactly once."""
    system, asked = shown("s"), shown("su")
    of_system = _around(system, _text(0))
    of_user = _around(asked.removeprefix(system), _text(1))
    again = f"{of_user[0]}{_text(3)}{of_user[1]}"
    of_assistant = _around(shown("suau").removeprefix(asked).removesuffix(again), _text(2))
    return TurnFrames(
        {"system": of_system, "user": of_user, "assistant": of_assistant},
        opening=shown("su", True).removeprefix(asked),
        head=shown("u").removesuffix(f"{of_user[0]}{_text(0)}{of_user[1]}"),
    )


def _opened(frames: TurnFrames, system: str, rendered: str) -> TurnFrames:
    """Return ``frames`` for a run with a system prompt; ``rendered`` is it and a question, framed as in training.

    Raises ValueError if the question is not framed as elsewhere.
    """
    before, after = frames.around["user"]
    question = f"{before}{_text(0)}{after}{frames.opening}"
    if not rendered.endswith(question):
        raise ValueError("the system prompt changes how a question is framed")
    opening = rendered.removesuffix(question)
    before, after = frames.around["system"]
    if system and can_hold(system) and opening == f"{before}{system}{after}":
        return replace(frames, system=system)
    return replace(frames, head=opening)


def modelfile(model: str, frames: Frames, stop_texts: Sequence[str], context: int) -> str:
    """Return the Modelfile: greedy, as the run answers, with its system prompt and the texts that end an answer.

    Raises ModelError if a text that ends an answer, or the file's name, cannot be written in a Modelfile.
    """
    for text in (model, *stop_texts):
        if not can_hold(text) or (text == model and set(text) & set("\n\r")):
            raise ModelError("export.ollama.unprintable", text=text)
    lines = [
        f"FROM ./{model}",
        f'TEMPLATE """{frames.go_template()}"""',
        *([f"SYSTEM {quoted(frames.system)}"] if frames.system else []),
        *(f"PARAMETER stop {quoted(text)}" for text in stop_texts),
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        f"PARAMETER num_ctx {context}",
    ]
    return "\n".join(lines) + "\n"


def _dialogue(roles: str) -> Messages:
    return [{"role": _ROLES[letter], "content": _text(i)} for i, letter in enumerate(roles)]


def _text(i: int) -> str:
    return f"⟦text {i}⟧"


def _around(rendered: str, text: str) -> tuple[str, str]:
    before, after = rendered.split(text)
    return before, after
