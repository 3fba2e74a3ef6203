"""Open the tokenizer of a model and frame conversations with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from weitune.data.frame.choose import framing_for
from weitune.data.frame.framing import Framing
from weitune.model.load.locate import ModelFiles
from weitune.model.load.tokenizer import load_tokenizer
from weitune.recipe.schema import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TokenizerFraming(NamedTuple):
    """A tokenizer and the framing that works with it."""

    tokenizer: PreTrainedTokenizerFast
    framing: Framing


def open_framing(files: ModelFiles, tokens: Tokens) -> TokenizerFraming:
    """Load the tokenizer of the model in ``files`` and return it with the framing that a recipe's ``tokens`` ask for.

    Raises ModelError if there is no fast tokenizer, or if it cannot frame a turn that ends.
    """
    tokenizer = load_tokenizer(files)
    return TokenizerFraming(tokenizer, framing_for(tokenizer, tokens))
