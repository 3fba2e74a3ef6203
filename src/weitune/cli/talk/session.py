"""The dialogue of ``weitune chat``: questions in, answers out as they are generated, and the commands with a slash.

Answers go to standard output, everything else to standard error.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from rich.text import Text

from weitune.cli.shared.terminal import console, print_error, working
from weitune.errors import WeituneError
from weitune.generate.chat_engine import ChatEngine, ChatStream
from weitune.generate.dialogue import Dialogue
from weitune.generate.sampling import Sampling
from weitune.messages import say


@dataclass(frozen=True, slots=True)
class ChatTarget:
    """A model to talk to: its ``name`` for people, and ``load``, which returns its engine."""

    name: str
    load: Callable[[], ChatEngine]


class ChatSession:
    """A person's dialogue with a tuned model, in which single questions can go to its base."""

    def __init__(
        self,
        tuned: ChatTarget,
        base: ChatTarget,
        *,
        system: str | None,
        sampling: Sampling,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """With ``schema`` every answer is JSON that fits it, unless it is cut."""
        self.tuned, self.base, self.sampling, self.schema = tuned, base, sampling, schema
        self.dialogue = Dialogue(system)
        self._said_dropped = False

    def load(self, target: ChatTarget | None = None) -> ChatEngine:
        """Return the engine of ``target`` (default: the tuned model), with a spinner while it loads."""
        target = target or self.tuned
        with working(say("cli.session.loading", name=target.name)):
            return target.load()

    def welcome(self) -> None:
        engine = self.load()
        tell(f"{self.tuned.name} · {engine.about}")
        if self.dialogue.system:
            tell(say("cli.session.system_prompt", system=self.dialogue.system))
        for note in engine.notes:
            tell(note)
        tell(say("cli.session.how_to"))

    def converse(self, lines: Iterable[str], *, stoppable: bool = False) -> None:
        """Answer every line until ``/quit`` or the end.

        With ``stoppable``, Ctrl-C and errors end an answer; otherwise, they end the chat and are raised.
        """
        take = self._take_or_tell if stoppable else self._take
        for line in lines:
            if not take(_without_surrogates(line).strip()):
                return

    def say(self, question: str) -> None:
        question = _without_surrogates(question)
        stream = self.dialogue.ask(self.load(), question, self.sampling, self.schema)
        if self.dialogue.dropped and not self._said_dropped:
            self._said_dropped = True
            tell(say("cli.session.oldest_turns_forgotten"))
        try:
            self._print(stream)
        finally:
            self.dialogue.remember(question, stream.answer.text)

    def _take_or_tell(self, line: str) -> bool:
        """Carry out one line; Ctrl-C and errors end it, not the chat."""
        try:
            return self._take(line)
        except KeyboardInterrupt:
            tell(say("cli.session.stopped"))
        except WeituneError as error:
            print_error(error)
        return True

    def _take(self, line: str) -> bool:
        """Carry out one line; return whether to go on."""
        command, *rest = line.split(None, 1) or [""]
        match command, "".join(rest):
            case "", _:
                pass
            case "/quit" | "/exit", _:
                return False
            case "/help", _:
                tell(say("cli.session.help"))
            case "/reset", _:
                self._restart(self.dialogue.system)
                tell(say("cli.session.dialogue_forgotten"))
            case "/system", "":
                tell(f"{self.dialogue.system}\n" if self.dialogue.system else say("cli.session.no_system_prompt"))
            case "/system", text:
                self._restart(None if text in {"''", '""'} else text)
                tell(say("cli.session.system_prompt_set"))
            case "/base", text:
                self._ask_base(text)
            case unknown, _ if unknown.startswith("/"):
                tell(say("cli.session.no_such_command", unknown=unknown))
            case _:
                self.say(line)
        return True

    def _restart(self, system: str | None) -> None:
        self.dialogue = Dialogue(system)
        self._said_dropped = False

    def _ask_base(self, text: str) -> None:
        question = text or self.dialogue.last_question
        if question is None:
            tell(say("cli.session.no_question_yet"))
            return
        dialogue = self.dialogue.copy() if text else self.dialogue.before_last_question()
        base = self.load(self.base)
        tell(say("cli.session.base"))
        self._print(dialogue.ask(base, question, self.sampling, self.schema))

    def _print(self, stream: ChatStream) -> None:
        show = _harmless if sys.stdout.isatty() else str
        try:
            with working(say("cli.session.reading")):
                first = next(stream, "")
            for piece in chain([first], stream):
                print(show(piece), end="", flush=True)
        finally:
            stream.close()
            print(flush=True)
        if not stream.answer.stopped:
            count = stream.length_tokens
            tell(say("cli.session.cut") if count is None else say("cli.session.cut_after", count=count))
        if sys.stdin.isatty() and sys.stdout.isatty():
            print(flush=True)


def tell(text: str) -> None:
    """Print ``text``, dimmed, to standard error."""
    console().print(Text(text, style="dim"))


def _harmless(text: str) -> str:
    """Remove control characters: a model's output must not control the terminal."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")


def _without_surrogates(text: str) -> str:
    """Replace surrogates, which come from invalid UTF-8 in a terminal or pipe and which no tokenizer accepts."""
    return text.encode("utf-8", "replace").decode("utf-8")
