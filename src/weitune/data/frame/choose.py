"""Choose the framing that a recipe asks for."""

from __future__ import annotations

import difflib
from typing import Any

from weitune.data.frame.chat import ChatFraming
from weitune.data.frame.framing import Framing
from weitune.data.frame.tutorial import TutorialFraming
from weitune.errors import RecipeError
from weitune.recipe.schema import Tokens


def framing_for(tokenizer: Any, tokens: Tokens) -> Framing:
    """Return the framing that a recipe's ``tokens`` ask for; ``tokenizer`` is a transformers fast tokenizer.

    Raises ModelError if the tokenizer cannot frame a turn that ends.
    """
    return TutorialFraming(tokenizer) if tokens.template == "tutorial" else ChatFraming(tokenizer, tokens)


def check_arguments(framing: Framing, tokens: Tokens) -> None:
    """Raise RecipeError if ``tokens`` give the template of ``framing`` an argument that it does not read.

    Jinja itself would ignore it, so a wrong name would change nothing without a word.
    """
    unread = sorted(set(tokens.template_args or {}) - framing.variables)
    if not unread:
        return
    known = sorted(framing.argument_names)
    if near := difflib.get_close_matches(unread[0], known, n=1):
        raise RecipeError("data.choose.argument_like_another", name=unread[0], near=near[0])
    raise RecipeError("data.choose.unread_argument", name=unread[0], known=", ".join(known) or "-")
