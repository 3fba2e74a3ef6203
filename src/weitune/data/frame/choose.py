"""Choose the framing that a recipe asks for."""

from __future__ import annotations

from typing import Any

from weitune.data.frame.chat import ChatFraming
from weitune.data.frame.framing import Framing
from weitune.data.frame.tutorial import TutorialFraming
from weitune.recipe.schema import Tokens


def framing_for(tokenizer: Any, tokens: Tokens) -> Framing:
    """Return the framing that a recipe's ``tokens`` ask for; ``tokenizer`` is a transformers fast tokenizer.

    Raises ModelError if the tokenizer cannot frame a turn that ends.
    """
    return TutorialFraming(tokenizer) if tokens.template == "tutorial" else ChatFraming(tokenizer, tokens)
