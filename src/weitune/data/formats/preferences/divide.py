"""Where a dialogue is divided into a prompt and an answer.

system, user, assistant (call), tool, assistant       one dialogue: its answer follows the last turn of the user
              ╰─────────── answer ────────────╯
system, user, assistant (call), tool, assistant A     two dialogues: the answers begin where they part, but with a
system, user, assistant (call), tool, assistant B     turn of the assistant
╰────────────── prompt ────────────╯
"""

from __future__ import annotations

from weitune.data.conversation import Turn
from weitune.data.formats.dialogues import Turns
from weitune.data.formats.fields import Fields


def last_answer(turns: Turns) -> int:
    """Return where the answer of a dialogue begins: after the last turn of the user, or else the system prompt."""
    return max((at + 1 for at, turn in enumerate(turns) if turn.role in ("user", "system")), default=0)


def parting(fields: Fields, chosen: Turns, rejected: Turns, key: str) -> int | None:
    """Return how many turns the prompt of two dialogues has; None after noting the fault that there is none.

    The answers of two equal dialogues are their last ones.
    """
    common = 0
    for one, other in zip(context(chosen), context(rejected), strict=False):
        if one != other:
            break
        common += 1
    if common == len(chosen) == len(rejected):
        return last_answer(chosen)
    if common == min(len(chosen), len(rejected)):
        fields.fault("data.divide.one_begins_the_other", field=key)
        return None
    while common and "tool" in (chosen[common].role, rejected[common].role):
        common -= 1
    if common and chosen[common].role == rejected[common].role == "assistant":
        return common
    fields.fault("data.divide.different_prompts", field=f"{key}[{common}]")
    return None


def context(turns: Turns) -> Turns:
    """Return turns as a prompt has them: none of them is learned, so their weights mean nothing."""
    return tuple(turn if turn.weight == 1 else turn._replace(weight=1.0) for turn in turns)


def check_prompt(fields: Fields, turns: Turns, field: str) -> None:
    """Note the fault that nothing asks for an answer."""
    if not turns:
        fields.fault("data.divide.no_prompt", field=field)
    elif turns[-1].role == "assistant":
        fields.fault("data.divide.prompt_ends_with_answer", field=field)


def check_answer(fields: Fields, turns: Turns, field: str) -> None:
    """Note the faults that an answer is not the assistant's from its first to its last turn, or is weighted."""
    if not turns or turns[0].role != "assistant" or turns[-1].role != "assistant":
        roles = ", ".join(turn.role for turn in turns)
        fields.fault("data.divide.not_an_answer" if roles else "data.divide.no_answer", field=field, roles=roles)
    if any(turn.role == "system" for turn in turns):
        fields.fault("data.messages.late_system_prompt", field=field)
    if any(_is_weighted(turn) for turn in turns):
        fields.fault("data.divide.weighted_answer", field=field)


def _is_weighted(turn: Turn) -> bool:
    return turn.role == "assistant" and turn.weight != 1
