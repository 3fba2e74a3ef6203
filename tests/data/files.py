"""Write the same rows as every kind of file, for tests."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

Rows = Sequence[Mapping[str, Any]]

ALPACA: Rows = (
    {"instruction": "你是谁？", "input": "", "output": "我是甄嬛。"},
    {"instruction": "Add.", "input": "1, 2", "output": 'It is "3".\nSure.'},
    {"instruction": "Emoji?", "input": "", "output": "👩‍👩‍👧 😀"},
)


def as_json(rows: Rows) -> str:
    return json.dumps(list(rows), ensure_ascii=False, indent=2)


def as_lines(rows: Rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_table(rows: Rows, delimiter: str) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


TEXT_KINDS = {
    "json": as_json,
    "jsonl": as_lines,
    "csv": lambda rows: as_table(rows, ","),
    "tsv": lambda rows: as_table(rows, "\t"),
}


def write(folder: Path, kind: str, rows: Rows = ALPACA, encoding: str = "utf-8", packing: str = "") -> Path:
    """Write ``rows`` as a file of ``kind``, in ``encoding``, packed with gzip (``.gz``) or zstd (``.zst``)."""
    path = folder / f"rows.{kind}{packing}"
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        parquet.write_table(pa.Table.from_pylist(list(rows)), sink)
        content = sink.getvalue().to_pybytes()
    else:
        content = TEXT_KINDS[kind](rows).encode(encoding)
    path.write_bytes(pack(content, packing))
    return path


def pack(content: bytes, packing: str) -> bytes:
    if packing == ".gz":
        return gzip.compress(content)
    if packing == ".zst":
        packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
        return packed
    return content
