"""Text files of any usual encoding, plain or compressed, as a stream of characters.

One pass over the bytes gives what everything else needs: the hash of the contents and the encoding. UTF-8 and UTF-16
are known by reading, not guessed from a name; text that is neither is judged by :mod:`.legacy_encodings`. Whoever
knows better says so, and then only a contradiction is a fault. Cost: one read of the file (two if it is not UTF-8).
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

from weitune.data.problems import Problem, data_problem
from weitune.data.read import legacy_encodings

_BLOCK = 1 << 20
_HEAD = 1 << 12
_POINTER = b"version https://git-lfs"
_NO_TEXT = {
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "Unpack it, or save the sheet as CSV in UTF-8."),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook or another document of Office", "Save the sheet as CSV in UTF-8."),
    b"%PDF-": ("a PDF", "Write its text as rows of JSON Lines."),
    b"PAR1\x15": ("a Parquet file", "Name it .parquet."),
    b"ARROW1\0\0": ("an Arrow file", "Name it .arrow."),
    b"\xfd7zXZ": ("an xz archive", "Unpack it, or pack it as .gz or .zst."),
    b"BZh91AY": ("a bzip2 archive", "Unpack it, or pack it as .gz or .zst."),
    b"7z\xbc\xaf": ("a 7z archive", "Unpack it."),
    b"Rar!\x1a": ("a rar archive", "Unpack it."),
    _POINTER: ("a pointer of Git LFS in place of the file", "Fetch the file: `git lfs pull`."),
}
"""How files begin that are no text with rows, whatever their names say: what they are, and the fix."""
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins as UTF-16's does
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_EVIDENT = 6
"""Bytes of good UTF-8 beyond the first of each character from which on text cannot be anything else."""
_KEEP = "weitune-keep"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What one pass over a file tells: SHA-256 of the (decompressed) bytes, how many, compression and encoding.

    ``fault`` is why the text cannot be read.
    """

    sha256: str
    size_bytes: int
    compression: str | None
    encoding: str
    fault: Problem | None = None


@dataclass(frozen=True, slots=True)
class Codec:
    """The name of an encoding, and whether it was said of this very file or of all that are read."""

    name: str
    of_this_file: bool = False


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


def examine(path: Path, text: bool = True, codec: Codec | None = None) -> FileFacts:
    """Read ``path`` once and return its facts; ``text`` False leaves the encoding out, ``codec`` decides on it.

    Raises OSError if the file cannot be read or its compression is broken.
    """
    digest = hashlib.sha256()
    size = 0
    head = b""
    scan: _Scan | None = None
    for block in blocks(path):
        digest.update(block)
        head = head or block[:_HEAD]
        size += len(block)
        if text:
            scan = scan or _Scan(block)
            scan.feed(block)
    encoding, fault = "", _no_text(head) if text or head.startswith(_POINTER) else None
    if text and fault is None:
        encoding, fault = scan.verdict(path, codec) if scan is not None else ("utf-8", None)
    return FileFacts(digest.hexdigest(), size, compression_of(path), encoding, fault)


def _no_text(head: bytes) -> Problem | None:
    """Return the fault of a file that is known not to be text by its first bytes."""
    for magic, (found, fix) in _NO_TEXT.items():
        if head.startswith(magic):
            return data_problem("data.text_file.not_text", found=found, fix=fix)
    return None


class _Scan:
    """Decides on an encoding from the first block, and checks whether all blocks decode as UTF-8."""

    def __init__(self, head: bytes) -> None:
        self._declared = _declared(head)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._is_utf8 = True
        self._beyond_ascii = 0
        self._escape: str | None = None

    def feed(self, block: bytes) -> None:
        if self._declared is None and self._is_utf8:
            self._escape = self._escape or legacy_encodings.escape_in(block)
            try:
                self._beyond_ascii += len(block) - len(self._decoder.decode(block))
            except UnicodeDecodeError:
                self._is_utf8 = False

    def verdict(self, path: Path, codec: Codec | None) -> tuple[str, Problem | None]:
        """Return the encoding, and why the text cannot be read."""
        if self._declared is None and self._is_utf8:
            try:
                self._decoder.decode(b"", final=True)
            except UnicodeDecodeError:
                self._is_utf8 = False
        if codec is not None:
            return self._said(codec)
        if self._declared is not None:
            return self._declared, None
        if not self._is_utf8:
            return legacy_encodings.judge(blocks(path))
        fault = (
            legacy_encodings.escaped(blocks(path), self._escape) if self._escape and not self._beyond_ascii else None
        )
        return "utf-8", fault

    def _said(self, codec: Codec) -> tuple[str, Problem | None]:
        """Return the encoding that was said, unless the file can only be in another one."""
        name = codecs.lookup(codec.name).name
        declared = self._declared if self._declared in _MARKS.values() else None
        if declared is not None:
            if name.startswith(declared.removesuffix("-sig")):
                return declared, None
            evident, how = declared, "its first bytes say so"
        elif self._is_utf8 and self._beyond_ascii >= _EVIDENT and not (codec.of_this_file or name.startswith("utf-8")):
            evident, how = "utf-8", "all of it decodes as that"
        else:
            return name, None
        return name, data_problem("data.text_file.another_encoding", name=name, evident=evident, how=how)


def _declared(head: bytes) -> str | None:
    """Return the encoding that a byte order mark declares, or UTF-16 if every other byte is often zero."""
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name
    head = head[:_HEAD]
    even, odd = head[::2].count(0), head[1::2].count(0)
    most = max(even, odd)
    if most < 2 or 10 * min(even, odd) > most or (10 * most < len(head) and _is_utf8(head)):
        return None  # none, or a few that are damage
    return "utf-16-le" if odd > even else "utf-16-be"


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True


def open_text(path: Path, encoding: str, newline: str | None = "") -> IO[str]:
    """Open ``path`` as text. What does not decode becomes lone surrogates, so that its row can be named."""
    codecs.register_error(_KEEP, _as_surrogates)
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors=_KEEP, newline=newline)


def _as_surrogates(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    damaged = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + byte) for byte in damaged), error.end


def undecodable(text: str) -> bool:
    """Tell whether ``text`` holds a byte that did not decode, or half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
