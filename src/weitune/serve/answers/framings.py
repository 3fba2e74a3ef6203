"""How requests are framed and answers read: by the run's own framing, or with other template arguments for one request.

A framing and the form of its answers are found once and kept; of those with arguments of requests, the last few are.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weitune.data.calls.derive import answer_form
from weitune.data.calls.form import AnswerForm
from weitune.data.calls.marks import Marks
from weitune.data.frame.framing import Framing
from weitune.errors import WeituneError
from weitune.serve.errors import ApiError

_KEPT = 16


@dataclass(frozen=True, slots=True)
class KnownFraming:
    """A framing, and how its answers are read."""

    framing: Framing
    form: AnswerForm
    marks: Marks
    preserved: tuple[str, ...]
    """Control tokens that the engine must write in its text, since they frame parts of an answer."""


class Framings:
    """Finds known framings."""

    def __init__(self) -> None:
        self._own: dict[int, KnownFraming] = {}
        self._others: OrderedDict[tuple[int, str], KnownFraming] = OrderedDict()
        self._making = threading.Lock()

    def of(self, framing: Framing, arguments: Mapping[str, Any] | None = None) -> KnownFraming:
        """Return what is known of ``framing``, with other template ``arguments`` if there are any.

        Raises ApiError for an argument that the template does not read, whose text spells a control token or a part of
        one, or with which the template cannot be used.
        """
        if not arguments:
            if id(framing) not in self._own:
                self._own[id(framing)] = _known(framing)
            return self._own[id(framing)]
        unread = sorted(set(arguments) - framing.argument_names)
        if unread:
            names = ", ".join(sorted(framing.argument_names)) or "-"
            raise ApiError(
                400,
                "serve.framings.unread",
                name=unread[0][:100],
                names=names,
                param=f"chat_template_kwargs.{unread[0]}"[:100],
            )
        for name, value in arguments.items():
            if isinstance(value, str) and _spells_control(framing, value):
                raise ApiError(400, "serve.framings.control_token", name=name, param=f"chat_template_kwargs.{name}")
        with self._making:  # requests with arguments are framed in threads
            return self._other(framing, arguments)

    def _other(self, framing: Framing, arguments: Mapping[str, Any]) -> KnownFraming:
        key = (id(framing), json.dumps(arguments, sort_keys=True))
        if key not in self._others:
            try:
                self._others[key] = _known(framing.with_arguments(arguments))
            except WeituneError as error:
                raise ApiError(
                    400, "serve.errors.passed_on", message=error.message, param="chat_template_kwargs"
                ) from None
        self._others.move_to_end(key)
        while len(self._others) > _KEPT:
            self._others.popitem(last=False)
        return self._others[key]


def _spells_control(framing: Framing, text: str) -> bool:
    """Return whether ``text``, which the template may write beside anything, could make up a control token there."""
    if framing.lookalikes(text):
        return True
    return any(
        text.endswith(control[:part]) or text.startswith(control[part:])
        for control in framing.control_tokens
        for part in range(2, len(control) - 1)
    )


def _known(framing: Framing) -> KnownFraming:
    form, marks = answer_form(framing)
    tokens = marks.tokens_in(form.literals)
    return KnownFraming(framing, form, marks, tuple(sorted(marks.texts[token] for token in tokens)))
