"""Load a model's tokenizer, and frame conversations with it. No code that comes with a model is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from weitune.data.frame.choose import framing_for
from weitune.data.frame.framing import Framing
from weitune.errors import InputError, ModelError, first_line
from weitune.messages import say
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
    framing = framing_for(tokenizer, tokens)
    if getattr(tokenizer.backend_tokenizer, "fix_mistral_regex", True) is False:  # transformers only logs it
        framing.notes.append(say("model.tokenizer.wrong_split"))
    return TokenizerFraming(tokenizer, framing)


def load_tokenizer(files: ModelFiles) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model. Raises ModelError if there is none, or if it has no Rust implementation."""
    from transformers import AutoTokenizer

    folder = files.tokenizer_folder
    try:
        if files.gguf and folder == files.folder:
            tokenizer = gguf_tokenizer(files)
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                mistral_format=False,  # with mistral-common installed, that would be a tokenizer in Python
            )
        if files.template is not None:
            tokenizer.chat_template = files.template
        elif not tokenizer.chat_template:
            tokenizer.chat_template = _template_of_processor(folder)
    except InputError:
        raise
    except Exception as error:
        raise ModelError("model.tokenizer.cannot_be_loaded", folder=folder, reason=first_line(error)) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError("model.tokenizer.only_slow", folder=folder)
    return tokenizer


def _template_of_processor(folder: Path) -> str | None:
    """Return the chat template that only a processor's file has, as in Mistral Small 3.1; None if there is none."""
    path = folder / "chat_template.json"
    template = json.loads(path.read_text(encoding="utf-8")).get("chat_template") if path.is_file() else None
    return template if isinstance(template, str) else None
