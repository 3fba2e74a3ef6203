"""Every type of file, encoding and compression gives the same rows; files that cannot be read are named."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.files import ALPACA, TEXT_KINDS, as_lines, pack, write
from tests.data.read.reading_files import ROWS, lines, problems, questions
from weitune.data.formats.parse import Options
from weitune.data.problems import Problem, Problems
from weitune.data.read.conversations import Reader, read_conversations
from weitune.data.read.source_rows import raw_rows
from weitune.data.read.sources import find_sources
from weitune.data.read.text_file import examine
from weitune.errors import DataError

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030"]


def values(path: Path) -> list[Any]:
    problems = Problems()
    [source] = find_sources([str(path)], problems)
    return [row.value for row in raw_rows(source) if not isinstance(row, Problem)]


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [*TEXT_KINDS, "parquet"])
def test_every_kind_reads_the_same(tmp_path: Path, kind: str, packing: str) -> None:
    assert values(write(tmp_path, kind, packing=packing)) == list(ALPACA)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_every_encoding_reads_the_same_and_is_named(tmp_path: Path, kind: str, encoding: str) -> None:
    path = write(tmp_path, kind, encoding=encoding)
    assert values(path) == list(ALPACA)
    assert Reader([str(path)], Options()).reports[0].encoding == encoding


SENTENCES = [
    "你好，今天天气怎么样？",
    "北京今天晴，气温二十五度，适合出门。",
    "请用一句话介绍上海。",
    "我是甄嬛，家父是大理寺少卿甄远道。",
    "學而時習之，不亦說乎？",
    "上海是中国最大的城市之一。",
]


@given(texts=st.lists(st.sampled_from(SENTENCES), min_size=1), encoding=st.sampled_from(["utf-8", "gb18030", "utf-16"]))
def test_chinese_encodings_are_told_apart(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], encoding: str
) -> None:
    rows = [{"instruction": text, "output": text} for text in texts]
    path = write(tmp_path_factory.mktemp("c"), "jsonl", rows, encoding)
    assert values(path) == rows


def test_a_damaged_byte_names_its_row(tmp_path: Path) -> None:
    content = as_lines(ALPACA).encode()
    for offset in (content.index(b"Add") + 1, content.index("你".encode()) + 1):
        damaged = content[:offset] + b"\xff" + content[offset + 1 :]
        path = tmp_path / "rows.jsonl"
        path.write_bytes(damaged)
        with pytest.raises(DataError) as error:
            list(read_conversations(Reader([str(path)])))
        [problem] = error.value.problems
        assert isinstance(problem, Problem)
        assert problem.kind == "undecodable text"
        assert problem.row == (2 if offset == content.index(b"Add") + 1 else 1)
        assert problem.field == "instruction"


def test_half_a_surrogate_pair_names_its_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"instruction": "a", "output": "\\ud83d"}]', encoding="utf-8")
    with pytest.raises(DataError, match="row 1, field `output`"):
        list(read_conversations(Reader([str(path)])))


def test_latin_1_is_not_taken_for_chinese(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"instruction": "café crème", "output": "naïve élève"}\n'.encode("latin-1") * 3)
    fault = examine(path).fault
    assert fault is not None
    assert "cp1252 or latin-1" in fault.found


def test_the_hash_is_of_the_contents(tmp_path: Path) -> None:
    plain = examine(write(tmp_path, "json"))
    packed = examine(write(tmp_path, "json", packing=".gz"))
    assert plain.sha256 == packed.sha256
    assert packed.compression == "gzip"


def test_compressed_files_are_recognised_by_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(pack(as_lines(ALPACA).encode(), ".gz"))
    assert values(path) == list(ALPACA)


def test_gzip_members_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(as_lines([row]).encode()) for row in ALPACA))
    assert values(path) == list(ALPACA)


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_truncated_compressed_file_is_a_problem(tmp_path: Path, kind: str, packing: str) -> None:
    rows = [{"instruction": str(i) * 50, "output": "x"} for i in range(3000)]
    path = write(tmp_path, kind, rows, packing=packing)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError):
        list(read_conversations(Reader([str(path)])))


def test_folders_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    for i, kind in enumerate(["jsonl", "csv", "parquet"]):
        folder = tmp_path / f"{2 - i}"
        folder.mkdir()
        write(folder, kind, [{"instruction": kind, "output": "x"}])
    (tmp_path / "notes.txt").write_text("not data", encoding="utf-8")
    read = [conversation.turns[0].content for conversation in read_conversations(Reader([str(tmp_path)]))]
    assert read == ["parquet", "csv", "jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("rows.txt", b"x", "unknown file type"),
        ("rows.json", b"", "empty file"),
        ("rows.json.gz", gzip.compress(b"", mtime=0), "empty file"),
        ("rows.json", b"  \n", "no rows"),
        ("rows.json", b"[]", "no rows"),
        ("rows.csv", b"instruction,output\n", "no rows"),
        ("rows.csv", b"instruction;output\nx;y\n", "wrong delimiter"),
        ("rows.csv", b"instruction\toutput\nx\ty\n", "wrong delimiter"),
        ("rows.tsv", b"output\toutput\nx\ty\n", "repeated column"),
        ("rows.parquet", b"PAR1 no", "not a valid Parquet file"),
        ("rows.csv", b"PK\x03\x04" + bytes(range(256)), "not text"),
        ("rows.tsv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512), "not text"),
        ("rows.json", b"PAR1\x15\x04\x15" + bytes(64), "not text"),
        ("rows.jsonl.gz", gzip.compress(b"BZh91AY&SY" + bytes(64), mtime=0), "not text"),
        ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "not text"),
        ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "not text"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        list(read_conversations(Reader([str(path)])))
    kinds = [problem.kind for problem in error.value.problems if isinstance(problem, Problem)]
    assert kind in kinds
    assert name in error.value.message


def test_a_missing_file_names_a_similar_one(tmp_path: Path) -> None:
    write(tmp_path, "json")
    with pytest.raises(DataError) as error:
        list(read_conversations(Reader([str(tmp_path / "row.json")])))
    assert "Did you mean" in error.value.message


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data"):
        list(read_conversations(Reader([str(tmp_path)])))


def test_columns_of_parquet_that_are_empty_are_absent(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "input": None, "output": "b"}, {"instruction": "c", "input": "d", "output": "e"}]
    path = write(tmp_path, "parquet", rows)
    assert [c.turns[0].content for c in read_conversations(Reader([str(path)]))] == ["a", "c\nd"]


def test_data_sets_of_the_hub_are_loaded_by_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(repository: str, config: str | None, *, split: str) -> Any:
        asked.append((repository, config, split))
        return datasets.Dataset.from_list([dict(row) for row in ALPACA])

    monkeypatch.setattr(datasets, "load_dataset", load)
    names = ["owner/name", "owner/name:test", "owner/name/config:train[:10%]"]
    read = list(read_conversations(Reader(names)))
    assert len(read) == 9
    assert asked == [
        ("owner/name", None, "train"),
        ("owner/name", None, "test"),
        ("owner/name", "config", "train[:10%]"),
    ]
    first, second = (find_sources([name], Problems())[0] for name in names[:2])
    assert first.facts is not None
    assert second.facts is not None
    assert first.facts.sha256 == second.facts.sha256
    assert str(read[0].origin) == "owner/name row 1"


def test_a_missing_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("no such data set")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="no such data set"):
        list(read_conversations(Reader(["owner/name"])))


def test_a_long_array_is_never_in_memory_at_once(tmp_path: Path) -> None:
    """The reader's own memory stays far below the file's size."""
    import tracemalloc

    path = tmp_path / "rows.json"
    row = json.dumps({"instruction": "x" * 500, "output": "y" * 500})
    path.write_text("[" + ",\n".join([row] * 40_000) + "]", encoding="utf-8")
    problems = Problems()
    [source] = find_sources([str(path)], problems)
    tracemalloc.start()
    count = sum(1 for _ in raw_rows(source))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 40_000
    assert peak < path.stat().st_size / 8
    assert source.kind == "json"


def test_devices_and_pipes_are_refused_without_reading(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert [fault.kind for fault in problems(tmp_path / "pipe.jsonl")] == ["not a file"]
    assert [fault.kind for fault in problems(tmp_path)] == ["not a file"]
    (tmp_path / "rows.json").mkdir()
    lines(tmp_path / "rows.json", ROWS)
    assert questions(tmp_path / "rows.json") == ["q1", "q2"]
    for name in ("a" * 5000, "~nobody-of-that-name/rows.json", "a\0b.json"):
        assert len(problems(name)) == 1
