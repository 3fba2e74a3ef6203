"""What must hold of renderings before anything is learned from them.

What a template leaves out of a conversation would be lost in silence; what it writes otherwise than at inference would
be learned for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

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
        missing = [] if _contains(shown, turn.content) else ["the text"]
        # The whole has the names of calls in its list of tools too.
        added = _added(script, i, shown) if turn.tool_calls and i not in regions else shown
        missing += [
            f"the call of {call.name}"
            for call in turn.tool_calls
            if not _contains(shown, call.name) or not _contains(added, call.name)
        ]
        if missing:
            raise Refusal(
                "data.completeness.leaves_out_turn", reason="text", turn=i, missing=missing[0], i=i + 1, role=turn.role
            )
        if i in regions and turn.reasoning and not _contains(shown, turn.reasoning):
            raise Refusal("data.completeness.leaves_out_reasoning_turn", reason="reasoning", turn=i, i=i + 1)
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
    return text[_parting(before, text) :]


def check_thought(
    turn: Turn, i: int, prompt: str, ids: Sequence[int], tags: tuple[str, str], controls: Mapping[str, int]
) -> None:
    """Raise Refusal if the tokens around reasoning do not go together: those at the end of ``prompt`` and ``ids``, the
    control tokens of turn ``i``."""
    opening, closing = (tag.strip() for tag in tags)
    if opening not in controls or closing not in controls:
        return
    end = prompt.rstrip()
    if end.endswith(opening) and controls[closing] not in ids:
        raise Refusal("data.completeness.no_turn_so_all", reason="prompt", turn=i, i=i + 1, closing=closing)
    if turn.reasoning and end.endswith(closing) and controls[opening] in ids:
        raise Refusal("data.completeness.whose_prompt_has_ended", reason="prompt", turn=i, i=i + 1, end=end[-40:])


def never_seen(script: Script, i: int, prompt: str, text: str) -> Refusal:
    """Say where what asks for turn ``i`` and what is to be learned part, in the template's words and tokens."""
    without, given = (script.reveal(_around(*pair)) for pair in ((prompt, text), (text, prompt)))
    alike = " (once a control token, once text that looks like one)" if without == given else ""
    return Refusal(
        "data.completeness.without_model_would_learn",
        reason="prompt",
        turn=i,
        i=i + 1,
        without=without,
        given=given,
        alike=alike,
    )


def _contains(shown: str, content: str) -> bool:
    """Tell whether a rendering shows ``content``: trimmed perhaps, or as JSON (tools' answers in some templates)."""
    content = content.strip()
    return content in shown or any(json.dumps(content, ensure_ascii=only)[1:-1] in shown for only in (False, True))


def _around(text: str, other: str) -> str:
    """Return the last characters of ``text`` from where it parts from ``other``, for a message."""
    at = _parting(text, other)
    return text[max(0, at - 20) : at + 20]


def _parting(text: str, other: str) -> int:
    """Return where two texts part."""
    differing = (i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b)
    return next(differing, min(len(text), len(other)))
