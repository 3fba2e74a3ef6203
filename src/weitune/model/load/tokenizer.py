"""Load a model's tokenizer, and frame conversations with it. No code that comes with a model is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from weitune.data.frame.choose import framing_for
from weitune.data.frame.framing import Framing
from weitune.errors import InputError, ModelError, first_line
from weitune.model.load.gguf_tokenizer import gguf_tokenizer
from weitune.model.load.locate import ModelFiles
from weitune.recipe.schema import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TokenizerFraming(NamedTuple):
    """A tokenizer and the framing that works with it."""

    tokenizer: PreTrainedTokenizerFast
    framing: Framing


def open_framing(files: ModelFiles, tokens: Tokens) -> TokenizerFraming:
    """Load the tokenizer of the model in ``files``, and return it with the framing for a recipe's ``tokens``.

    Raises ModelError if there is no fast tokenizer, or if it cannot frame a turn that ends.
    """
    tokenizer = load_tokenizer(files)
    return TokenizerFraming(tokenizer, framing_for(tokenizer, tokens))


def load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model. Raises ModelError if there is none, or if it has no Rust implementation."""
    from transformers import AutoTokenizer

    folder = files.tokenizer_folder
    try:
        if files.gguf and folder == files.folder:
            tokenizer = gguf_tokenizer(files)
        else:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if files.template is not None:
            tokenizer.chat_template = files.template
    except InputError:
        raise
    except Exception as error:
        raise ModelError("model.tokenizer.cannot_be_loaded", folder=folder, reason=first_line(error)) from error
    if not tokenizer.is_fast:
        raise ModelError("model.tokenizer.only_slow", folder=folder)
    return tokenizer
