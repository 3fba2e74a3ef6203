"""Text files of any usual encoding, plain or compressed, as a stream of characters.

One pass over the bytes gives their hash and the encoding. UTF-8 and UTF-16 are recognised from the bytes;
:mod:`.legacy_encodings` decides on other text. An encoding that the user gives is only refused if the bytes contradict
it. Cost: one read of the file (two if it is not UTF-8).
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

from weitune.data.problems import Problem, data_problem, shown_error
from weitune.data.read import legacy_encodings
from weitune.data.read.encoding_scores import decode_piece

_BLOCK_BYTES = 1 << 20
_HEAD_BYTES = 1 << 12
_POINTER = b"version https://git-lfs"
_NOT_TEXT = {
    b"PK\x03\x04": "data.text_file.zip_archive",
    b"\xd0\xcf\x11\xe0": "data.text_file.office_document",
    b"%PDF-": "data.text_file.pdf",
    b"PAR1\x15": "data.text_file.parquet",
    b"ARROW1\0\0": "data.text_file.arrow",
    b"\xfd7zXZ": "data.text_file.xz_archive",
    b"BZh91AY": "data.text_file.bzip2_archive",
    b"7z\xbc\xaf": "data.text_file.7z_archive",
    b"Rar!\x1a": "data.text_file.rar_archive",
    _POINTER: "data.text_file.git_lfs_pointer",
}
"""The first bytes of files that are not text, regardless of their suffix, and the problem of each."""
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # must precede UTF-16, since it begins with the mark of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CERTAIN_BYTES = 6
"""Continuation bytes that make valid UTF-8 certain."""
_KEEP = "weitune-keep"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The SHA-256 and number of the decompressed bytes of a file, its compression, and its encoding if it is text.

    ``fault`` is why the text cannot be read.
    """

    sha256: str
    size_bytes: int
    compression: str | None
    encoding: str
    fault: Problem | None = None


@dataclass(frozen=True, slots=True)
class GivenEncoding:
    """The name of an encoding that the user gave, for this file in particular or for all files."""

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
    return next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), None)


def blocks(path: Path) -> Iterator[bytes]:
    """Yield the decompressed bytes of ``path`` in blocks."""
    with open_bytes(path) as file:
        while block := file.read(_BLOCK_BYTES):
            yield bytes(block)


def examine(path: Path, text: bool = True, given: GivenEncoding | None = None) -> FileFacts:
    """Read ``path`` once and return its facts; the encoding is "" unless the file is ``text``.

    Raises OSError if the file cannot be read or its compression is broken.
    """
    digest = hashlib.sha256()
    size = 0
    head = b""
    detector: _EncodingDetector | None = None
    for block in blocks(path):
        digest.update(block)
        head = head or block[:_HEAD_BYTES]
        size += len(block)
        if text:
            detector = detector or _EncodingDetector(block)
            detector.feed(block)
    encoding, fault = "", _not_text(head) if text or head.startswith(_POINTER) else None
    if text and fault is None:
        encoding, fault = detector.result(path, given) if detector is not None else ("utf-8", None)
    return FileFacts(digest.hexdigest(), size, compression_of(path), encoding, fault)


def unreadable(file: str, error: OSError, row: int | None = None) -> Problem:
    """Return the fault of a file that the system cannot read."""
    message = "data.text_file.no_permission" if isinstance(error, PermissionError) else "data.text_file.unreadable"
    return data_problem(message, file=file, row=row, reason=error.strerror or shown_error(error))


def _not_text(head: bytes) -> Problem | None:
    return next((data_problem(message) for magic, message in _NOT_TEXT.items() if head.startswith(magic)), None)


class _EncodingDetector:
    """Reads the encoding that the first block declares, and checks whether all blocks decode as UTF-8."""

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

    def result(self, path: Path, given: GivenEncoding | None) -> tuple[str, Problem | None]:
        if self._declared is None and self._is_utf8:
            try:
                self._decoder.decode(b"", final=True)
            except UnicodeDecodeError:
                self._is_utf8 = False
        if given is not None:
            return self._checked(given)
        if self._declared is not None:
            return self._declared, None
        if not self._is_utf8:
            return legacy_encodings.detect(blocks(path))
        if self._escape and not self._beyond_ascii:
            return "utf-8", legacy_encodings.check_escapes(blocks(path), self._escape)
        return "utf-8", None

    def _checked(self, given: GivenEncoding) -> tuple[str, Problem | None]:
        """Return the given encoding, and a fault if the file can only be in another one."""
        name = codecs.lookup(given.name).name
        declared = self._declared if self._declared in _MARKS.values() else None
        if declared is not None:
            if name.startswith(declared.removesuffix("-sig")):
                return declared, None
            return name, data_problem("data.text_file.declared_encoding", name=name, declared=declared)
        is_certain = self._is_utf8 and self._beyond_ascii >= _CERTAIN_BYTES
        if is_certain and not (given.of_this_file or name.startswith("utf-8")):
            return name, data_problem("data.text_file.evidently_utf8", name=name)
        return name, None


def _declared(head: bytes) -> str | None:
    """Return the encoding that a byte order mark declares, or UTF-16 if every other byte is often zero."""
    if marked := next((name for mark, name in _MARKS.items() if head.startswith(mark)), None):
        return marked
    head = head[:_HEAD_BYTES]
    even, odd = head[::2].count(0), head[1::2].count(0)
    most = max(even, odd)
    if most < 2 or 10 * min(even, odd) > most or (10 * most < len(head) and decode_piece(head, "utf-8") is not None):
        return None  # no zeros, or a few in a damaged file
    return "utf-16-le" if odd > even else "utf-16-be"


def open_text(path: Path, encoding: str, newline: str | None = "") -> IO[str]:
    """Open ``path`` as text. Bytes that do not decode become lone surrogates, so that a fault can name their row."""
    codecs.register_error(_KEEP, _as_surrogates)
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, errors=_KEEP, newline=newline)


def _as_surrogates(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    damaged = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + byte) for byte in damaged), error.end
