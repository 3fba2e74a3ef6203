"""Tokens to text, one token at a time, without ever showing half a character.

A token of a byte-level vocabulary may hold a part of a character (a Chinese character has 3 bytes, an emoji 4), and
decoding such a part gives the replacement character U+FFFD. Text after the last whole character is therefore held back:

    token          bytes          decoded so far      returned
    "你"           E4 BD A0       你                  你
    half of 好     E5 A5          你�                 (nothing)
    the rest       BD             你好                好

Decoding restarts at the last boundary between tokens that was also one between characters, so an answer of n tokens
costs O(n). One token before that boundary stays as context: some decoders drop a space at the beginning of a text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REPLACEMENT = "\ufffd"


class Detokenizer:
    """Turns a stream of tokens into pieces of text; special tokens give none.

    The pieces joined are the whole text, but for a character at the end whose last bytes never came.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # tokens since the boundary before last
        self._read = 0  # how many of them lie before the last boundary
        self._shown = 0  # characters of the decoded window that were returned

    def add(self, token: int) -> str:
        """Return the text that is complete with ``token``; often empty."""
        self._window.append(token)
        text = self._decode(self._window)
        whole = text.rstrip(REPLACEMENT)
        piece = whole[self._shown :]
        if whole != text:
            self._shown = max(self._shown, len(whole))
            return piece
        if piece:
            self._window, self._read = self._window[self._read :], len(self._window) - self._read
            self._shown = len(self._decode(self._window))
        return piece

    def _decode(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # noqa: S101  (a list of numbers is one string, not a batch)
        return text
