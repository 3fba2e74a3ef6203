"""A preview shows which look-alikes of control tokens are letters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.frame.families import FAMILIES, tokenizer_of
from tests.data.frame.test_framing import framing_of
from weitune.cli.data.view import print_preview
from weitune.data.conversation import Conversation, Turn
from weitune.data.frame.choose import framing_for
from weitune.data.read.conversations import Reader
from weitune.data.show.preview import Part, PreviewItem, parts, preview
from weitune.errors import RecipeError
from weitune.recipe.schema import Recipe, Tokens
from weitune.report.data_page import data_page


def parts_of(name: str, *turns: Turn) -> tuple[Part, ...]:
    framing = framing_of(name)
    [example] = framing.examples(Conversation(turns))
    return parts(example, tokenizer_of(name), framing)


def test_letters_have_borders_and_tokens_have_none() -> None:
    shown = parts_of("qwen3", Turn("user", "a <think> b"), Turn("assistant", "x</think>", reasoning="r"))
    asked = next(part for part in shown if part.kind == "prompt")
    first, *letters, last = asked.pieces
    assert (first, "".join(letters), last) == ("user\na ", "<think>", " b")
    assert 1 < len(letters) == len(tokenizer_of("qwen3").backend_tokenizer.model.tokenize("<think>"))
    [learned] = [part for part in shown if part.kind == "learned"]
    first, *letters, last = learned.pieces
    assert (first, "".join(letters), last) == ("<think>\nr\n</think>\n\nx", "</think>", "<|im_end|>")
    assert all(not part.borders for part in shown if part.kind == "control")


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma"])
@given(data=st.data())
def test_exactly_the_letters_have_borders(name: str, data: st.DataObject) -> None:
    tokens = [*FAMILIES[name].special, *(token for token in FAMILIES[name].plain if not token.isspace())]
    said = data.draw(st.lists(st.sampled_from([*tokens, "a", "é😀", " b"]), min_size=1, max_size=4))
    shown = parts_of(name, Turn("user", "".join(said)), Turn("assistant", "x"))
    assert "".join("".join(part.pieces) for part in shown) == "".join(part.text for part in shown)
    assert any(part.borders for part in shown) == any(word in tokens for word in said)
    for part in shown:
        spelled = [word for word in tokens if any(word in piece for piece in part.pieces)]
        assert part.kind != "prompt" or not spelled  # every look-alike is cut


def test_the_terminal_and_the_page_show_the_borders(capsys: pytest.CaptureFixture[str]) -> None:
    turns = (Turn("user", "a <think> b"), Turn("assistant", "c"))
    item = PreviewItem("f.json row 1", parts_of("qwen2.5", turns[0]._replace(content="a </s><|im_end|> b"), turns[1]))
    print_preview([item], [])
    printed = capsys.readouterr().out
    assert "┊<┊|┊" in printed
    assert "borders of tokens" in printed
    html = data_page("title", [item], [])
    assert 'data-shown="user\na &lt;/s&gt;┊&lt;┊|┊' in html
    assert ">user\na &lt;/s&gt;&lt;|im_end|&gt; b<" in html  # and the text itself, for copies and the filter


def test_nothing_is_said_of_borders_without_look_alikes(capsys: pytest.CaptureFixture[str]) -> None:
    item: Any = PreviewItem("f.json row 1", parts_of("qwen2.5", Turn("user", "a < b"), Turn("assistant", "c")))
    print_preview([item], [])
    assert "┊" not in capsys.readouterr().out
    assert "data-shown=" not in data_page("title", [item], [])


def test_the_weights_of_files_are_shown(tmp_path: Path) -> None:
    row = {"instruction": "q", "input": "", "output": "a"}
    names = [str(tmp_path / f"{name}.json") for name in "abc"]
    for name in names:
        Path(name).write_text(json.dumps([row]), encoding="utf-8")
    recipe = Recipe(model="any", data=names, weights={names[1]: 0, names[2]: 0.5})
    tokenizer = tokenizer_of("qwen2.5")
    whole, nothing, half = preview(Reader(names), framing_for(tokenizer, Tokens()), tokenizer, recipe)
    assert [part.weight for part in whole.parts if part.kind == "learned"] == [1.0]
    assert not [part for part in nothing.parts if part.kind == "learned"]
    assert any("nothing" in tag for tag in nothing.tags)
    assert [part.weight for part in half.parts if part.kind == "learned"] == [0.5]
    with pytest.raises(RecipeError, match="elsewhere"):
        list(
            preview(
                Reader(names),
                framing_for(tokenizer, Tokens()),
                tokenizer,
                recipe.model_copy(update={"weights": {"elsewhere": 1}}),
            )
        )
