"""Check renderings before anything is learned from them.

What a template leaves out of a conversation would be lost silently. What it writes differently than at inference would
be learned in vain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from weitune.data.conversation import Turn
from weitune.data.frame.script import Refusal, Script


def check_complete(script: Script, whole: str, regions: Mapping[int, str]) -> None:
    """Raise Refusal if the template leaves out a turn, a call, a tool, or the reasoning of a learned turn.

    ``whole`` is the rendering of all turns, ``regions`` are those of the learned turns alone. The reasoning of a turn
    that is only context may be left out, as templates do once a dialogue has gone on.
    """
    shown_whole = script.reveal(whole)
    for i, turn in enumerate(script.conversation.turns):
        shown = script.reveal(regions[i]) if i in regions else shown_whole
        place = {"turn": i, "number": i + 1}
        if not _contains(shown, turn.content):
            raise Refusal("data.completeness.leaves_out_text", reason="text", **place, role=turn.role)
        # The whole rendering has the names of calls in its list of tools too.
        added = _added(script, i, shown) if turn.tool_calls and i not in regions else shown
        for call in turn.tool_calls:
            if not _contains(shown, call.name) or not _contains(added, call.name):
                raise Refusal(
                    "data.completeness.leaves_out_call", reason="text", **place, role=turn.role, name=call.name
                )
        if i in regions and turn.reasoning and not _contains(shown, turn.reasoning):
            raise Refusal("data.completeness.leaves_out_reasoning", reason="reasoning", **place)
    for tool in script.conversation.tools:
        name = tool.get("function", tool).get("name", "")
        if not _contains(shown_whole, name):
            raise Refusal("data.completeness.leaves_out_tool", reason="tools", name=name)


def _added(script: Script, i: int, whole: str) -> str:
    """Return what turn ``i`` adds to the rendering of the turns before it; ``whole`` if that cannot be rendered."""
    try:
        before, text = (script.reveal(script.render(turns).text) for turns in (i, i + 1))
    except Refusal:
        return whole
    return text[_first_difference(before, text) :]


def check_reasoning(
    turn: Turn, i: int, prompt: str, ids: Sequence[int], tags: tuple[str, str], controls: Mapping[str, int]
) -> None:
    """Raise Refusal if the end of ``prompt`` and turn ``i`` do not fit together: both open the reasoning, or neither
    closes it. ``ids`` are the control tokens of the turn."""
    opening, closing = (tag.strip() for tag in tags)
    if opening not in controls or closing not in controls:
        return
    end = prompt.rstrip()
    if end.endswith(opening) and controls[closing] not in ids:
        raise Refusal("data.completeness.thought_not_closed", reason="prompt", turn=i, number=i + 1, closing=closing)
    if turn.reasoning and end.endswith(closing) and controls[opening] in ids:
        raise Refusal("data.completeness.thought_closed", reason="prompt", turn=i, number=i + 1, end=end[-40:])


def never_seen(script: Script, i: int, prompt: str, text: str) -> Refusal:
    """Return the Refusal of turn ``i``, whose rendering ``text`` does not begin with the ``prompt`` for it."""
    without, given = (script.reveal(_around(*pair)) for pair in ((prompt, text), (text, prompt)))
    values: dict[str, Any] = {"reason": "prompt", "turn": i, "number": i + 1, "without": without, "given": given}
    if without == given:  # once a control token, once text that looks like one
        return Refusal("data.completeness.never_seen_alike", **values)
    return Refusal("data.completeness.never_seen", **values)


def _contains(shown: str, content: str) -> bool:
    """Return whether a rendering has ``content``, perhaps trimmed, or as JSON (tools' answers in some templates)."""
    content = content.strip()
    return content in shown or any(json.dumps(content, ensure_ascii=only)[1:-1] in shown for only in (False, True))


def _around(text: str, other: str) -> str:
    """Return the characters of ``text`` around its first difference from ``other``."""
    at = _first_difference(text, other)
    return text[max(0, at - 20) : at + 20]


def _first_difference(text: str, other: str) -> int:
    differing = (i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b)
    return next(differing, min(len(text), len(other)))
