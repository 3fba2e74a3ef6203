"""A corpus of malformed files: every format × every defect × every type of file that can contain it.

A defect is either in a row (a field missing, null, of the wrong type …) or in the file's text (cut off, a stray
character, bytes that are no text …). Each file has good rows around the bad one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tests.data.files import as_table, pack

Row = Any


class Malformed(NamedTuple):
    """A file's name, its bytes, and the faulty row (None if the fault is not in a row)."""

    name: str
    content: bytes
    row: int | None


def good_rows(form: str) -> list[Row]:
    """Return three rows that are valid."""
    made: dict[str, Callable[[str, str], Row]] = {
        "alpaca": lambda q, a: {"instruction": q, "input": "", "output": a},
        "sharegpt": lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
        "messages": lambda q, a: {
            "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a, "weight": 1}]
        },
        "prompt-completion": lambda q, a: {"prompt": q, "completion": a},
    }
    return [made[form](f"q{i}", f"答{i}") for i in range(3)]


def without(key: str) -> Callable[[Row], Row]:
    return lambda row: {k: v for k, v in row.items() if k != key}


def put(value: Any, *path: str | int) -> Callable[[Row], Row]:
    """Return a defect that sets the value under ``path``."""

    def change(row: Row) -> Row:
        row = copy.deepcopy(row)
        holder = row
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = value
        return row

    return change


def replaced(value: Any) -> Callable[[Row], Row]:
    return lambda _: value


BAD_TEXTS: dict[str, Any] = {"null": None, "number": 7, "list": ["x"], "object": {"x": 1}, "half-surrogate": "\ud83d"}
ANY_ROW: dict[str, Callable[[Row], Row]] = {
    "row-is-a-text": replaced("q"),
    "row-is-a-list": replaced(["q", "a"]),
    "row-is-null": replaced(None),
    "row-is-empty": replaced({}),
    "row-of-another-format": replaced({"text": "q and a"}),
}
IN_ROW: dict[str, dict[str, Callable[[Row], Row]]] = {
    "alpaca": {
        "no-output": without("output"),
        "no-instruction": without("instruction"),
        **{f"output-{name}": put(value, "output") for name, value in BAD_TEXTS.items()},
        **{f"instruction-{name}": put(value, "instruction") for name, value in BAD_TEXTS.items()},
        "input-null": put(None, "input"),
        "history-flat": put(["q", "a"], "history"),
        "history-text": put("q", "history"),
        "history-broken": put("[['q', 'a']]", "history"),
        "system-number": put(3, "system"),
        "verdict": put(False, "kto_tag"),
        "picture": put(["a.png"], "images"),
    },
    "sharegpt": {
        "no-turns": put([], "conversations"),
        "turns-null": put(None, "conversations"),
        "turns-text": put("q", "conversations"),
        "turn-is-a-text": put("q", "conversations", 0),
        "no-value": put({"from": "human"}, "conversations", 0),
        "no-from": put({"value": "q"}, "conversations", 0),
        "unknown-speaker": put("narrator", "conversations", 0, "from"),
        "broken-call": put({"from": "function_call", "value": "f("}, "conversations", 1),
        "call-of-nothing": put({"from": "function_call", "value": "{}"}, "conversations", 1),
        "broken-tools": put("[{", "tools"),
        "turns-of-python": put("[{'from': 'human', 'value': 'q'}]", "conversations"),
        "late-system": put({"from": "system", "value": "s"}, "conversations", 1),
        "weight-quoted": put("false", "conversations", 1, "train"),
        "nobody-answers": put({"from": "human", "value": "q"}, "conversations", 1),
        **{f"value-{name}": put(value, "conversations", 1, "value") for name, value in BAD_TEXTS.items()},
    },
    "messages": {
        "no-messages": put([], "messages"),
        "messages-null": put(None, "messages"),
        "messages-object": put({"role": "user"}, "messages"),
        "message-is-a-text": put("q", "messages", 0),
        "no-role": put({"content": "q"}, "messages", 0),
        "no-content": put({"role": "user"}, "messages", 0),
        "unknown-role": put("bot", "messages", 0, "role"),
        "image": put([{"type": "image_url", "image_url": "x"}], "messages", 0, "content"),
        "weight-negative": put(-1, "messages", 1, "weight"),
        "weight-text": put("high", "messages", 1, "weight"),
        "calls-object": put({"name": "f"}, "messages", 1, "tool_calls"),
        "tools-number": put(3, "tools"),
        "arguments-number": put([{"name": "f", "args": 3}], "messages", 1, "tool_calls"),
        "arguments-half-surrogate": put([{"name": "f", "input": '{"a": "\\ud83d"}'}], "messages", 1, "tool_calls"),
        "calls-of-a-user": put([{"name": "f"}], "messages", 0, "tool_calls"),
        "weights-disagree": put(False, "messages", 1, "loss"),
        "two-reasonings": put({"role": "assistant", "content": "a", "reasoning": "r", "thinking": "s"}, "messages", 1),
        "second-answer": put("b", "rejected_response"),
        "nobody-answers": put({"role": "user", "content": "q"}, "messages", 1),
        **{f"content-{n}": put(v, "messages", 1, "content") for n, v in BAD_TEXTS.items() if n != "list"},
    },
    "prompt-completion": {
        "no-prompt": without("prompt"),
        "no-completion": without("completion"),
        "verdict": put(True, "label"),
        "pair": lambda row: {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "b"},
        **{f"completion-{n}": put(v, "completion") for n, v in BAD_TEXTS.items()},
        **{f"prompt-{n}": put(v, "prompt") for n, v in BAD_TEXTS.items()},
    },
}

IN_JSON_ROW: dict[str, Callable[[str], str]] = {
    "no-comma": lambda text: text.replace(", ", " ", 1) if ", " in text else text[:-1],
    "single-quotes": lambda text: text.replace('"', "'"),
    "trailing-comma": lambda text: text[:-1] + ",}",
    "bare-word": lambda text: text.replace("{", "{key: ", 1),
    "no-end": lambda text: text[:-1],
    "control-character": lambda text: text.replace("q", "q\t", 1),
    "bad-escape": lambda text: text.replace("q", "\\q", 1),
    "repeated-key": lambda text: text.replace("{", '{"again": 1, "again": 2, ', 1),
    "not-a-number": lambda text: text.replace("{", '{"x": 01, ', 1),
    "python": lambda text: text.replace("{", '{"x": None, ', 1),
    "too-deep": lambda text: text.replace("{", '{"x": ' + "[" * 1200 + "]" * 1200 + ", ", 1),
    "too-deep-objects": lambda text: text.replace("{", '{"x": ' + '{"y": ' * 1200 + "0" + "}" * 1200 + ", ", 1),
    "huge-number": lambda text: text.replace("{", '{"x": ' + "1" * 5000 + ", ", 1),
    "zero-byte": lambda text: text.replace("q", "q\0", 1),
}

WHOLE_FILES: dict[str, tuple[str, bytes]] = {
    "empty-json": ("json", b""),
    "empty-jsonl": ("jsonl", b""),
    "empty-csv": ("csv", b""),
    "empty-parquet": ("parquet", b""),
    "blank": ("json", b" \n\n"),
    "empty-array": ("json", b"[]"),
    "bom-only": ("json", b"\xef\xbb\xbf"),
    "text": ("json", b"hello"),
    "html": ("json", b"<!doctype html><html></html>"),
    "binary": ("json", bytes(range(256)) * 4),
    "zeros": ("jsonl", b"\0" * 100),
    "only-a-header": ("csv", b"instruction,output\n"),
    "one-column": ("csv", b"text\nhello\n"),
    "semicolons": ("csv", b"instruction;output\nq;a\n"),
    "tabs-in-csv": ("csv", b"instruction\toutput\nq\ta\n"),
    "commas-in-tsv": ("tsv", b"instruction,output\nq,a\n"),
    "open-quote": ("csv", b'instruction,output\nq,"a\n'),
    "letters-after-quote": ("csv", b'instruction,output\nq,"a"b\n'),
    "too-few-cells": ("csv", b"instruction,output\nq\n"),
    "too-many-cells": ("tsv", b"instruction\toutput\nq\ta\tb\n"),
    "repeated-column": ("csv", b"output,output\nq,a\n"),
    "latin-1": ("csv", "instruction,output\ncafé,crème brûlée\n".encode("latin-1")),
    "korean": ("csv", "instruction,output\n오늘 날씨가 어때요?,서울은 맑습니다.\n".encode("cp949")),
    "japanese": ("json", '[{"instruction": "今日の天気はどうですか", "output": "晴れです"}]'.encode("shift_jis")),
    "taiwanese": ("tsv", "instruction\toutput\n今天天氣如何？\t台北今天晴朗\n".encode("big5")),
    "thai": ("jsonl", '{"instruction": "สวัสดีครับ", "output": "อากาศดีมาก"}'.encode("tis-620")),
    "several-lists": (
        "json",
        b'{"train": [{"instruction": "q", "output": "a"}], "test": [{"prompt": "q", "completion": ""}]}',
    ),
    "unequal-columns": ("json", b'{"instruction": ["q", "r"], "output": ["a"]}'),
    "array-that-ends-early": ("json", b'[{"instruction": "q", "output": "a"}], {"instruction": "q", "output": "a"}]'),
    "text-after-the-array": ("json", b'[{"instruction": "q", "output": "a"}] and more'),
    "header-again": ("csv", b"instruction,output\nq,a\n\xef\xbb\xbfinstruction,output\nq,a\n"),
    "cell-without-a-column": ("csv", b"instruction,output,\nq,a,x\n"),
    "no-column-names": ("csv", b",,\nq,a,x\n"),
    "only-blank-cells": ("csv", b"instruction,output\n,\n"),
    "not-arrow": ("arrow", b"this is not it"),
    "not-parquet": ("parquet", b"PAR1 this is not it PAR1"),
    "gzip-that-is-none": ("json.gz", b"\x1f\x8b nothing packed"),
    "zstd-that-is-none": ("json.zst", b"\x28\xb5\x2f\xfd nothing packed"),
    "gzip-cut-off": ("jsonl.gz", pack(b'{"instruction": "q", "output": "a"}\n' * 500, ".gz")[:-20]),
    "zstd-cut-off": ("jsonl.zst", pack(b'{"instruction": "q", "output": "a"}\n' * 500, ".zst")[:-20]),
    "utf-16-cut-off": ("json", '[{"instruction": "q", "output": "a"}]'.encode("utf-16")[:-1]),
    "deeply-nested": ("json", b"[" * 100_000),
    "unknown-type": ("docx", b"PK"),
}


def corpus() -> Iterator[Malformed]:
    """Yield every file of the corpus."""
    for form, defects in IN_ROW.items():
        for name, defect in {**ANY_ROW, **defects}.items():
            yield from _with_bad_row(form, name, defect)
        for name, spoil in IN_JSON_ROW.items():
            yield from _with_bad_text(form, name, spoil)
        yield _with_damaged_byte(form)
    yield from _tables()
    for name, (kind, content) in WHOLE_FILES.items():
        yield Malformed(f"{name}.{kind}", content, None)


def _with_bad_row(form: str, name: str, defect: Callable[[Row], Row]) -> Iterator[Malformed]:
    for at, kind in ((0, "jsonl"), (2, "json")):
        rows = good_rows(form)
        rows[at] = defect(rows[at])
        text = json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows)
        yield Malformed(f"{form}-{name}.{kind}", text.encode(), at + 1)


def _with_bad_text(form: str, name: str, spoil: Callable[[str], str]) -> Iterator[Malformed]:
    for at, kind in ((1, "jsonl"), (2, "json")):
        rows = [json.dumps(row, ensure_ascii=False) for row in good_rows(form)]
        rows[at] = spoil(rows[at])
        text = "\n".join(rows) if kind == "jsonl" else "[" + ",\n".join(rows) + "]"
        yield Malformed(f"{form}-{name}.{kind}", text.encode(), at + 1)


def _with_damaged_byte(form: str) -> Malformed:
    content = "\n".join(json.dumps(row, ensure_ascii=False) for row in good_rows(form)).encode()
    at = content.index("答1".encode())
    return Malformed(f"{form}-damaged-byte.jsonl", content[:at] + b"\xff" + content[at + 1 :], 2)


def _tables() -> Iterator[Malformed]:
    for form in ("alpaca", "prompt-completion"):
        rows = good_rows(form)
        last = list(rows[0])[-1]
        for kind, delimiter in (("csv", ","), ("tsv", "\t")):
            table = as_table(rows, delimiter)
            lines = table.splitlines(keepends=True)
            yield Malformed(f"{form}-no-{last}.{kind}", table.replace(last, "other").encode(), 1)
            short = [*lines[:2], lines[2].rpartition(delimiter)[0] + "\n", lines[3]]
            yield Malformed(f"{form}-short-row.{kind}", "".join(short).encode(), 2)
            damaged = table.encode().replace("答2".encode(), b"\xff2")
            yield Malformed(f"{form}-damaged-byte.{kind}", damaged, 3)
