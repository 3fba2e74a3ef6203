"""CSV and TSV tables as spreadsheets and other programs write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.frame.families import tokenizer_of
from tests.data.read.reading_files import problems, questions, reader_of, table
from weitune.cli import main
from weitune.data.frame.choose import framing_for
from weitune.data.prepare.prepare import prepare
from weitune.data.show.check import check
from weitune.data.show.preview import preview
from weitune.recipe.schema import Recipe

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


def test_a_table_of_blank_rows_only_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
def test_what_spreadsheets_add_is_ignored(tmp_path: Path, text: str) -> None:
    assert questions(table(tmp_path, text)) == ["q1", "q2"]


@pytest.mark.parametrize(
    ("text", "kind", "row", "found"),
    [
        ("instruction,output,\nq1,a1,\nq2,a2,x\n", "cell without a column", 2, "'x'"),
        (",instruction,output\nx,q1,a1\n", "cell without a column", 1, "'x'"),
        ("instruction,output,output\nq,a,b\n", "repeated column", None, "`output` twice"),
        (",,\nq,a,b\n", "no column names", None, "a line of empty cells"),
        ("instruction,output\nq1,a1\n\ufeffinstruction,output\nq2,a2\n", "repeated header", 2, "instruction, output"),
        ("instruction,output\nq1,a1\noutput,instruction\na2,q2\n", "repeated header", 2, "output, instruction"),
        ("instruction,output\nq1,a1\nquestion,answer\nq2,a2\n", "repeated header", 2, "question, answer"),
        ("prompt,response,x\nq1,a1,\ninput,output,instruction\nq2,a2,\n", "repeated header", 2, "input, output"),
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


def test_a_byte_order_mark_within_a_cell_is_kept(tmp_path: Path) -> None:
    assert questions(table(tmp_path, 'instruction,output\n"q1\n\ufeffx",a1\n')) == ["q1\n\ufeffx"]


def test_cells_may_contain_names_of_columns(tmp_path: Path) -> None:
    assert questions(table(tmp_path, "instruction,output\ninstruction,a\nprompt,Eingabe\n")) == [
        "instruction",
        "prompt",
    ]


@pytest.mark.parametrize(("name", "shown"), [("output ", r"output\x20"), ("output\u200b", r"output\u200b")])
def test_names_that_differ_in_invisible_characters_look_different(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, shown: str
) -> None:
    assert main(["data", "check", str(table(tmp_path, f"instruction,{name}\nq,a\n"))]) == 2
    assert f"fields not used: {shown} (1)" in capsys.readouterr().out
