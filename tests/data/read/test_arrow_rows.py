"""Parquet, Arrow files and data sets of the hub: their rows, without the nulls that the formats add."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.data.frame.families import tokenizer_of
from tests.data.read.reading_files import ROWS, lines, problems, questions, reader_of
from weitune.data.formats.parse import Options
from weitune.data.frame.choose import framing_for
from weitune.data.prepare.prepare import prepare
from weitune.data.read.conversations import Reader, read_conversations
from weitune.data.show.check import check
from weitune.errors import DataError
from weitune.recipe.schema import Recipe, Tokens

CALLS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "q"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "tides", "arguments": arguments}}],
            },
        ]
    }
    for arguments in ({"port": "Brest"}, {"year": 1999, "inner": {"x": 1}}, {"inner": {"y": [None, 2]}})
]


def test_nulls_that_a_table_added_are_removed_at_every_level_and_counted(tmp_path: Path) -> None:
    plain = lines(tmp_path, CALLS)
    padded = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist(CALLS), padded)
    stream = tmp_path / "rows.arrow"
    with pa.ipc.new_stream(stream, pa.Table.from_pylist(CALLS).schema) as writer:
        writer.write_table(pa.Table.from_pylist(CALLS))
    tokens = Tokens()
    framing = framing_for(tokenizer_of("qwen2.5"), tokens)
    expected = [example.input_ids for example in prepare(Recipe(model="any", data=[str(plain)]), framing)]
    for path in (padded, stream):
        prepared = prepare(Recipe(model="any", data=[str(path)]), framing)
        assert [example.input_ids for example in prepared] == expected
        [line] = [line for line in prepared.report.lines() if line.startswith(str(path))]
        # three user turns without calls, five of the arguments, and two fields of the objects within
        assert line.endswith("; null fields removed (10)")
    assert "null fields" not in "".join(prepare(Recipe(model="any", data=[str(plain)]), framing).report.lines())


def test_values_of_mixed_types_are_decoded(tmp_path: Path) -> None:
    """`datasets` saves what has several types as JSON, in a column of the type ``arrow.json``."""
    values = ['[{"type": "text", "text": "hi"}]', '"At noon."', "7", None]
    column = pa.array(values, pa.json_())
    calls = pa.array([[text] if text else None for text in values], pa.list_(pa.string())).cast(pa.list_(pa.json_()))
    table = pa.table({"plain": column, "within": calls, "text": pa.array(["[1]"] * 4)})
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pa.ipc.new_stream(tmp_path / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    from weitune.data.formats.fields import Notes
    from weitune.data.read.arrow_rows import arrow_rows, parquet_rows
    from weitune.data.read.source import RawRow

    for read, name in ((parquet_rows, "rows.parquet"), (arrow_rows, "rows.arrow")):
        rows = [row.value for row in read(tmp_path / name, name, Notes()) if isinstance(row, RawRow)]
        assert [row.get("plain") for row in rows] == [[{"type": "text", "text": "hi"}], "At noon.", 7, None]
        assert [row.get("within") for row in rows][:3] == [[[{"type": "text", "text": "hi"}]], ["At noon."], [7]]
        assert {row["text"] for row in rows} == {"[1]"}


def test_nulls_of_lists_maps_and_strings_are_kept(tmp_path: Path) -> None:
    from weitune.data.formats.fields import Notes
    from weitune.data.read.arrow_rows import parquet_rows
    from weitune.data.read.source import RawRow

    kind = pa.schema(
        [
            ("text", pa.string()),
            ("list", pa.list_(pa.int64())),
            ("map", pa.map_(pa.string(), pa.struct([("x", pa.int64()), ("y", pa.int64())]))),
            ("other", pa.string()),
        ]
    )
    rows = [{"text": '{"a": null}', "list": [1, None], "map": [("k", {"x": 1}), ("n", None)], "other": None}]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist(rows, kind), path)
    notes = Notes()
    [row] = parquet_rows(path, "f", notes)
    assert isinstance(row, RawRow)
    assert row.value == {"text": '{"a": null}', "list": [1, None], "map": {"k": {"x": 1}, "n": None}}
    assert notes.null_fields == 1


def test_rows_of_nulls_are_blank_and_half_a_surrogate_pair_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"question": [None, "q", None, "r"], "answer": [None, "a", None, None]}), path)
    [fault] = problems(path)
    assert (fault.row, fault.field) == (4, "answer")
    parquet.write_table(pa.table({"question": [None, "q", None], "answer": [None, "a", None]}), path)
    reader = reader_of(path)
    assert [conversation.turns[0].content for conversation in read_conversations(reader)] == ["q"]
    assert (reader.rows, reader.blank_rows) == (3, 2)


def test_nulls_within_every_kind_of_list_are_removed() -> None:
    from weitune.data.formats.fields import Notes
    from weitune.data.read.arrow_rows import cleaner

    inner = pa.struct([("x", pa.int64()), ("y", pa.int64())])
    for kind in (
        pa.list_(inner),
        pa.large_list(inner),
        pa.list_(inner, 1),
        pa.list_view(inner),
        pa.large_list_view(inner),
    ):
        notes = Notes()
        clean = cleaner(pa.schema([("calls", kind)]), notes)
        assert clean({"calls": [{"x": 1, "y": None}]}) == {"calls": [{"x": 1}]}
        assert notes.null_fields == 1


def test_a_repeated_column_in_parquet_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table([["a"], ["b"]], names=["output", "output"]), path)
    assert [fault.kind for fault in problems(path)] == ["repeated column"]


def test_arrow_files_of_both_formats_and_damaged_ones(tmp_path: Path) -> None:
    rows = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(tmp_path / "file.arrow", rows.schema) as writer:
        writer.write_table(rows)
    assert questions(tmp_path / "file.arrow") == ["q1", "q2"]
    with pa.ipc.new_stream(tmp_path / "stream.arrow", rows.schema) as writer:
        writer.write_table(rows)
    content = (tmp_path / "stream.arrow").read_bytes()
    (tmp_path / "packed.arrow.zst").write_bytes(pa.compress(content, codec="zstd", asbytes=True))
    assert questions(tmp_path / "packed.arrow.zst") == ["q1", "q2"]
    (tmp_path / "stream.arrow").write_bytes(content[:-60])
    (tmp_path / "no.arrow").write_bytes(b"this is not Arrow")
    assert {fault.kind for fault in problems(tmp_path / "stream.arrow", tmp_path / "no.arrow")} == {
        "not a valid Arrow file"
    }


def test_a_damaged_arrow_file_is_a_fault_rather_than_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    rows = pa.Table.from_pylist(CALLS)
    with pa.ipc.new_stream(path, rows.schema) as writer:
        writer.write_table(rows)
    content = path.read_bytes()
    for at in range(8, len(content), 5):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        assert all(problem.fix for problem in check(Recipe(model="any", data=[str(path)]), None).problems)


def test_the_same_nulls_are_removed_from_data_sets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    table = datasets.Dataset.from_list(CALLS)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    reader = reader_of("owner/name")
    calls = [conversation.turns[1].tool_calls[0].arguments for conversation in read_conversations(reader)]
    assert calls == [{"port": "Brest"}, {"year": 1999, "inner": {"x": 1}}, {"inner": {"y": [None, 2]}}]
    assert reader.reports[0].to_json()["null_fields_removed"] == 10


def test_rows_of_blank_cells_are_set_aside(tmp_path: Path) -> None:
    """As pandas writes the empty lines of a spreadsheet."""
    blank = {"instruction": "", "input": " ", "output": ""}
    parquet.write_table(pa.Table.from_pylist([ROWS[0], blank, ROWS[0]]), tmp_path / "rows.parquet")
    prepared = prepare(
        Recipe(model="any", data=[str(tmp_path / "rows.parquet")]), framing_for(tokenizer_of("qwen2.5"), Tokens())
    )
    assert len(prepared) == 2
    assert dict(prepared.report.rows.set_aside) != {}


def test_a_null_in_the_column_of_system_prompts_is_none(tmp_path: Path) -> None:
    rows = [{"问题": "q", "回答": "a", "角色": role} for role in ("You are a lamp.", None)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    columns = {"user": "问题", "assistant": "回答", "system": "角色"}
    file = [str(tmp_path / "rows.parquet")]
    read = read_conversations(Reader(file, Options(columns=columns)))
    assert [conversation.system for conversation in read] == ["You are a lamp.", None]
    mistyped = Reader(file, Options(columns={**columns, "system": "角色 "}))
    with pytest.raises(DataError, match="missing field"):
        list(read_conversations(mistyped))
