"""Preparing: exact accounts, the cache, truncation, and that nothing half-done is ever found."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.frame.families import tokenizer_of
from weitune.data.conversation import Conversation, Example, Span, Turn
from weitune.data.frame.choose import framing_for
from weitune.data.frame.framing import Framing
from weitune.data.prepare import batches as batches_module
from weitune.data.prepare import prepare as prepare_module
from weitune.data.prepare.accounts import DuplicateCounter
from weitune.data.prepare.cache import building, data_cache
from weitune.data.prepare.prepare import prepare
from weitune.data.prepare.recipe_reader import read_options
from weitune.data.prepare.truncate import cut
from weitune.data.problems import Problem
from weitune.data.read.conversations import Reader, read_conversations
from weitune.data.show.check import check
from weitune.errors import DataError, InputError, RecipeError
from weitune.recipe.schema import Recipe, Tokens

ROWS: list[dict[str, Any]] = [
    {"instruction": f"question {i}", "input": "more" if i % 3 else "", "output": f"answer {i} " * (i % 5)}
    for i in range(40)
]


def framing(tokens: Tokens, family: str = "qwen2.5") -> Framing:
    return framing_for(tokenizer_of(family), tokens)


def recipe_for(*paths: Path, tokens: Tokens | None = None, **fields: Any) -> Recipe:
    return Recipe(model="any", data=[str(path) for path in paths], tokens=tokens or Tokens(), **fields)


def prepared_from(recipe: Recipe, family: str = "qwen2.5") -> Any:
    return prepare(recipe, framing(recipe.tokens, family))


def test_examples_are_those_of_the_framing(lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for(lines(ROWS), system="Be brief.")
    conversations = list(read_conversations(Reader(recipe.data, read_options(recipe)), recipe.system))
    expected = [e for group in framing(recipe.tokens).examples_batch(conversations) for e in group]
    for batch in (3, 7, 1024):  # the batch must not matter
        monkeypatch.setattr(batches_module, "_BATCH", batch)
        shutil.rmtree(data_cache(), ignore_errors=True)
        prepared = prepared_from(recipe)
        assert list(prepared) == expected
        assert [e.origin for e in prepared] == [e.origin for e in expected]
        assert prepared.lengths.tolist() == [len(e.input_ids) for e in expected]
        assert prepared.weights.tolist() == [e.weight for e in expected]
        assert prepared.supervised.tolist() == [e.supervised for e in expected]
    with pytest.raises(IndexError):
        prepared[len(ROWS)]
    with pytest.raises(IndexError):
        prepared[-1]


def test_long_texts_end_a_batch_early(lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    begin = Framing.begin

    def counting(self: Framing, drafts: Any) -> Any:
        sizes.append(len(drafts))
        return begin(self, drafts)

    monkeypatch.setattr(Framing, "begin", counting)
    monkeypatch.setattr(batches_module, "_BATCH_CHARACTERS", 100)
    prepared_from(recipe_for(lines([{"instruction": "x" * 60, "output": "y"}] * 4)))
    assert sizes[:2] == [2, 2]


def test_text_that_can_only_be_a_control_token_names_its_row(lines: Callable[..., Path]) -> None:
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.Unigram([("<unk>", 0.0), ("@", -1.0), ("a", -1.0)], unk_id=0, byte_fallback=False))
    core.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "@", "</s>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="</s>")  # noqa: S106
    recipe = recipe_for(lines([{"instruction": "a", "output": text} for text in ("a", "a@", "a", "@")]))
    with pytest.raises(DataError) as error:
        prepare(recipe, framing_for(tokenizer, recipe.tokens))
    assert [problem.row for problem in error.value.problems if isinstance(problem, Problem)] == [2, 4]


def test_a_turn_of_its_own_example_is_accounted_for(lines: Callable[..., Path]) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 3
    recipe = recipe_for(lines([{"messages": turns}]))
    report = prepared_from(recipe, "qwen3").report
    assert report.to_json()["rows"] == {"read": 1, "trained": 1, "set_aside": {}, "faulty": 0}
    assert report.examples.made == report.examples.kept == 3
    assert any("each learned turn" in line for line in report.lines())


KINDS = ("fine", "long", "unlearned", "faulty", "malformed", "unframed")


def row_of(kind: str, i: int) -> Any:
    turns = [
        {"role": "user", "content": f"q{i}"},
        {"role": "assistant", "content": "x " * (400 if kind == "long" else 2)},
    ]
    if kind == "unlearned":
        turns[1]["weight"] = 0
    if kind == "faulty":
        turns[0]["role"] = "nobody"
    if kind == "unframed":
        turns = turns[1:]
    return f'{{"messages": {i}' if kind == "malformed" else {"messages": turns}


@given(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=12), truncation=st.sampled_from(["drop", "cut"]))
def test_every_row_is_accounted_for_exactly(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], truncation: Any
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [row_of(kind, i) for i, kind in enumerate(kinds)]
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    count = Counter(kinds)
    recipe = recipe_for(path, tokens=Tokens(max_length=100, truncation=truncation))
    result = check(recipe, framing(recipe.tokens))
    accounts = result.report.to_json()["rows"]
    faulty = count["faulty"] + count["malformed"] + count["unframed"]
    assert accounts["read"] == len(kinds)
    assert accounts["faulty"] == faulty == result.problems.rows
    assert sum(accounts["set_aside"].values()) == count["unlearned"] + (count["long"] if truncation == "drop" else 0)
    assert accounts["read"] == accounts["trained"] + sum(accounts["set_aside"].values()) + accounts["faulty"]
    assert result.report.examples.cut == (count["long"] if truncation == "cut" else 0)
    assert result.report.findings.over_long == count["long"]
    assert result.ready == (not faulty and accounts["trained"] > 0)
    bad = {i + 1 for i, kind in enumerate(kinds) if kind in {"faulty", "malformed", "unframed"}}
    assert {problem.row for problem in result.problems} == bad


def test_all_problems_come_together(lines: Callable[..., Path]) -> None:
    path = lines([ROWS[0], row_of("faulty", 1), row_of("malformed", 2), {"instruction": 3, "output": None}])
    missing = path.with_name("missing.json")
    with pytest.raises(DataError) as error:
        prepared_from(recipe_for(path, missing))
    kinds = {problem.kind for problem in error.value.problems if isinstance(problem, Problem)}
    assert kinds == {"missing file", "not valid JSON", "null field", "wrong type", "missing field"}
    assert not list(data_cache().glob("*"))


def test_too_long_rows_are_errors_if_asked(lines: Callable[..., Path]) -> None:
    path = lines([row_of("fine", 0), row_of("long", 1)])
    with pytest.raises(DataError, match=r"row 2 .*at most 100 tokens"):
        prepared_from(recipe_for(path, tokens=Tokens(max_length=100, truncation="error")))


def test_nothing_left_to_learn(lines: Callable[..., Path]) -> None:
    path = lines([row_of("long", 0)])
    with pytest.raises(DataError, match="nothing left to learn"):
        prepared_from(recipe_for(path, tokens=Tokens(max_length=10)))
    with pytest.raises(DataError, match="with nothing to learn in the first 10 tokens"):
        prepared_from(recipe_for(path, tokens=Tokens(max_length=10, truncation="cut")))


def test_cut_keeps_the_beginning_and_what_is_learned_of_it() -> None:
    example = Example((1, 2, 3, 4, 5), (Span(1, 2), Span(3, 5, 0.5)))
    assert cut(example, 4) == Example((1, 2, 3, 4), (Span(1, 2), Span(3, 4, 0.5)))
    assert cut(example, 3) == Example((1, 2, 3), (Span(1, 2),))


def test_files_are_weighed(lines: Callable[..., Path]) -> None:
    one, two, three = lines(ROWS[:2], "a.jsonl"), lines(ROWS[2:4], "b.jsonl"), lines(ROWS[4:6], "c.jsonl")
    recipe = recipe_for(one, two, three, weights={str(two): 0.25, str(three): 0})
    prepared = prepared_from(recipe)
    assert [span.weight for example in prepared for span in example.spans] == [1, 1, 0.25, 0.25]
    assert prepared.report.rows.set_aside == {"without a learned token": 2}
    with pytest.raises(RecipeError, match="not one of the files"):
        prepared_from(recipe_for(one, weights={"other.json": 2}))


def test_a_second_start_finds_everything(lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines(ROWS)
    first = prepared_from(recipe_for(path))
    moved = path.rename(path.with_name("moved.jsonl"))

    def never(*_: Any) -> Any:
        raise AssertionError("prepared again")

    monkeypatch.setattr(prepare_module, "_build", never)
    second = prepared_from(recipe_for(moved))
    assert second.fingerprint == first.fingerprint
    assert list(second) == list(first)
    assert second[3].origin.file == str(moved)
    assert second.report.sources[0].name == str(moved)
    assert {**second.report.to_json(), "sources": 0} == {**first.report.to_json(), "sources": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"system": "Be kind."},
        {"tokens": Tokens(max_length=64)},
        {"tokens": Tokens(truncation="cut")},
        {"tokens": Tokens(supervise="last")},
        {"tokens": Tokens(template_args={"x": 1})},
        {"format": "alpaca"},
        {"columns": {"user": "instruction", "assistant": "output"}},
    ],
)
def test_what_decides_the_examples_is_in_the_fingerprint(lines: Callable[..., Path], change: dict[str, Any]) -> None:
    path = lines(ROWS)
    assert prepared_from(recipe_for(path)).fingerprint != prepared_from(recipe_for(path, **change)).fingerprint


def test_contents_and_tokenizer_are_in_the_fingerprint(lines: Callable[..., Path]) -> None:
    path = lines(ROWS)
    first = prepared_from(recipe_for(path))
    assert prepared_from(recipe_for(path), "smollm2").fingerprint != first.fingerprint
    lines(ROWS[1:])
    assert prepared_from(recipe_for(path)).fingerprint != first.fingerprint


def test_special_tokens_that_a_template_may_write_are_in_the_fingerprint(lines: Callable[..., Path]) -> None:
    """They stand in tokenizer_config.json, which may change while tokenizer.json stays."""
    recipe, tokenizer = recipe_for(lines(ROWS)), tokenizer_of("qwen2.5")
    first = prepare(recipe, framing_for(tokenizer, recipe.tokens)).fingerprint
    tokenizer.add_special_tokens({"bos_token": "<|endoftext|>"})
    assert prepare(recipe, framing_for(tokenizer, recipe.tokens)).fingerprint != first


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(lines(ROWS))
    build = prepare_module._build

    def written_to_meanwhile(*arguments: Any) -> Any:
        lines(ROWS[1:])
        return build(*arguments)

    monkeypatch.setattr(prepare_module, "_build", written_to_meanwhile)
    with pytest.raises(InputError, match="changed while it was read"):
        prepared_from(recipe)
    assert not list(data_cache().iterdir())


@pytest.mark.parametrize("name", ["examples.arrow", "report.json"])
@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_cache_is_built_again(lines: Callable[..., Path], name: str, damage: str) -> None:
    recipe = recipe_for(lines(ROWS))
    first = list(prepared_from(recipe))
    [folder] = data_cache().iterdir()
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage == "truncate":
        (folder / name).write_bytes(content[: len(content) // 2])
    assert list(prepared_from(recipe)) == first
    assert (folder / name).read_bytes() == content


def test_an_interrupted_preparation_leaves_nothing(lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "kept_examples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepared_from(recipe_for(lines(ROWS)))
    assert not list(data_cache().iterdir())


def test_whoever_is_first_wins(tmp_path: Path) -> None:
    target = tmp_path / "f"
    with building(target) as late:
        (late / "x").write_text("late", encoding="utf-8")
        with building(target) as early:
            (early / "x").write_text("early", encoding="utf-8")
    assert (target / "x").read_text(encoding="utf-8") == "early"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_no_room_in_the_cache_is_said(
    lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(InputError, match="cannot be written"):
        prepared_from(recipe_for(lines(ROWS)))


def test_progress_is_told(lines: Callable[..., Path]) -> None:
    told: list[tuple[int, int | None]] = []
    recipe = recipe_for(lines(ROWS))
    prepare(recipe, framing(recipe.tokens), lambda done, total: told.append((done, total)))
    assert told[-1] == (40, None)


SMALL = st.sampled_from(["a", "b", ""])


@given(rows=st.lists(st.tuples(SMALL, SMALL, SMALL), max_size=12))
def test_twins_are_counted_as_a_table_would(rows: list[tuple[str, str, str]]) -> None:
    twins = DuplicateCounter()
    for system, question, answer in rows:
        twins.add(Conversation((Turn("system", system), Turn("user", question), Turn("assistant", answer))))
    answers: dict[tuple[str, str], set[str]] = {}
    for system, question, answer in rows:
        answers.setdefault((system, question), set()).add(answer)
    contested = sum(len(several) for several in answers.values() if len(several) > 1)
    assert twins.count() == (len(rows) - len(set(rows)), contested)


def test_the_encoding_that_was_said_distinguishes_prepared_data(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("instruction,output\nё,é\n".encode("koi8-r", "replace").replace(b"?", b"\xc5"))
    said = [prepared_from(recipe_for(path, encoding=encoding)) for encoding in ("koi8-r", "cp1251", "KOI8_R")]
    assert said[0].fingerprint != said[1].fingerprint
    assert said[0].fingerprint == said[2].fingerprint
    assert said[0].digest() != said[1].digest()


def test_a_blank_system_prompt_of_a_row_is_none_if_the_recipe_has_one(lines: Callable[..., Path]) -> None:
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"messages": [*opening, *said]} for opening in ([], [{"role": "system", "content": " \n"}])]
    with_one, without = recipe_for(lines(rows), system="Be brief."), recipe_for(lines(rows))
    for recipe, systems in ((with_one, ["Be brief."] * 2), (without, [None, " \n"])):
        read = read_conversations(Reader(recipe.data, read_options(recipe)), recipe.system)
        assert [conversation.system for conversation in read] == systems
    first, second = prepare(with_one, framing(with_one.tokens))
    assert first.input_ids == second.input_ids
