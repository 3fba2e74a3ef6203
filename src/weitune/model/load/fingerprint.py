"""Fingerprints that tell whether a model and its tokenizer are still those of a run, without reading gigabytes.

    model           configuration, and of every weight file its size and its first and last MiB (in safetensors the
                    first holds every tensor's name, type and place)
    model weights   of every tensor its name, type, shape, and 4 KiB from its middle
    tokenizer       tokenizer.json, tokenizer_config.json and chat_template.jinja, the same way
    tokenizer text  the complete contents of every file of a tokenizer, and all that a GGUF file says of it
    stop tokens     those of generation_config.json or of a GGUF file, at which answers end besides the framing's own

Training changes every value of a tensor, so a replaced tensor is noticed. A change of a few rows may go unnoticed. That
is enough to warn whoever resumes a run, but not for caches: a file made of another model would be used without a word.
So their keys also have :func:`stored_state`.

Cost: 2 MiB of each weight file, a page of each tensor and the tokenizer: 0.2 s for 291 tensors of 2.5 GB. It grows with
the number of files and tensors, not with their size.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from weitune.messages import say
from weitune.model.load.config import GENERATION_CONFIG
from weitune.model.load.locate import ModelFiles
from weitune.model.load.weight_files import stored_weights, weight_files

_EDGE_BYTES = 1 << 20
_MIDDLE_BYTES = 4096
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_TOKENIZER_TEXTS = (*_TOKENIZER_FILES, "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
                    "merges.txt", "tokenizer.model", "spiece.model", "chat_template.json")  # fmt: skip
ADDED = ("model weights", "tokenizer text", "stop tokens")
"""Fingerprints that runs of weitune 0.1.0 did not record."""


def base_fingerprints(files: ModelFiles) -> dict[str, str]:
    """Return all fingerprints of a model and its tokenizer, by their names in a run's files and in messages."""
    return {
        "model": model_fingerprint(files),
        "tokenizer": tokenizer_fingerprint(files),
        "model weights": weights_fingerprint(files),
        "tokenizer text": _digest_whole(files),
        "stop tokens": _stop_tokens(files),
    }


def fingerprints_as(recorded: Mapping[str, object], files: ModelFiles) -> dict[str, str]:
    """Return :func:`base_fingerprints`, each in an old form if ``recorded`` has it so and it is the same."""
    now = base_fingerprints(files)
    old: dict[str, Callable[[ModelFiles], str]] = {"model": _with_every_file}
    if files.gguf:  # whose tokenizer and stop tokens were not looked at
        old |= {"tokenizer text": _files_whole, "stop tokens": lambda _: hashlib.sha256(b"null").hexdigest()}
    for name, in_old_form in old.items():
        if recorded.get(name) not in {None, now[name]} and recorded[name] == in_old_form(files):
            now[name] = str(recorded[name])
    return now


def differences(recorded: Mapping[str, object], files: ModelFiles) -> list[str]:
    """Return a line for each of the ``recorded`` fingerprints that ``files`` do not have any more."""
    return [
        say("model.fingerprint.differs", name=name, recorded=str(recorded[name])[:12], now=now[:12])
        for name, now in fingerprints_as(recorded, files).items()
        if name in recorded and recorded[name] != now
    ]


def model_fingerprint(files: ModelFiles) -> str:
    """Return the SHA-256 over a model's configuration and the edges of its weight files."""
    if files.gguf:
        return _digest([files.path])
    return _digest([*weight_files(files.folder), files.folder / "config.json"])


def weights_fingerprint(files: ModelFiles) -> str:
    """Return the SHA-256 over every tensor's name, type and shape, and 4 KiB from the middle of each."""
    digest = hashlib.sha256()
    if files.gguf:
        from weitune.gguf.header import read_header

        for name, tensor in read_header(files.path).tensors.items():
            digest.update(f"{name} {tensor.type.name} {tensor.shape}\n".encode())
            start = _middle(len(tensor.content))
            digest.update(tensor.content[start : start + _MIDDLE_BYTES])
        return digest.hexdigest()
    opened: dict[str, int] = {}
    try:
        for name, weight in sorted(stored_weights(files.folder).items()):
            if weight.file not in opened:
                opened[weight.file] = os.open(files.folder / weight.file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            digest.update(f"{name} {weight.dtype} {weight.shape}\n".encode())
            length = min(_MIDDLE_BYTES, weight.bytes)
            digest.update(_read(opened[weight.file], weight.start + _middle(weight.bytes), length))
    finally:
        for descriptor in opened.values():
            os.close(descriptor)
    return digest.hexdigest()


def stored_state(files: ModelFiles) -> list[list[object]]:
    """Return of each weight file of a model where it is, its size and when it was last written."""
    paths = [files.path] if files.gguf else weight_files(files.folder)
    states = [(path.resolve(), path.stat()) for path in sorted(paths)]
    return [[str(path), state.st_size, state.st_mtime_ns] for path, state in states]


def tokenizer_fingerprint(files: ModelFiles) -> str:
    """Return the SHA-256 over a model's tokenizer files; a GGUF file holds its tokenizer at its beginning."""
    if files.gguf and files.tokenizer_folder == files.folder:
        return _digest([files.path])
    return _digest([files.tokenizer_folder / name for name in _TOKENIZER_FILES])


def _stop_tokens(files: ModelFiles) -> str:
    """Return the SHA-256 over the stop tokens of a model; over its generation config itself if that is broken."""
    if files.gguf:
        from weitune.gguf.header import read_header
        from weitune.gguf.vocabulary import stop_tokens

        return hashlib.sha256(json.dumps(stop_tokens(read_header(files.path))).encode()).hexdigest()
    path = files.folder / GENERATION_CONFIG
    content = path.read_bytes() if path.is_file() else b""
    with suppress(ValueError, AttributeError):
        content = json.dumps(json.loads(content).get("eos_token_id")).encode() if content else b"null"
    return hashlib.sha256(content).hexdigest()


def _with_every_file(files: ModelFiles) -> str:
    """Return the model's fingerprint as weitune 0.1.0 took it: with every safetensors file, the model's or not."""
    if files.gguf:
        return model_fingerprint(files)
    return _digest([*sorted(files.folder.glob("*.safetensors")), files.folder / "config.json"])


def _digest_whole(files: ModelFiles) -> str:
    """Return the SHA-256 over all of a tokenizer: its files, and what a GGUF file says of it."""
    if not files.gguf or files.tokenizer_folder != files.folder:
        return _files_whole(files)
    from weitune.gguf.header import read_header

    digest = hashlib.sha256(_files_whole(files).encode())
    for key, entry in sorted(read_header(files.path).metadata.items()):
        if key.startswith("tokenizer."):
            digest.update(f"\n{key} {entry.type} {entry.element} {entry.count} ".encode() + entry.content)
    return digest.hexdigest()


def _files_whole(files: ModelFiles) -> str:
    folder = files.tokenizer_folder
    named = [folder / name for name in _TOKENIZER_TEXTS]
    digest = hashlib.sha256()
    for path in [*named, *sorted(folder.glob("additional_chat_templates/*.jinja"))]:
        if path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            if size > 2 * _EDGE_BYTES:
                file.seek(-_EDGE_BYTES, 2)
            digest.update(file.read())
    return digest.hexdigest()


def _middle(size: int) -> int:
    """Return the offset at which the middle :data:`_MIDDLE_BYTES` of ``size`` bytes begin."""
    return max(0, (size - _MIDDLE_BYTES) // 2)


def _read(descriptor: int, start: int, length: int) -> bytes:
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, length)
