"""Text files of any usual encoding, plain or compressed, as a stream of characters.

One pass over the bytes gives what everything else needs: the hash of the contents and the encoding. UTF-8 (with or
without a byte order mark), UTF-16 and GB18030 are told apart by reading, not by guessing from a name: bytes that are
not UTF-8 are GB18030 only if they decode as such and most of them are everyday Chinese characters. Otherwise the file
is damaged UTF-8, and the row with the first bad byte is named. Cost: one read of the file (two if it is not UTF-8).
"""

from __future__ import annotations

import codecs
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

_BLOCK = 1 << 20
_SAMPLE = 1 << 16
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What one pass over a file tells: SHA-256 of the (decompressed) bytes, how many, compression and encoding."""

    sha256: str
    size_bytes: int
    compression: str | None
    encoding: str


def open_bytes(path: Path) -> IO[bytes]:
    """Open ``path`` for reading, decompressed. Reading raises OSError if the compression is broken."""
    compression = compression_of(path)
    if compression is None:
        return path.open("rb")
    stream: IO[bytes] = pa.CompressedInputStream(pa.OSFile(str(path)), compression)
    return stream


def compression_of(path: Path) -> str | None:
    """Return ``gzip``, ``zstd`` or None, from the file's first bytes."""
    with path.open("rb") as file:
        head = file.read(4)
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def blocks(path: Path) -> Iterator[bytes]:
    """Yield the decompressed bytes of ``path``."""
    with open_bytes(path) as file:
        while block := file.read(_BLOCK):
            yield bytes(block)


def examine(path: Path, text: bool = True) -> FileFacts:
    """Read ``path`` once and return its facts; ``text`` False leaves the encoding out.

    Raises OSError if the file cannot be read or its compression is broken.
    """
    digest = hashlib.sha256()
    size = 0
    scan: _Scan | None = None
    for block in blocks(path):
        digest.update(block)
        size += len(block)
        if text:
            scan = scan or _Scan(block)
            scan.feed(block)
    if scan is not None:
        scan.end()
    encoding = "" if not text else "utf-8" if scan is None else scan.verdict(path)
    return FileFacts(digest.hexdigest(), size, compression_of(path), encoding)


class _Scan:
    """Decides on an encoding from the first block, and checks whether all blocks decode as UTF-8."""

    def __init__(self, head: bytes) -> None:
        self._declared = _declared(head)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._damage: bytes | None = None

    def feed(self, block: bytes) -> None:
        if self._declared is None and self._damage is None:
            try:
                self._decoder.decode(block)
            except UnicodeDecodeError as error:
                self._damage = error.object[error.start : error.start + _SAMPLE]

    def end(self) -> None:
        if self._declared is None and self._damage is None:
            try:
                self._decoder.decode(b"", final=True)
            except UnicodeDecodeError as error:
                self._damage = error.object[error.start :]

    def verdict(self, path: Path) -> str:
        if self._declared is not None:
            return self._declared
        return "gb18030" if self._damage is not None and _is_chinese(self._damage, path) else "utf-8"


def _declared(head: bytes) -> str | None:
    """Return the encoding that a byte order mark declares, or UTF-16 if every other byte of the beginning is zero."""
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if len(head) >= 4 and head[1] == head[3] == 0 and head[0]:
        return "utf-16-le"
    if len(head) >= 4 and head[0] == head[2] == 0 and head[1]:
        return "utf-16-be"
    return None


def _is_chinese(damage: bytes, path: Path) -> bool:
    """Tell whether a file that is not UTF-8 is GB18030: it decodes, and most of what is not ASCII is in GB 2312."""
    odd = damage.decode("utf-8", "replace")
    if sum(char > "\x7f" and char != "\ufffd" for char in odd) > odd.count("\ufffd"):
        return False  # mostly good UTF-8
    decoder = codecs.getincrementaldecoder("gb18030")()
    everyday = others = 0
    try:
        for block in blocks(path):
            text = decoder.decode(block)
            for char in filter("\x7f".__lt__, text if everyday + others < _SAMPLE else ""):
                code = char.encode("gb18030")
                common = len(code) == 2 and code[0] >= 0xA1 and code[1] >= 0xA1
                everyday, others = everyday + common, others + (not common)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return everyday > others


def open_text(path: Path, encoding: str) -> IO[str]:
    """Open ``path`` as text. What does not decode becomes a lone surrogate, so that its row can be named.

    Reading raises UnicodeDecodeError if a UTF-16 file ends within a character.
    """
    errors = "surrogatepass" if encoding.startswith("utf-16") else "surrogateescape"
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors=errors, newline="")


def undecodable(text: str) -> bool:
    """Tell whether ``text`` holds a byte that did not decode, or half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
