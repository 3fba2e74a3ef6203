"""What the rows of a run ask, so that no other answer to the same is kept beside them.

Prompts are compared as text, without their system prompts: upper or lower case, the forms that Unicode has of one
character, white space, and punctuation at either end make no difference. The rows of an earlier run are compared in
tokens: under another system prompt they are other prompts.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

from weitune.data.conversation import Conversation, Example
from weitune.data.formats.parse import Row
from weitune.data.preference.values import Item, examples_in
from weitune.data.prepare.holdout import ItemSet
from weitune.data.prepare.recipe_reader import read_options
from weitune.data.read.conversations import Reader
from weitune.recipe.schema import Recipe


def asked_in(recipe: Recipe) -> set[bytes]:
    """Return the keys (:func:`text_key`) of all that the rows of ``recipe`` ask, also those for validation.

    The last question of a dialogue has a key of its own, too.
    """
    reader = Reader([*recipe.data, *recipe.validation_files], read_options(recipe))
    asked = (prompt for _, row in reader.valid_rows() for prompt in prompts_in(row))
    return {key for prompt in asked for key in (text_key(prompt), text_key(_last_question(prompt)))}


def token_keys(sets: Iterable[ItemSet[Item]]) -> set[bytes]:
    """Return the keys (:func:`token_key`) of what stands before each learned answer of all items in ``sets``."""
    every = (items[i] for items in sets for i in range(len(items)))  # one at a time: there may be millions
    examples = (example for item in every for example in examples_in([item]))
    return {token_key(example, span.start) for example in examples for span in example.spans}


def text_key(prompt: Conversation) -> bytes:
    """Return a key of what ``prompt`` says without its system prompt; equal keys mean the same question."""
    said = [(turn.role, _plain(turn.content)) for turn in prompt.turns if turn.role != "system"]
    return hashlib.sha256(repr(said).encode()).digest()


def token_key(example: Example, stop: int) -> bytes:
    """Return a key of the first ``stop`` tokens of ``example``."""
    return hashlib.sha256(np.asarray(example.input_ids[:stop], np.int32).tobytes()).digest()


def prompts_in(row: Row) -> Iterator[Conversation]:
    """Yield what stands before each answer in ``row`` that is learned or judged."""
    if not isinstance(row, Conversation):
        yield row.prompt
        return
    for at, turn in enumerate(row.turns):
        if turn.role == "assistant" and turn.weight:
            yield row.before(at)


def _last_question(prompt: Conversation) -> Conversation:
    last = [turn for turn in prompt.turns if turn.role == "user"][-1:]
    return Conversation(tuple(last))


def _plain(text: str) -> str:
    """Return ``text`` with one form of each character, and nothing but letters and digits at its ends."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    within = [at for at, character in enumerate(plain) if character.isalnum()]
    return plain[within[0] : within[-1] + 1] if within else plain
