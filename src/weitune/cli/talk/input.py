"""The input line of ``weitune chat``: Enter sends, Alt-Enter begins a new line, arrows recall earlier input.

prompt_toolkit measures characters as the terminal shows them, so the cursor moves correctly through Chinese text. The
history is kept in memory only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from prompt_toolkit import PromptSession
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.styles import Style

PROMPT, CONTINUED = "› ", "… "


def typed_lines() -> Iterator[str]:
    """Yield what is typed until Ctrl-D. Raises KeyboardInterrupt for Ctrl-C at the prompt."""
    session: PromptSession[str] = PromptSession(
        [("class:mark", PROMPT)],
        multiline=True,
        prompt_continuation=[("class:mark", CONTINUED)],
        key_bindings=_keys(),
        history=InMemoryHistory(),
        style=Style.from_dict({"mark": "ansicyan bold"}),
        output=create_output(always_prefer_tty=True),  # the prompt is not part of a redirected answer
    )
    with suppress(EOFError):
        while True:
            yield session.prompt()


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
