"""A tokenizer as GGUF metadata: BPE of bytes, as Llama 3 and Qwen have it, or of characters, as Gemma and Llama 2.

:mod:`weitune.gguf.splitting` says what happens to text before; verification then compares tokens, one by one.

BPE of characters writes a space as ▁ and a character that it does not know as its bytes. llama.cpp has no merges for it
but a score for every token, and always merges to the token with the highest score, as SentencePiece does. Where all
merges to one token follow each other, as in files that were made from SentencePiece's, both are the same algorithm.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from gguf import GGUFValueType, TokenType
from weitune.errors import ModelError
from weitune.gguf.header import GgufHeader
from weitune.gguf.metadata import Field, array, boolean, number, text
from weitune.gguf.splitting import space_before_text, splitting_name

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_END_TOKENS = ("eos", "eot", "eom")
"""GGUF names three tokens that end an answer: of the sequence, of the turn, of the message."""
_PHI3 = re.compile("phi-?3", re.IGNORECASE)
_NOT_STRIPPING = {"<unk>", "<s>", "<|endoftext|>"}
"""Tokens of Phi-3 that leave the white space after them as it is."""


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
    if core["model"].get("byte_fallback"):
        opened = _opens_with_token(tokenizer, template)
        own = _of_characters(core, tokens, types, merges, opened=opened)
    else:
        own = _of_bytes(core, merges)
    return {
        **own,
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
        "tokenizer.ggml.pre": text(splitting_name(core)),
        "tokenizer.ggml.merges": array([" ".join(pair) for pair in merges], GGUFValueType.STRING),
        "tokenizer.ggml.add_space_prefix": boolean(False),
    }


def _of_characters(
    core: dict[str, Any], tokens: Sequence[str], types: list[int], merges: Sequence[tuple[str, ...]], *, opened: bool
) -> dict[str, Field]:
    """Return the scores, and set the types of the tokens that stand for bytes and for what is unknown."""
    space = space_before_text(core, opened=opened)
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
        "tokenizer.ggml.add_space_prefix": boolean(space),
    }


def name_in_file(tokenizer: Any, name: str) -> str:
    """Return ``name`` for a file with the vocabulary of ``tokenizer``.

    Control tokens of Phi-3 swallow the white space after them. llama.cpp does so in files whose name has Phi-3 in it,
    and by nothing else that a file can say. So other files must not have it in their name.
    """
    strips = {token.content: token.rstrip for token in tokenizer.added_tokens_decoder.values()}
    as_phi3 = strips.keys() >= _NOT_STRIPPING and all(
        stripping == (content not in _NOT_STRIPPING) for content, stripping in strips.items()
    )
    if not (as_phi3 and "</s>" in strips):
        return _PHI3.sub("phi", name)
    return name if _PHI3.search(name) else f"Phi-3 {name}"


def strips_after(token: str, name: str) -> bool:
    """Return whether the added ``token`` swallows the white space after it, in a file of a model called ``name``."""
    return bool(_PHI3.search(name)) and token not in _NOT_STRIPPING


def end_metadata(stop_tokens: Sequence[int]) -> dict[str, Field]:
    """Return the tokens that end an answer. Raises ModelError if there are more than GGUF can name."""
    if len(stop_tokens) > len(_END_TOKENS):
        raise ModelError("gguf.vocabulary.too_many_stop_tokens", tokens=len(stop_tokens), most=len(_END_TOKENS))
    named = zip(_END_TOKENS, stop_tokens, strict=False)
    return {f"tokenizer.ggml.{name}_token_id": number(token) for name, token in named}


def token_id(header: GgufHeader, name: str) -> int | None:
    """Return the special token ``name`` of a file; None if it has none, for which llama.cpp also writes -1."""
    token = header.get(f"tokenizer.ggml.{name}_token_id")
    size = header.metadata["tokenizer.ggml.tokens"].count if "tokenizer.ggml.tokens" in header.metadata else math.inf
    return token if token is not None and 0 <= token < size else None


def stop_tokens(header: GgufHeader) -> int | list[int] | None:
    """Return the tokens that end an answer, as transformers' configurations have them."""
    named = (token_id(header, name) for name in _END_TOKENS)
    tokens = list(dict.fromkeys(token for token in named if token is not None))
    return tokens if len(tokens) > 1 else next(iter(tokens), None)


def _tokens(core: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return the text and the type of every token by its id; unused ids are filled in.

    A tokenizer may have tokens beyond the ``size`` rows of the embedding (Gemma 3 1B's stands for images): no model can
    read them, and they are left out.
    """
    tokens = [f"[unused{i}]" for i in range(size)]
    types = [int(TokenType.UNUSED)] * size
    for content, i in core["model"]["vocab"].items():
        if i < size:
            tokens[i], types[i] = content, int(TokenType.NORMAL)
    for token in core["added_tokens"]:
        if token["id"] >= size:
            continue
        tokens[token["id"]] = token["content"]
        types[token["id"]] = int(TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED)
    return tokens, types


def _adds_bos(tokenizer: Any, template: str) -> bool:
    """Return whether llama.cpp should put the BOS token first: the tokenizer does, and so does the ``template``.

    The plain framing of a model without a template of its own has none; a template that has it gives one BOS token.
    """
    ids = tokenizer.encode("a", add_special_tokens=True)
    adds = tokenizer.bos_token_id is not None and bool(ids) and ids[0] == tokenizer.bos_token_id
    if not adds or not template:
        return adds
    return _prompt(tokenizer, template).startswith(tokenizer.bos_token)


def _opens_with_token(tokenizer: Any, template: str) -> bool:
    """Return whether prompts framed by ``template`` begin with an added token."""
    prompt = _prompt(tokenizer, template) if template else ""
    return prompt.startswith(tuple(token.content for token in tokenizer.added_tokens_decoder.values()))


def _prompt(tokenizer: Any, template: str) -> str:
    asked = [{"role": "user", "content": "a"}]
    return str(tokenizer.apply_chat_template(asked, chat_template=template, tokenize=False, add_generation_prompt=True))
