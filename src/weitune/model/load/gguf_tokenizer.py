"""The tokenizer of a ``.gguf`` file: made in seconds, and kept in the cache.

    Llama, Qwen2, Qwen3            by transformers, for the architecture's class
    others that weitune writes     by weitune (:mod:`weitune.gguf.tokenizer`), as a plain fast tokenizer
    the rest                       by transformers, if it knows the architecture; not kept

    ~/.cache/weitune/tokenizers/<fingerprint>/      of the vocabulary, merges and template in the file
        tokenizer.json
        tokenizer_config.json
        chat_template.jinja

A tokenizer is only kept if what is read from there is the same tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weitune.files.cache import cache_folder, mark_used
from weitune.files.publish import folder_written_aside, publish_unless_there
from weitune.gguf.header import GgufHeader, read_header
from weitune.gguf.tokenizer import tokenizer_of
from weitune.model.load.gguf_model import known
from weitune.model.load.locate import ModelFiles

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_PREFIX = "tokenizer."
_WRITTEN = frozenset(
    {
        "deepseek2", "ernie4_5", "exaone4", "falcon-h1", "gemma", "gemma2", "gemma3", "gemma4", "glm4", "glm4moe",
        "gpt-oss", "granite", "granitemoe", "hunyuan-dense", "lfm2", "lfm2moe", "minimax-m2", "olmo2", "olmoe", "phi3",
        "qwen2moe", "qwen35", "qwen35moe", "qwen3moe", "qwen3next", "seed_oss", "smollm3",
    }
)  # fmt: skip
"""Architectures that weitune writes, but for those that :func:`known` knows. Mixtral is "llama" with experts."""


def tokenizer_cache() -> Path:
    """Return the folder for converted tokenizers."""
    return cache_folder() / "tokenizers"


def gguf_tokenizer(files: ModelFiles) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a ``.gguf`` file. Raises ModelError or what transformers raises."""
    header = read_header(files.path)
    beside = (files.folder / "tokenizer_config.json").is_file()  # it may name another class
    own = _is_own(header)
    if beside or (known(header) is None and not own):
        from transformers import AutoTokenizer

        given: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(files.folder, **_local(files))
        return given
    folder = tokenizer_cache() / _fingerprint(header)
    tokenizer = _kept(folder, header)
    if tokenizer is None:
        tokenizer = tokenizer_of(header) if own else _class(header).from_pretrained(files.folder, **_local(files))
        _keep(tokenizer, folder, header)
    tokenizer.name_or_path = str(files.folder)
    return tokenizer


def _is_own(header: GgufHeader) -> bool:
    """Return whether weitune makes the tokenizer of a file."""
    mixtral = header.architecture == "llama" and "llama.expert_count" in header.metadata
    return mixtral or header.architecture in _WRITTEN


def _local(files: ModelFiles) -> dict[str, Any]:
    return {"gguf_file": files.gguf, "local_files_only": True, "trust_remote_code": False}


def _class(header: GgufHeader) -> Any:
    """Return the class of the architecture's tokenizer; AutoTokenizer would read the whole configuration to find it."""
    from transformers import CONFIG_MAPPING, TOKENIZER_MAPPING, PreTrainedTokenizerFast

    if _is_own(header):
        return PreTrainedTokenizerFast
    return TOKENIZER_MAPPING.get(CONFIG_MAPPING[header.architecture], PreTrainedTokenizerFast)


def _fingerprint(header: GgufHeader) -> str:
    import tokenizers
    import transformers

    versions = [transformers.__version__, tokenizers.__version__, header.architecture]
    if _is_own(header):  # made by this version of weitune, and the name tells Phi-3 (weitune.gguf.vocabulary)
        versions += [version("weitune"), str(header.get("general.name", ""))]
    digest = hashlib.sha256(json.dumps(versions).encode())
    for key, entry in sorted(header.metadata.items()):
        if key.startswith(_PREFIX):
            digest.update(f"\0{key}\0{entry.type}\0{entry.element}\0{entry.count}\0".encode())
            digest.update(entry.content)
    return digest.hexdigest()[:32]


def _kept(folder: Path, header: GgufHeader) -> PreTrainedTokenizerFast | None:
    """Return the tokenizer in ``folder``; None if there is none, or if it cannot be read."""
    if not all((folder / name).is_file() for name in TOKENIZER_FILES[:2]):
        return None
    try:
        tokenizer = _read(folder, header)
    except Exception:  # noqa: BLE001  (a damaged file may raise anything; it is made again)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    mark_used(folder / TOKENIZER_FILES[0])
    return tokenizer


def _read(folder: Path, header: GgufHeader) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    kind = _class(header)
    tokenizer: PreTrainedTokenizerFast = kind.from_pretrained(folder, local_files_only=True)
    if kind is not PreTrainedTokenizerFast:  # classes such as Qwen2Tokenizer put their own steps in place of the file's
        tokenizer._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILES[0]))
    return tokenizer


def _keep(tokenizer: PreTrainedTokenizerFast, folder: Path, header: GgufHeader) -> None:
    """Write ``tokenizer`` to the cache if it can be read from there unchanged."""
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    with suppress(OSError):  # a cache that others may only read, or a full disk
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder_written_aside(folder, partial, publish_unless_there):
            tokenizer.save_pretrained(partial)
            if _facts(_read(partial, header)) != _facts(tokenizer):
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
