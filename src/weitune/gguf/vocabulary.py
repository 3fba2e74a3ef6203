"""A tokenizer as GGUF metadata: byte-level BPE, as the Llama 3 and Qwen families use it.

llama.cpp splits text before BPE by one of the regular expressions compiled into it, which a file names. weitune
recognises the name from the expression in tokenizer.json; verification then compares tokens, one by one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gguf import GGUFValueType, TokenType
from weitune.errors import ModelError
from weitune.gguf.metadata import Field, array, boolean, number, text

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMES = {(_MODERN % "",): "qwen2", (_MODERN % "{1,3}",): "llama-bpe", (_GPT2,): "gpt-2", (r"\p{N}", _GPT2): "smollm"}
_WITHOUT_IGNORED_MERGES = {"llama-bpe": "dbrx"}
"""llama.cpp's name for the same expression where a word that is a token must still be merged step by step."""
_END_TOKENS = ("eos", "eot", "eom")
"""GGUF names three tokens that end an answer: of the sequence, of the turn, of the message."""


def vocabulary_metadata(tokenizer: Any, size: int, stop_tokens: Sequence[int], template: str) -> dict[str, Field]:
    """Return the vocabulary of a transformers fast ``tokenizer``, filled up to ``size`` tokens, and its chat template.

    Raises ModelError if llama.cpp cannot tokenize as it does.
    """
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    if core["model"]["type"] != "BPE":
        raise ModelError("gguf.vocabulary.not_bpe", type=core["model"]["type"])
    if core["model"].get("byte_fallback"):
        raise ModelError("gguf.vocabulary.byte_fallback")
    tokens, types = _tokens(core, size)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in core["model"]["merges"]]
    special = {"bos": tokenizer.bos_token_id, "padding": tokenizer.pad_token_id, "unknown": tokenizer.unk_token_id}
    return {
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text(_pre_tokenizer(core)),
        "tokenizer.ggml.tokens": array(tokens, GGUFValueType.STRING),
        "tokenizer.ggml.token_type": array(types, GGUFValueType.INT32),
        "tokenizer.ggml.merges": array(merges, GGUFValueType.STRING),
        **{f"tokenizer.ggml.{name}_token_id": number(token) for name, token in special.items() if token is not None},
        "tokenizer.ggml.add_bos_token": boolean(_adds_bos(tokenizer)),
        "tokenizer.ggml.add_space_prefix": boolean(False),
        **end_metadata(stop_tokens),
        "tokenizer.chat_template": text(template),
    }


def end_metadata(stop_tokens: Sequence[int]) -> dict[str, Field]:
    """Return the tokens that end an answer. Raises ModelError if there are more than GGUF can name."""
    if len(stop_tokens) > len(_END_TOKENS):
        raise ModelError("gguf.vocabulary.too_many_stop_tokens", tokens=len(stop_tokens), most=len(_END_TOKENS))
    named = zip(_END_TOKENS, stop_tokens, strict=False)
    return {f"tokenizer.ggml.{name}_token_id": number(token) for name, token in named}


def _tokens(core: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return the text and the type of every token by its id; unused ids are filled in."""
    tokens = [f"[unused{i}]" for i in range(size)]
    types = [int(TokenType.UNUSED)] * size
    for content, i in core["model"]["vocab"].items():
        tokens[i], types[i] = content, int(TokenType.NORMAL)
    for token in core["added_tokens"]:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = int(TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED)
    return tokens, types


def _pre_tokenizer(core: dict[str, Any]) -> str:
    """Return llama.cpp's name for how ``core`` splits text. Raises ModelError if it has none."""
    patterns = tuple(_patterns(core["pre_tokenizer"]))
    name = _NAMES.get(patterns)
    if name is None:
        raise ModelError("gguf.vocabulary.unknown_pre_tokenizer", patterns=list(patterns))
    if (core["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        raise ModelError("gguf.vocabulary.unknown_normalizer", normalizer=core["normalizer"]["type"])
    return name if core["model"].get("ignore_merges") else _WITHOUT_IGNORED_MERGES.get(name, name)


def _patterns(step: dict[str, Any] | None) -> list[str]:
    """Return the regular expressions that split text, in order."""
    if step is None:
        return []
    match step["type"]:
        case "Sequence":
            return [pattern for part in step["pretokenizers"] for pattern in _patterns(part)]
        case "Split":
            return [step["pattern"].get("Regex", "a literal")]
        case "Digits":
            return [r"\p{N}" if step["individual_digits"] else r"\p{N}+"]
        case "ByteLevel":
            return [_GPT2] if step["use_regex"] else []
        case other:
            return [other]


def _adds_bos(tokenizer: Any) -> bool:
    """Return whether plain encoding puts the BOS token first."""
    ids = tokenizer.encode("a", add_special_tokens=True)
    return tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id
