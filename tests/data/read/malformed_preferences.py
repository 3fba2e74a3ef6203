"""Files of pairs and judged answers with one faulty row each: three rows of a format, and what people get wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from tests.data.files import as_table
from tests.data.read.malformed import Row, put, replaced, without


class MalformedPreferences(NamedTuple):
    """A file's name, its bytes, the faulty row, and the field that the problem names."""

    name: str
    content: bytes
    row: int
    field: str


_SYSTEM = {"role": "system", "content": "s"}
Defects = Mapping[str, tuple[Callable[[Row], Row], str]]


def _user(text: str) -> Row:
    return {"role": "user", "content": text}


def _said(text: str) -> Row:
    return {"role": "assistant", "content": text}


def _hh(question: str, text: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant: {text}"


FORMS: Mapping[str, Callable[[str, str, str], Row]] = {
    "texts": lambda q, a, b: {"prompt": q, "chosen": a, "rejected": b},
    "lists": lambda q, a, b: {"prompt": [_user(q)], "chosen": [_said(a)], "rejected": [_said(b)]},
    "dialogues": lambda q, a, b: {"chosen": [_user(q), _said(a)], "rejected": [_user(q), _said(b)]},
    "hh": lambda q, a, b: {"chosen": _hh(q, a), "rejected": _hh(q, b)},
    "sharegpt": lambda q, a, b: {
        "conversations": [{"from": "human", "value": q}],
        "chosen": {"from": "gpt", "value": a},
        "rejected": {"from": "gpt", "value": b},
    },
    "swift": lambda q, a, b: {"messages": [_user(q), _said(a)], "rejected_response": b},
    "swift-messages": lambda q, a, b: {"messages": [_user(q), _said(a)], "rejected_messages": [_user(q), _said(b)]},
    "alpaca": lambda q, a, b: {"instruction": q, "input": "", "output": [a, b]},
    "openai": lambda q, a, b: {
        "input": {"messages": [_user(q)]},
        "preferred_output": [_said(a)],
        "non_preferred_output": [_said(b)],
    },
    "label": lambda q, a, b: {"prompt": q, "completion": a, "label": a < b},
    "kto-tag": lambda q, a, b: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}],
                                "kto_tag": a < b},
}  # fmt: skip
DEFECTS: Mapping[str, Defects] = {
    "texts": {
        "no-rejected": (without("rejected"), "rejected"),
        "no-chosen": (without("chosen"), "chosen"),
        "no-prompt": (without("prompt"), "prompt"),
        **{f"rejected-{name}": (put(value, "rejected"), field) for name, value, field in (
            ("null", None, "rejected"), ("number", 7, "rejected"), ("list", ["x"], "rejected[0]"),
            ("object", {"x": 1}, "rejected.role"), ("half-surrogate", "\ud83d", "rejected"), ("empty", [], "rejected"),
        )},
        **{f"prompt-{name}": (put(value, "prompt"), field) for name, value, field in (
            ("null", None, "prompt"), ("number", 7, "prompt"), ("list", ["x"], "prompt[0]"),
            ("half-surrogate", "\ud83d", "prompt"),
        )},
        "misspelt": (lambda row: {**without("rejected")(row), "rejected\u200b": "b"}, "rejected"),
        "other-names": (lambda row: {"prompt": row["prompt"], "better": "a", "worse": "b"}, "chosen"),
        "one-answer": (lambda row: {"prompt": row["prompt"], "completion": "a"}, ""),
        "judged": (lambda row: {"prompt": row["prompt"], "completion": "a", "label": True}, "label"),
        "conversation": (lambda row: {"messages": [_user("q"), _said("a")]}, ""),
        "picture": (put(["a.png"], "images"), "images"),
        "text": (replaced("q"), ""),
        "null": (replaced(None), ""),
        "empty": (replaced({}), "chosen"),
    },
    "lists": {
        "answer-of-user": (put("user", "chosen", 0, "role"), "chosen"),
        "unknown-role": (put("bot", "rejected", 0, "role"), "rejected[0].role"),
        "no-content": (put({"role": "assistant"}, "rejected", 0), "rejected[0].content"),
        "prompt-answered": (put([_user("q"), _said("a")], "prompt"), "prompt"),
        "late-system": (lambda row: {**row, "chosen": [*row["chosen"], _SYSTEM]}, "chosen[1]"),
        "weighted": (put(0.5, "chosen", 0, "weight"), "chosen"),
        "image": (put([{"type": "image_url"}], "prompt", 0, "content"), "prompt[0].content[0].type"),
        "dialogue-and-answer": (put([_user("q"), _said("a")], "chosen"), "chosen"),
        "tools": (put("[{", "tools"), "tools"),
        "empty-prompt": (put([], "prompt"), "prompt"),
    },
    "dialogues": {
        "other-prompts": (put("z", "rejected", 0, "content"), "rejected[0]"),
        "begins-the-other": (lambda row: {**row, "chosen": [*row["rejected"], _user("more")]}, "rejected"),
        "no-question": (lambda row: {key: value[1:] for key, value in row.items()}, "prompt"),
        "nobody-answers": (lambda row: {key: [*value, _user("and?")] for key, value in row.items()}, "chosen"),
        "wrong-prompt": (put("z", "prompt"), "prompt"),
        "python": (lambda row: {**row, "chosen": str(row["chosen"]), "rejected": str(row["rejected"])}, "chosen"),
    },
    "hh": {
        "no-human": (put("答1", "chosen"), "chosen"),
        "no-assistant": (lambda row: {**row, "chosen": row["chosen"].partition("\n\nAssistant")[0]}, "rejected"),
        "other-prompts": (put(_hh("z", "b1"), "rejected"), "rejected[0]"),
    },
    "sharegpt": {
        "unknown-speaker": (put("narrator", "rejected", "from"), "rejected.from"),
        "no-value": (put({"from": "gpt"}, "chosen"), "chosen.value"),
        "answered": (put([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "conversations"),
                     "conversations"),
        "no-turns": (put([], "conversations"), "conversations"),
    },
    "swift": {
        "no-answer": (put([_user("q")], "messages"), "messages"),
        "no-rejected": (without("rejected_response"), ""),
        "rejected-number": (put(7, "rejected_response"), "rejected_response"),
    },
    "swift-messages": {
        "other-prompts": (put("z", "rejected_messages", 0, "content"), "rejected_messages[0]"),
        "no-answer": (lambda row: {**row, "rejected_messages": row["messages"][:1]}, "rejected_messages"),
    },
    "alpaca": {
        "one": (put(["a"], "output"), "output"),
        "three": (put(["a", "b", "c"], "output"), "output"),
        "number": (put(["a", 3], "output"), "output"),
        "text": (put("a", "output"), ""),
        "no-instruction": (without("instruction"), "instruction"),
    },
    "openai": {
        "no-input": (without("input"), "input"),
        "input-text": (put("q", "input"), "input"),
        "no-messages": (put({}, "input"), "input.messages"),
        "no-preferred": (without("preferred_output"), "preferred_output"),
        "preferred-user": (put("user", "preferred_output", 0, "role"), "preferred_output"),
    },
    "label": {
        **{f"label-{name}": (put(value, "label"), "label") for name, value in
           {"null": None, "word": "good", "two": 2, "list": [True], "empty": ""}.items()},
        "no-label": (without("label"), ""),
        "no-completion": (without("completion"), "completion"),
        "pair": (lambda row: {"prompt": "q", "chosen": "a", "rejected": "b"}, "chosen"),
        "rejected-too": (put("b", "rejected"), "rejected"),
    },
    "kto-tag": {
        "word": (put("yes", "kto_tag"), "kto_tag"),
        "nobody-answers": (put([{"from": "human", "value": "q"}], "conversations"), ""),
        "nobody-asks": (put([{"from": "gpt", "value": "a"}], "conversations"), ""),
        "value-null": (put(None, "conversations", 1, "value"), "conversations[1].value"),
    },
}  # fmt: skip


def corpus() -> Iterator[MalformedPreferences]:
    """Yield every file; its first row is in order, so that the kind of the file is known."""
    for form, defects in DEFECTS.items():
        rows = [FORMS[form](f"q{i}", f"答{i}", "b1" if i % 2 else "赖") for i in range(3)]
        for at, (name, (defect, field)) in enumerate(defects.items()):
            bad = 1 + at % 2
            spoilt = [defect(row) if i == bad else row for i, row in enumerate(rows)]
            kind = "json" if at % 3 else "jsonl"
            text = json.dumps(spoilt) if kind == "json" else "".join(json.dumps(row) + "\n" for row in spoilt)
            yield MalformedPreferences(f"{form}-{name}.{kind}", text.encode(), bad + 1, field)
    yield from _tables()


def _tables() -> Iterator[MalformedPreferences]:
    rows = [FORMS["texts"](f"q{i}", f"答{i}", "b") for i in range(3)]
    table = as_table(rows, ",")
    yield MalformedPreferences("table-no-rejected.csv", table.replace("rejected", "other").encode(), 1, "rejected")
    cells = [{**row, "chosen": json.dumps([_said("a")])[:-1], "rejected": json.dumps([_said("b")])} for row in rows]
    yield MalformedPreferences("table-cut-off-json.csv", as_table(cells, ",").encode(), 1, "chosen")
    labels = [{"prompt": "q", "completion": "a", "label": label} for label in ("True", "false", "perhaps")]
    yield MalformedPreferences("table-label.csv", as_table(labels, ",").encode(), 3, "label")
