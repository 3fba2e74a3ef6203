"""The tokenizer of a GGUF file as a transformers fast tokenizer, made of the file's metadata alone.

    gpt2    BPE of bytes         the file's tokens and merges; text is split by the name that the file gives
    llama   BPE of characters    merges made of the scores, as SentencePiece and llama.cpp merge

It is the way back from :mod:`weitune.gguf.vocabulary`. A file does not say all that tokenizer.json says. These things
are not as they were:

- whether text is composed (NFC) before BPE of bytes: here it is where the published tokenizers under that name do it;
- an unknown token is a special token, and an added token is matched before text is normalized;
- a token that the chat template puts first, while the tokenizer itself does not, is not put first;
- unused ids at the end of the vocabulary have no token, those in its midst have one that no merge makes;
- a space that only comes before text at the very beginning (Metaspace) does not come at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gguf import TokenType
from weitune.errors import ModelError
from weitune.gguf.header import GgufHeader
from weitune.gguf.splitting import splitting_of
from weitune.gguf.vocabulary import strips_after

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
_SPACE = "▁"


class _Vocabulary(NamedTuple):
    tokens: list[str]
    """Text by id."""
    types: list[int]

    @property
    def ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}


def tokenizer_of(header: GgufHeader) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a file. Raises ModelError if weitune does not know its kind, or how it splits text."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = _vocabulary(header)
    kind = str(header.get("tokenizer.ggml.model", ""))
    if kind == "gpt2":
        core = _of_bytes(header, vocabulary)
    elif kind == "llama":
        core = _of_characters(header, vocabulary)
    else:
        raise ModelError("gguf.tokenizer.unknown_model", model=kind)
    core.add_tokens(_added_tokens(vocabulary, str(header.get("general.name", ""))))
    named = {name: _token(header, vocabulary, key) for key, name in SPECIAL_TOKENS.items()}
    opens = kind == "llama" or splitting_of(str(header.get("tokenizer.ggml.pre", ""))).opens
    first = named["bos_token"] if header.get("tokenizer.ggml.add_bos_token", opens) else None
    last = named["eos_token"] if header.get("tokenizer.ggml.add_eos_token", False) else None
    if first or last:
        core.post_processor = _surrounding(core, first, last)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in named.items() if token is not None},
    )
    tokenizer.chat_template = header.get("tokenizer.chat_template") or None
    return tokenizer


def _vocabulary(header: GgufHeader) -> _Vocabulary:
    """Return the tokens of a file, without the unused ones at its end, which only fill up the model's rows."""
    tokens: list[str] = header.metadata["tokenizer.ggml.tokens"].value
    types = header.get("tokenizer.ggml.token_type", [int(TokenType.NORMAL)] * len(tokens))
    end = len(tokens)
    while end and types[end - 1] == TokenType.UNUSED:
        end -= 1
    return _Vocabulary(tokens[:end], types[:end])


def _token(header: GgufHeader, vocabulary: _Vocabulary, key: str) -> str | None:
    i = header.get(f"tokenizer.ggml.{key}_token_id")
    return vocabulary.tokens[i] if i is not None and i < len(vocabulary.tokens) else None


def _added_tokens(vocabulary: _Vocabulary, name: str) -> list[Any]:
    """Return the tokens that are found in text before anything else, in a file whose model is called ``name``."""
    from tokenizers import AddedToken

    return [
        AddedToken(
            token, special=kind != TokenType.USER_DEFINED, normalized=False, rstrip=strips_after(token, name)
        )
        for token, kind in zip(*vocabulary, strict=True)
        if kind in _ADDED
    ]  # fmt: skip


def _of_bytes(header: GgufHeader, vocabulary: _Vocabulary) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    splitting = splitting_of(str(header.get("tokenizer.ggml.pre", "")))
    merges = [tuple(pair.split(" ", 1)) for pair in header.metadata["tokenizer.ggml.merges"].value]
    core = Tokenizer(models.BPE(vocabulary.ids, merges, ignore_merges=splitting.ignores_merges))
    if splitting.composes:
        core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splitting.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    return core


def _of_characters(header: GgufHeader, vocabulary: _Vocabulary) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    unknown = next(
        (token for token, kind in zip(*vocabulary, strict=True) if kind == TokenType.UNKNOWN),
        _token(header, vocabulary, "unknown"),
    )
    merges = merges_of(*vocabulary, header.metadata["tokenizer.ggml.scores"].value)
    core = Tokenizer(models.BPE(vocabulary.ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    decoding = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if header.get("tokenizer.ggml.add_space_prefix", True):
        core.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
        decoding.append(decoders.Strip(" ", 1, 0))
    else:
        core.normalizer = normalizers.Replace(" ", _SPACE)
    core.decoder = decoders.Sequence(decoding)
    return core


def merges_of(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return the merges of a BPE of characters whose tokens have ``scores``: all pairs of tokens that make a token.

    The pairs of the token with the highest score come first, and among those the ones with the longer left part, as
    transformers orders them when it converts SentencePiece's files. Tokens with the lowest score of all are merged from
    nothing: single characters, and in weitune's files all that has no merges. In files with one score for all, as
    llama.cpp's converter writes them without SentencePiece's file, the order is that of the ids. Seconds for 262,144
    tokens.
    """
    apart = (TokenType.BYTE, TokenType.UNUSED)
    whole = {token for token, kind in zip(tokens, types, strict=True) if kind not in apart}
    ranked = [scores[i] for i, token in enumerate(tokens) if token in whole]
    lowest = min(ranked) if len(set(ranked)) > 1 else -math.inf
    merged = [i for i, token in enumerate(tokens) if token in whole and scores[i] > lowest]
    merged.sort(key=lambda i: -scores[i])
    return [
        (token[:at], token[at:])
        for token in (tokens[i] for i in merged)
        for at in range(len(token) - 1, 0, -1)
        if token[:at] in whole and token[at:] in whole
    ]


def _surrounding(core: Tokenizer, first: str | None, last: str | None) -> Any:
    """Return what puts the token ``first`` before text and ``last`` after it."""
    from tokenizers import processors

    before, after = [first] if first else [], [last] if last else []
    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B", *after],
        special_tokens=[(token, core.token_to_id(token)) for token in {*before, *after}],
    )
