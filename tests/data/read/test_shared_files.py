"""The four real files: exact counts, and text that is framed correctly."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from weitune.data.formats.parse import Options
from weitune.data.frame.choose import framing_for
from weitune.data.prepare.prepare import prepare
from weitune.data.prepare.recipe_reader import read_options
from weitune.data.read.conversations import Reader
from weitune.data.show.check import check
from weitune.data.show.preview import PreviewItem, preview
from weitune.errors import DataError
from weitune.recipe.schema import Recipe, Tokens

ROWS = {
    "huanhuan.json": 3729,
    "alpaca_en_demo.json": 999,
    "glaive_toolcall_zh_demo.json": 300,
    "v1_sft_demo.jsonl": 500,
}
FORMATS = {"huanhuan.json": "alpaca", "alpaca_en_demo.json": "alpaca", "glaive_toolcall_zh_demo.json": "sharegpt",
           "v1_sft_demo.jsonl": "messages"}  # fmt: skip


def rows_of(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    return list(map(json.loads, text.splitlines())) if path.suffix == ".jsonl" else json.loads(text)


@pytest.mark.parametrize("name", ROWS)
def test_accounts_are_exact(name: str, qwen_tokenizer: Any, shared_data: Path) -> None:
    path = shared_data / name
    recipe = Recipe(model="any", data=[str(path)], tokens=Tokens(max_length=700))
    result = check(recipe, framing_for(qwen_tokenizer, recipe.tokens))
    report = result.report.to_json()
    assert result.ready
    assert report["sources"][0] == {
        "name": str(path), "kind": "json", "encoding": "utf-8", "compression": None, "format": FORMATS[name],
        "rows": ROWS[name], "unused_fields": {},
    }  # fmt: skip
    rows = report["rows"]
    assert rows["read"] == ROWS[name] == rows["trained"] + sum(rows["set_aside"].values())
    assert rows["faulty"] == 0
    repeated = sum(n - 1 for n in Counter(json.dumps(row, sort_keys=True) for row in rows_of(path)).values())
    assert report["found"]["exact_duplicates"] == repeated
    prepared = prepare(recipe, framing_for(qwen_tokenizer, recipe.tokens))
    assert prepared.report.to_json()["rows"] == rows
    assert len(prepared) == rows["trained"]
    assert prepared.lengths.max() <= 700


def shown(name: str, tokenizer: Any, folder: Path) -> list[PreviewItem]:
    recipe = Recipe(model="any", data=[str(folder / name)], tokens=Tokens(max_length=4096))
    reader = Reader(recipe.data, read_options(recipe))
    return list(preview(reader, framing_for(tokenizer, recipe.tokens), tokenizer, recipe))


def test_alpaca_reads_right(qwen_tokenizer: Any, shared_data: Path) -> None:
    for name in ("huanhuan.json", "alpaca_en_demo.json"):
        for item, row in zip(shown(name, qwen_tokenizer, shared_data), rows_of(shared_data / name), strict=True):
            assert item.learned == (row["output"] + "<|im_end|>",)
            asked = row["instruction"] + ("\n" + row["input"] if row["input"] else "")
            text = "".join(part.text for part in item.parts)
            assert text.endswith(
                f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{row['output']}<|im_end|>\n"
            )


def test_messages_read_right(qwen_tokenizer: Any, shared_data: Path) -> None:
    name = "v1_sft_demo.jsonl"
    for item, row in zip(shown(name, qwen_tokenizer, shared_data), rows_of(shared_data / name), strict=True):
        answers = [m["content"][0]["value"] for m in row["messages"] if m["role"] == "assistant" and m["loss_weight"]]
        assert item.learned == tuple(f"{answer}<|im_end|>" for answer in answers)


def test_tool_calls_read_right(qwen_tokenizer: Any, shared_data: Path) -> None:
    name = "glaive_toolcall_zh_demo.json"
    calls = 0
    for item, row in zip(shown(name, qwen_tokenizer, shared_data), rows_of(shared_data / name), strict=True):
        expected = []
        for said in row["conversations"]:
            if said["from"] == "gpt":
                expected.append(f"{said['value']}<|im_end|>")
            elif said["from"] == "function_call":
                calls += 1
                call = json.dumps(json.loads(said["value"]), ensure_ascii=False)
                expected.append(f"<tool_call>\n{call}\n</tool_call><|im_end|>")
        assert item.learned == tuple(expected)
        text = "".join(part.text for part in item.parts)
        for said in row["conversations"]:
            if said["from"] == "observation":
                assert f"<tool_response>\n{said['value']}\n</tool_response>" in text
        for tool in json.loads(row["tools"] or "[]"):
            assert json.dumps(tool, ensure_ascii=False) in text
    assert calls > 100


def test_a_model_without_tools_refuses_them(smollm2_tokenizer: Any, shared_data: Path) -> None:
    recipe = Recipe(model="any", data=[str(shared_data / "glaive_toolcall_zh_demo.json")])
    with pytest.raises(DataError, match="leaves out the tool"):
        prepare(recipe, framing_for(smollm2_tokenizer, recipe.tokens))


@pytest.mark.parametrize("name", ROWS)
def test_reading_needs_no_model(name: str, shared_data: Path) -> None:
    reader = Reader([str(shared_data / name)], Options())
    assert sum(1 for _ in reader.conversations()) == ROWS[name]
    assert not reader.problems
