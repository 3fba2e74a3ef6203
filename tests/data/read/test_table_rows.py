"""Tables as spreadsheets and other programs leave them: CSV and TSV, Parquet, Arrow, saved data sets, folders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.data.frame.families import tokenizer_of
from weitune.cli import main
from weitune.data.formats.parse import Options
from weitune.data.frame.choose import framing_for
from weitune.data.prepare.prepare import prepare
from weitune.data.problems import Problem
from weitune.data.read.conversations import Reader, read_conversations
from weitune.data.show.check import check
from weitune.data.show.preview import preview
from weitune.errors import DataError
from weitune.recipe.schema import Recipe, Tokens

ROWS = [{"instruction": "q1", "output": "a1"}, {"instruction": "q2", "output": "a2"}]


def reader_of(*paths: Path | str) -> Reader:
    return Reader([str(path) for path in paths], Options())


def questions(*paths: Path | str) -> list[str]:
    return [conversation.turns[0].content for conversation in read_conversations(reader_of(*paths))]


def problems(*paths: Path | str) -> list[Problem]:
    with pytest.raises(DataError) as error:
        questions(*paths)
    return [problem for problem in error.value.problems if isinstance(problem, Problem)]


def table(folder: Path, text: str, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


BLANKS = "instruction,output\nq1,a1\n,\n,,,\n \u00a0,\n\nq2,a2\n \n"


def test_blank_rows_are_set_aside_and_counted(tmp_path: Path) -> None:
    path = table(tmp_path, BLANKS)
    recipe = Recipe(model="any", data=[str(path)])
    framing = framing_for(tokenizer_of("qwen2.5"), recipe.tokens)
    for result in (check(recipe, None), check(recipe, framing)):
        assert result.ready
        assert result.report.to_json()["rows"] == {
            "read": 6,
            "trained": 2,
            "set_aside": {"with only empty cells": 4},
            "faulty": 0,
        }
        assert result.report.set_aside_rows["with only empty cells"][0] == f"{path} row 2 (line 3)"
        assert not any("examples made" in line for line in result.report.lines())
    assert prepare(recipe, framing).report.rows.set_aside == {"with only empty cells": 4}
    shown = list(preview(reader_of(path), framing, tokenizer_of("qwen2.5"), recipe))
    assert [item.tags for item in shown][1] == ("set aside: with only empty cells",)
    assert len(shown) == 6


def test_blank_rows_alone_are_nothing_to_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(table(tmp_path, "instruction,output\n,\n"))]) == 2
    assert "1 row read = 0 trained + 1 set aside" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "instruction,output,,\nq1,a1,,\nq2,a2\n",
        "instruction,output\nq1,a1,,,\nq2,a2\n",
        ",instruction,output\n0,q1,a1\n1,q2,a2\n",
        "\ufeff\ufeffinstruction,output\nq1,a1\nq2,a2\n",
        "instruction,output\nq1,a1\n\ufeffq2,a2\n",
        'instruction,output\nq1,a1\n\ufeff"q2","a,2"\n',
        "instruction,output\rq1,a1\rq2,a2\r",
        "\n\ninstruction,output\nq1,a1\nq2,a2\n",
    ],
)
def test_what_spreadsheets_add_is_no_data(tmp_path: Path, text: str) -> None:
    assert questions(table(tmp_path, text)) == ["q1", "q2"]


@pytest.mark.parametrize(
    ("text", "kind", "row", "found"),
    [
        ("instruction,output,\nq1,a1,\nq2,a2,x\n", "cell without a column", 2, "'x'"),
        (",instruction,output\nx,q1,a1\n", "cell without a column", 1, "'x'"),
        ("instruction,output,output\nq,a,b\n", "repeated column", None, "`output` twice"),
        (",,\nq,a,b\n", "no column names", None, "a line of empty cells"),
        ("instruction,output\nq1,a1\n\ufeffinstruction,output\nq2,a2\n", "header again", 2, "instruction, output"),
        ("instruction,output\nq1,a1\noutput,instruction\na2,q2\n", "header again", 2, "output, instruction"),
        ("instruction,output\nq1,a1\nquestion,answer\nq2,a2\n", "header again", 2, "question, answer"),
        ("prompt,response,x\nq1,a1,\ninput,output,instruction\nq2,a2,\n", "header again", 2, "input, output"),
        ("sep=;\ninstruction;output\nq,a\n", "no column names", None, "'sep=;', which Excel writes"),
        ("SEP=,\ninstruction,output\nq,a\n", "no column names", None, "which Excel writes"),
        ("instruction,output\nq1,a1\nq2\0,a2\n", "not text", 2, "NUL"),
        ("instruction,output\nq1\n", "wrong number of cells", 1, "1"),
        ("instruction,output\nq1,a1,x\n", "wrong number of cells", 1, "3"),
    ],
)
def test_faults_of_tables(tmp_path: Path, text: str, kind: str, row: int | None, found: str) -> None:
    [fault] = problems(table(tmp_path, text))
    assert (fault.kind, fault.row) == (kind, row)
    assert found in fault.found


@pytest.mark.parametrize(("separator", "name"), [(";", "a.csv"), ("|", "a.csv"), (",", "a.tsv"), (";", "a.tsv")])
def test_another_separator_is_named_as_the_fault(tmp_path: Path, separator: str, name: str) -> None:
    faults = problems(table(tmp_path, "instruction,output\nq,a\n".replace(",", separator), name))
    assert faults[0].kind == "wrong delimiter"
    assert faults[0].found == f"one column 'instruction{separator}output'"


def test_a_byte_order_mark_within_a_cell_stays(tmp_path: Path) -> None:
    assert questions(table(tmp_path, 'instruction,output\n"q1\n\ufeffx",a1\n')) == ["q1\n\ufeffx"]


def test_words_that_are_names_of_columns_may_be_cells(tmp_path: Path) -> None:
    assert questions(table(tmp_path, "instruction,output\ninstruction,a\nprompt,Eingabe\n")) == [
        "instruction",
        "prompt",
    ]


@pytest.mark.parametrize(("name", "shown"), [("output ", r"output\x20"), ("output\u200b", r"output\u200b")])
def test_names_that_differ_by_what_cannot_be_seen_look_different(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, shown: str
) -> None:
    assert main(["data", "check", str(table(tmp_path, f"instruction,{name}\nq,a\n"))]) == 2
    assert f"fields not used: {shown} (1)" in capsys.readouterr().out


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


def lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


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


def test_empty_columns_and_texts_and_lists_and_maps_keep_their_nulls_to_themselves(tmp_path: Path) -> None:
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


def test_rows_of_nulls_alone_are_blank_and_half_a_pair_is_a_fault(tmp_path: Path) -> None:
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


def test_a_parquet_file_with_a_column_twice_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table([["a"], ["b"]], names=["output", "output"]), path)
    assert [fault.kind for fault in problems(path)] == ["repeated column"]


def test_saved_data_sets(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one", num_shards=2)
    (tmp_path / "one" / "cache-123.arrow").write_bytes(b"what map keeps")
    assert questions(tmp_path / "one") == ["q1", "q2"]
    datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "two")
    [fault] = problems(tmp_path / "two")
    assert (fault.kind, fault.found) == ("several splits", "train, test")
    assert questions(f"{tmp_path / 'two'}:test") == ["q2"]
    assert [fault.kind for fault in problems(f"{tmp_path / 'two'}:dev")] == ["missing split"]
    assert [fault.kind for fault in problems(f"{tmp_path / 'one'}:train")] == ["missing split"]
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "three")
    assert questions(tmp_path / "three") == ["q1", "q2"]
    (tmp_path / "three" / "train" / "data-00000-of-00001.arrow").unlink()
    (tmp_path / "three" / "train" / "other.arrow").write_bytes(b"")
    assert [fault.kind for fault in problems(tmp_path / "three")] == ["missing file"]


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


def test_hidden_files_and_those_of_other_programs_are_no_data(tmp_path: Path) -> None:
    folder = tmp_path / ".hidden" / "data"
    for name in (
        ".ipynb_checkpoints/a-checkpoint.jsonl",
        "part/.git/x.json",
        "._a.jsonl",
        "__MACOSX/a.jsonl",
        "dataset_info.json",
        "part/state.json",
        "dataset_infos.json",
        "cache-1.arrow",
        "~$a.csv",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}", encoding="utf-8")
    for name in ("a.jsonl", "part/b.jsonl"):
        (folder / name).write_text(json.dumps(ROWS[0]), encoding="utf-8")
    assert [source.name for source in reader_of(folder).sources] == [
        str(folder / "a.jsonl"),
        str(folder / "part" / "b.jsonl"),
    ]
    (folder / "._named.jsonl").write_text(json.dumps(ROWS[1]), encoding="utf-8")
    assert questions(folder / "._named.jsonl") == ["q2"]


def test_links_are_followed_once_and_broken_ones_are_named(tmp_path: Path) -> None:
    folder, other = tmp_path / "data", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    lines(other, ROWS)
    (folder / "more").symlink_to(other)
    (folder / "again").symlink_to(folder)
    (other / "back").symlink_to(folder)
    assert questions(folder) == ["q1", "q2"]
    (folder / "gone.jsonl").symlink_to(tmp_path / "nothing.jsonl")
    assert [fault.kind for fault in problems(folder)] == ["not a file"]
    assert [fault.kind for fault in problems(folder / "gone.jsonl")] == ["not a file"]


def test_what_is_no_file_is_named_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert [fault.kind for fault in problems(tmp_path / "pipe.jsonl")] == ["not a file"]
    assert [fault.kind for fault in problems(tmp_path)] == ["not a file"]
    (tmp_path / "rows.json").mkdir()
    lines(tmp_path / "rows.json", ROWS)
    assert questions(tmp_path / "rows.json") == ["q1", "q2"]
    for name in ("a" * 5000, "~nobody-of-that-name/rows.json", "a\0b.json"):
        assert len(problems(name)) == 1


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines(tmp_path, ROWS)
    closed = tmp_path / "closed"
    closed.mkdir()
    iterdir = Path.iterdir

    def refusing(path: Path) -> Any:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refusing)
    [fault] = problems(tmp_path)
    assert (fault.kind, fault.file) == ("unreadable folder", str(closed))


def test_a_damaged_arrow_file_is_a_fault_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    rows = pa.Table.from_pylist(CALLS)
    with pa.ipc.new_stream(path, rows.schema) as writer:
        writer.write_table(rows)
    content = path.read_bytes()
    for at in range(8, len(content), 5):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        assert all(problem.fix for problem in check(Recipe(model="any", data=[str(path)]), None).problems)


def test_hub_data_sets_lose_the_same_nulls(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    table = datasets.Dataset.from_list(CALLS)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    reader = reader_of("owner/name")
    calls = [conversation.turns[1].tool_calls[0].arguments for conversation in read_conversations(reader)]
    assert calls == [{"port": "Brest"}, {"year": 1999, "inner": {"x": 1}}, {"inner": {"y": [None, 2]}}]
    assert reader.reports[0].to_json()["null_fields_removed"] == 10
