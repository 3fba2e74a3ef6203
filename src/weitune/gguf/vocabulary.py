"""A tokenizer as GGUF metadata: BPE of bytes, as Llama 3 and Qwen have it, or of characters, as Gemma has it.

llama.cpp splits text before BPE of bytes by one of the regular expressions compiled into it, which a file names.
weitune recognises the name from the expression in tokenizer.json; verification then compares tokens, one by one.

BPE of characters writes a space as ▁ and a character that it does not know as its bytes. llama.cpp has no merges for it
but a score for every token, and always merges to the token with the highest score, as SentencePiece does. Where all
merges to one token follow each other, as in files that were made from SentencePiece's, both are the same algorithm.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from gguf import GGUFValueType, TokenType
from weitune.errors import ModelError
from weitune.gguf.metadata import Field, array, boolean, number, text

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MARKED = _MODERN.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r" ?[^\s\p{L}\p{N}]", r" ?[^\s\p{L}\p{M}\p{N}]")
"""With the marks that follow a letter, as Qwen3.5 has it."""
_NAMES = {
    (_MODERN % "",): "qwen2",
    (_MARKED % "",): "qwen35",
    (_MODERN % "{1,3}",): "llama-bpe",
    (_GPT2,): "gpt-2",
    (r"\p{N}", _GPT2): "smollm",
}
_WITHOUT_IGNORED_MERGES = {"llama-bpe": "dbrx"}
"""llama.cpp's name for the same expression where a word that is a token must still be merged step by step."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_END_TOKENS = ("eos", "eot", "eom")
"""GGUF names three tokens that end an answer: of the sequence, of the turn, of the message."""


def vocabulary_metadata(tokenizer: Any, size: int, stop_tokens: Sequence[int], template: str) -> dict[str, Field]:
    """Return the vocabulary of a transformers fast ``tokenizer``, filled up to ``size`` tokens, and its chat template.

    Raises ModelError if llama.cpp cannot tokenize as it does.
    """
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    if core["model"]["type"] != "BPE":
        raise ModelError("gguf.vocabulary.not_bpe", type=core["model"]["type"])
    tokens, types = _tokens(core, size)
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in core["model"]["merges"]]
    special = {"bos": tokenizer.bos_token_id, "padding": tokenizer.pad_token_id, "unknown": tokenizer.unk_token_id}
    of_characters = core["model"].get("byte_fallback")
    return {
        **(_of_characters(core, tokens, types, merges) if of_characters else _of_bytes(core, merges)),
        "tokenizer.ggml.tokens": array(tokens, GGUFValueType.STRING),
        "tokenizer.ggml.token_type": array(types, GGUFValueType.INT32),
        **{f"tokenizer.ggml.{name}_token_id": number(token) for name, token in special.items() if token is not None},
        "tokenizer.ggml.add_bos_token": boolean(_adds_bos(tokenizer, template)),
        **end_metadata(stop_tokens),
        "tokenizer.chat_template": text(template),
    }


def _of_bytes(core: dict[str, Any], merges: Sequence[tuple[str, ...]]) -> dict[str, Field]:
    return {
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text(_pre_tokenizer(core)),
        "tokenizer.ggml.merges": array([" ".join(pair) for pair in merges], GGUFValueType.STRING),
        "tokenizer.ggml.add_space_prefix": boolean(False),
    }


def _of_characters(
    core: dict[str, Any], tokens: Sequence[str], types: list[int], merges: Sequence[tuple[str, ...]]
) -> dict[str, Field]:
    """Return the scores, and set the types of the tokens that stand for bytes and for what is unknown."""
    _check_splitting(core)
    ranks: dict[str, int] = {}
    last = ""
    for rank, pair in enumerate(merges):
        merged = "".join(pair)
        if merged != last and merged in ranks:
            raise ModelError("gguf.vocabulary.scattered_merges", token=merged)
        ranks.setdefault(merged, rank)
        last = merged
    for i, token in enumerate(tokens):
        if types[i] == TokenType.NORMAL and _BYTE.fullmatch(token):
            types[i] = int(TokenType.BYTE)
    if (unknown := core["model"].get("unk_token")) is not None:
        types[tokens.index(unknown)] = int(TokenType.UNKNOWN)
    return {
        "tokenizer.ggml.model": text("llama"),
        "tokenizer.ggml.pre": text("default"),
        "tokenizer.ggml.scores": array(
            [-float(ranks.get(token, len(merges))) for token in tokens], GGUFValueType.FLOAT32
        ),
        "tokenizer.ggml.add_space_prefix": boolean(False),
    }


def _check_splitting(core: dict[str, Any]) -> None:
    """Raise ModelError unless text becomes characters as llama.cpp makes them: spaces as ▁, and none put before it."""
    normalizer, splitter = core["normalizer"], core["pre_tokenizer"]
    if normalizer != _SPACE:
        raise ModelError("gguf.vocabulary.unknown_normalizer", normalizer=(normalizer or {"type": "none"})["type"])
    if splitter is not None and (splitter["type"] != "Split" or splitter["pattern"] != {"String": " "}):
        raise ModelError("gguf.vocabulary.unknown_pre_tokenizer", patterns=[splitter["type"]])


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


def _adds_bos(tokenizer: Any, template: str) -> bool:
    """Return whether llama.cpp should put the BOS token first: the tokenizer does, and so does the ``template``.

    The plain framing of a model without a template of its own has none; a template that has it gives one BOS token.
    """
    ids = tokenizer.encode("a", add_special_tokens=True)
    adds = tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id
    if not adds or not template:
        return adds
    asked = [{"role": "user", "content": "a"}]
    rendered = tokenizer.apply_chat_template(asked, chat_template=template, tokenize=False, add_generation_prompt=True)
    return str(rendered).startswith(tokenizer.bos_token)
