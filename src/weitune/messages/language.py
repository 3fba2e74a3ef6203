"""The language of messages: ``--language``, else ``WEITUNE_LANG``, else the language of the terminal.

The terminal's is in ``LC_ALL``, ``LC_MESSAGES`` or ``LANG``, such as ``zh_CN.UTF-8``; the first that is set decides.
What is not Chinese is English.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal, get_args

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
_VARIABLES = ("WEITUNE_LANG", "LC_ALL", "LC_MESSAGES", "LANG")

_chosen: list[Language] = []
"""The language that the process was told to use; empty if it was not."""
_spoken: ContextVar[Language | None] = ContextVar("weitune_language", default=None)


def language() -> Language:
    """Return the language in which messages are told here."""
    return _spoken.get() or (_chosen[0] if _chosen else _of_process())


def choose_language(name: Language | None) -> None:
    """Set the language of this process; None leaves it to the environment."""
    _chosen[:] = [] if name is None else [name]


@contextmanager
def speaking(name: Language) -> Iterator[None]:
    """Tell messages in another language while the block runs, in this thread only."""
    token = _spoken.set(name)
    try:
        yield
    finally:
        _spoken.reset(token)


def language_in(environment: Mapping[str, str]) -> Language:
    """Return the language that the variables of an environment ask for."""
    given = next((environment[name] for name in _VARIABLES if environment.get(name)), "")
    return "zh" if given.lower().startswith("zh") else "en"


@cache
def _of_process() -> Language:
    return language_in(os.environ)
