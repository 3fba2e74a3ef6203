"""The tokenizer of a ``.gguf`` file: made in seconds (:mod:`weitune.gguf.tokenizer`), and kept in the cache.

A tokenizer.json beside the file is taken instead, if it has the file's tokens. transformers makes those of
architectures that weitune does not read, and of a file beside a tokenizer_config.json alone, which may name another
class. For the others it would lose how some split text: SmolLM2's digits, one by one.

    ~/.cache/weitune/tokenizers/<fingerprint>/      of the vocabulary, merges and template in the file
        tokenizer.json
        tokenizer_config.json
        chat_template.jinja

A tokenizer is only kept if what is read from there is the same tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf import TokenType
from weitune.errors import ModelError
from weitune.files.cache import cache_folder, mark_used
from weitune.files.publish import folder_written_aside, publish_unless_there
from weitune.gguf.configuration.find import is_known
from weitune.gguf.header import GgufHeader, read_header
from weitune.gguf.tokenizer import SPECIAL_TOKENS, tokenizer_of
from weitune.model.load.gguf_model import known
from weitune.model.load.locate import ModelFiles

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_PREFIX = "tokenizer."
_FILLED_UP = re.compile(r"\[(PAD|unused)\d+\]")
_VERSION = 1
"""Raised when a tokenizer would be made otherwise."""


def tokenizer_cache() -> Path:
    """Return the folder for converted tokenizers."""
    return cache_folder() / "tokenizers"


def gguf_tokenizer(files: ModelFiles) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a ``.gguf`` file. Raises ModelError or what transformers raises."""
    header = read_header(files.path)
    if (files.folder / TOKENIZER_FILES[0]).is_file():
        return _beside(files, header)
    beside = (files.folder / TOKENIZER_FILES[1]).is_file()
    if beside or (known(header) is None and not is_known(header)):
        from transformers import AutoTokenizer

        given: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(files.folder, **_local(files))
        return given
    folder = tokenizer_cache() / _fingerprint(header)
    tokenizer = _kept(folder)
    if tokenizer is None:
        tokenizer = tokenizer_of(header)
        _keep(tokenizer, folder)
    tokenizer.name_or_path = str(files.folder)
    return tokenizer


def _beside(files: ModelFiles, header: GgufHeader) -> PreTrainedTokenizerFast:
    """Return the tokenizer in the folder of a file. Raises ModelError unless its tokens are those of the file."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(
        files.folder, local_files_only=True, trust_remote_code=False
    )
    if not _has_tokens_of(tokenizer, header):
        raise ModelError("model.gguf_tokenizer.other_tokens", path=files.path, tokenizer=TOKENIZER_FILES[0])
    for key, name in SPECIAL_TOKENS.items():  # which tokenizer.json alone does not name
        token = header.get(f"tokenizer.ggml.{key}_token_id")
        if getattr(tokenizer, name) is None and token is not None and token < len(tokenizer):
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token))
    tokenizer.chat_template = tokenizer.chat_template or header.get("tokenizer.chat_template")
    return tokenizer


def _has_tokens_of(tokenizer: PreTrainedTokenizerFast, header: GgufHeader) -> bool:
    """Return whether a tokenizer has the tokens of a file.

    Converters write spaces in tokens that were added, leave out those for which the model has no row, and fill rows
    without a token up.
    """
    tokens: list[str] = header.get("tokenizer.ggml.tokens", [])
    types = header.get("tokenizer.ggml.token_type", [int(TokenType.NORMAL)] * len(tokens))
    known: list[str | None] = tokenizer.convert_ids_to_tokens(list(range(min(len(tokens), len(tokenizer)))))
    known += [None] * (len(tokens) - len(known))
    beyond = [i for i in range(len(tokens), len(tokenizer)) if i not in tokenizer.added_tokens_decoder]
    return not beyond and all(map(_is_same_token, tokens, known, types))


def _is_same_token(text: str, known: str | None, kind: int) -> bool:
    if kind == TokenType.UNUSED:
        return True
    if known is None:
        return bool(_FILLED_UP.fullmatch(text))
    return text == known or (kind == TokenType.USER_DEFINED and text == known.replace("▁", " "))


def _local(files: ModelFiles) -> dict[str, Any]:
    return {"gguf_file": files.gguf, "local_files_only": True, "trust_remote_code": False}


def _fingerprint(header: GgufHeader) -> str:
    import tokenizers
    import transformers

    made_by = [transformers.__version__, tokenizers.__version__, version("weitune"), _VERSION]
    name = str(header.get("general.name", ""))  # tells Phi-3 (weitune.gguf.vocabulary)
    digest = hashlib.sha256(json.dumps([*made_by, name]).encode())
    for key, entry in sorted(header.metadata.items()):
        if key.startswith(_PREFIX):
            digest.update(f"\0{key}\0{entry.type}\0{entry.element}\0{entry.count}\0".encode())
            digest.update(entry.content)
    return digest.hexdigest()[:32]


def _kept(folder: Path) -> PreTrainedTokenizerFast | None:
    """Return the tokenizer in ``folder``; None if there is none, or if it cannot be read."""
    if not all((folder / name).is_file() for name in TOKENIZER_FILES[:2]):
        return None
    try:
        tokenizer = _read(folder)
    except Exception:  # noqa: BLE001  (a damaged file may raise anything; it is made again)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    mark_used(folder / TOKENIZER_FILES[0])
    return tokenizer


def _read(folder: Path) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _keep(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write ``tokenizer`` to the cache if it can be read from there unchanged."""
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    with suppress(OSError):  # a cache that others may only read, or a full disk
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder_written_aside(folder, partial, publish_unless_there):
            tokenizer.save_pretrained(partial)
            if _facts(_read(partial)) != _facts(tokenizer):
                raise OSError


def _facts(tokenizer: Any) -> tuple[Any, ...]:
    """Return everything about a tokenizer that weitune uses."""
    return (
        type(tokenizer),
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        tokenizer.padding_side,
        {number: (token.content, token.special) for number, token in tokenizer.added_tokens_decoder.items()},
    )
