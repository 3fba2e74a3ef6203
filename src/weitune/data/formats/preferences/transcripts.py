"""Dialogues as one text, as the data set HH writes them: ``"\\n\\nHuman: q\\n\\nAssistant: a"``.

White space around what somebody says is not kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from weitune.data.conversation import Role, Turn
from weitune.data.formats.dialogues import Turns
from weitune.data.formats.fields import Fields
from weitune.data.formats.pairs import answer

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES: Mapping[str, Role] = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: str) -> bool:
    """Return whether ``text`` begins as a dialogue in one text."""
    return _SPEAKER.match(text) is not None


def is_opening(text: str) -> bool:
    """Return whether ``text`` is such a dialogue up to where the assistant answers."""
    return is_transcript(text) and text.rstrip().endswith("\n\nAssistant:")


def read_transcript(fields: Fields, text: str, field: str) -> Turns:
    """Return the turns of a dialogue in one text."""
    turns = []
    _, *said = _SPEAKER.split(text)
    for speaker, words in zip(said[::2], said[1::2], strict=True):
        role, content = _ROLES[speaker], words.strip()
        turns.append(answer(fields, content, field) if role == "assistant" else Turn(role, content))
    return tuple(turns)
