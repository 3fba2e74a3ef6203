"""Pairs and judged answers become groups: only the answer is learned, and a pair is kept or set aside as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.examples import groups
from tests.data.prepare.test_prepare import framing, recipe_for
from weitune.data.conversation import Conversation, Example, ToolCall, Turn
from weitune.data.pack import pack
from weitune.data.preference.values import Group, Judged, Pair, examples_in
from weitune.data.prepare import prepare as prepare_module
from weitune.data.prepare.cache import EXAMPLES, GROUPS, data_cache
from weitune.data.prepare.group_store import GroupWriter, StoredGroups
from weitune.data.prepare.groups import draft_answers
from weitune.data.prepare.holdout import Selection, hold_out
from weitune.data.prepare.prepare import PreparedGroups, prepare_groups
from weitune.errors import DataError
from weitune.recipe.schema import Recipe, Tokens

Lines = Callable[..., Path]


def pair(prompt: Any, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def prepared(recipe: Recipe) -> PreparedGroups:
    return prepare_groups(recipe, framing(recipe.tokens))


def of(path: Path, method: str = "dpo", **fields: Any) -> Recipe:
    return recipe_for(path, preference=method, **fields)


def text(example: Example) -> str:
    """Return the learned tokens of ``example`` as text."""
    (span,) = example.spans
    return str(framing(Tokens())._backend.decode(list(example.input_ids[span.start : span.stop]), False))


def test_a_pair_is_its_two_answers_as_they_are_framed_alone(lines: Lines) -> None:
    recipe = of(lines([pair("What is 2 + 2?", "4", "5, I think")]), system="Be brief.")
    (group,) = prepared(recipe)
    asked = (Turn("system", "Be brief."), Turn("user", "What is 2 + 2?"))
    for answer, words in zip(group.answers, ("4", "5, I think"), strict=True):
        (alone,) = framing(recipe.tokens).examples(Conversation((*asked, Turn("assistant", words))))
        assert (answer.input_ids, answer.spans) == (alone.input_ids, alone.spans)
    assert group.liked == (True, False)
    assert group.weight == 1
    assert group.origin is not None
    assert group.origin.row == 1


def test_earlier_answers_are_context_and_only_the_last_is_learned(lines: Lines) -> None:
    earlier = [("user", "Hi"), ("assistant", "Hello."), ("user", "Who are you?")]
    prompt = [{"role": role, "content": content} for role, content in earlier]
    (group,) = prepared(of(lines([pair(prompt, "A captain.", "A model.")])))
    assert [text(answer) for answer in group.answers] == ["A captain.<|im_end|>", "A model.<|im_end|>"]
    before = [answer.input_ids[: answer.spans[0].start] for answer in group.answers]
    assert before[0] == before[1]


def test_an_answer_of_several_turns_that_the_template_frames_anew_is_refused() -> None:
    thought = Turn("assistant", "", reasoning="Look it up.", tool_calls=(ToolCall("clock", {}),))
    answer = (thought, Turn("tool", "noon"), Turn("user", "Sure?"), Turn("assistant", "Noon.", reasoning="Yes."))
    other = (Turn("assistant", "No idea."),)
    row = Pair(Conversation((Turn("user", "What time is it?"),)), answer, other)
    with pytest.raises(DataError, match="2 assistant turns, each of which the template frames anew"):
        draft_answers(framing(Tokens(), "qwen3").draft, row)
    one = Judged(row.prompt, (*answer[:1], answer[1], answer[3]), liked=True)
    (draft,) = draft_answers(framing(Tokens(), "qwen3").draft, one)
    assert len(draft.learned) == 2


def test_an_answer_too_long_takes_its_pair_with_it(lines: Lines) -> None:
    rows = [pair("a", "b", "c"), pair("a", "b", "word " * 60), pair("a", "word " * 60, "c")]
    for method in ("dpo", "kto"):
        found = prepared(of(lines(rows), method, tokens=Tokens(max_length=40)))
        assert {group.origin.row for group in found if group.origin} == {1}
        report = found.report
        assert (report.rows.read, report.rows.trained) == (3, 1)
        assert report.rows.set_aside == {"with an answer longer than 40 tokens, its prompt included": 2}
        assert report.findings.over_long == 2
    cut = prepared(of(lines(rows), tokens=Tokens(max_length=40, truncation="cut")))
    assert len(cut) == 3
    assert max(len(answer.input_ids) for answer in examples_in(cut)) == 40
    with pytest.raises(DataError, match="at most 40 tokens"):
        prepared(of(lines(rows), tokens=Tokens(max_length=40, truncation="error")))


def test_answers_that_are_equal_once_they_are_cut(lines: Lines) -> None:
    rows = [pair("a", "b", "c"), pair("a", "word " * 60 + "good", "word " * 60 + "bad")]
    report = prepared(of(lines(rows), tokens=Tokens(max_length=40, truncation="cut"))).report
    assert report.rows.set_aside == {"with answers that are equal in the first 40 tokens": 1}


def test_pairs_become_judged_answers_for_kto_and_are_counted(lines: Lines) -> None:
    pairs = lines([pair("a", "good", "bad"), pair("b", "better", "worse")], "pairs.jsonl")
    judged = lines([{"prompt": "c", "completion": "fine", "label": True}], "judged.jsonl")
    recipe = recipe_for(pairs, judged, preference="kto")
    found = prepared(recipe)
    assert [(text(group.answers[0]), group.liked) for group in found] == [
        ("good<|im_end|>", (True,)), ("bad<|im_end|>", (False,)), ("better<|im_end|>", (True,)),
        ("worse<|im_end|>", (False,)), ("fine<|im_end|>", (True,)),
    ]  # fmt: skip
    assert "2 pairs became 4 judged answers, one liked and one disliked each" in found.report.lines()
    assert (found.report.rows.trained, found.report.examples.kept) == (3, 5)


def test_accounts_of_what_contradicts_itself(lines: Lines) -> None:
    rows = [
        pair("a", "x", "y"), pair("a", "y", "x"),  # turned around: both answers are chosen and rejected
        pair("b", "x", "y"), pair("b", "y", "z"),  # y is chosen and rejected
        pair("c", "x", "y"), pair("c", "x", "y"),  # a copy
        pair("d", "x", "x"),
        pair("e", "x", ""),
    ]  # fmt: skip
    report = prepared(of(lines(rows))).report
    found = report.preferences
    assert found is not None
    assert (found.pairs, found.equal_answers, found.contradicting_pairs, found.both_ways) == (8, 1, 2, 3)
    assert (report.findings.exact_duplicates, report.findings.empty_answers) == (1, 1)
    assert report.rows.set_aside == {"with two equal answers": 1}
    assert (report.rows.read, report.rows.trained, report.examples.kept) == (8, 7, 7)
    text = "\n".join(report.lines())
    assert "2 pairs that another pair with the same prompt contradicts" in text
    assert "3 answers that are the better one in one row and the worse one in another" in text


def test_judged_answers_are_counted(lines: Lines) -> None:
    rows = [
        {"prompt": "a", "completion": text, "label": good} for text, good in (("x", True), ("x", False), ("y", True))
    ]
    report = prepared(of(lines(rows), "kto")).report
    assert "3 judged answers: 2 liked, 1 disliked" in report.lines()
    assert report.preferences is not None
    assert (report.preferences.both_ways, report.preferences.divided) == (1, 0)


def test_the_weight_of_a_file_is_that_of_its_groups(lines: Lines) -> None:
    first, second = lines([pair("a", "b", "c")], "first.jsonl"), lines([pair("d", "e", "f")], "second.jsonl")
    recipe = recipe_for(first, second, preference="dpo", weights={str(second): 0.5})
    assert [group.weight for group in prepared(recipe)] == [1, 0.5]
    assert all(span.weight == 1 for answer in examples_in(prepared(recipe)) for span in answer.spans)


def test_rows_without_a_preference_are_refused_with_their_place(lines: Lines) -> None:
    plain = {"prompt": "a", "completion": "b"}
    with pytest.raises(DataError, match=r"rows\.jsonl row 1 \(line 1\)"):
        prepared(of(lines([plain])))
    with pytest.raises(DataError, match=r"rows\.jsonl row 2 \(line 2\)"):
        prepared(of(lines([pair("a", "b", "c"), plain])))


# The hold-out


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_no_prompt_is_both_learned_and_held_out(lines: Lines, method: str) -> None:
    rows = [pair(f"question {i % 7}", f"good {i}", f"bad {i}") for i in range(30)]
    found = prepared(of(lines(rows), method))
    learned, held = hold_out(found, 0.2)

    def asked(part: Selection[Group]) -> set[tuple[int, ...]]:
        return {a.input_ids[: a.spans[0].start] for a in examples_in(part[i] for i in range(len(part)))}

    assert len(learned) + len(held) == len(found)
    assert not asked(learned) & asked(held)
    assert asked(held)


def test_a_prompt_is_one_even_if_one_answer_was_thought_over(lines: Lines) -> None:
    """A thinking model's template writes an empty thought before the other one, which belongs to its context."""
    rows = [
        {"prompt": prompt, "chosen": [{"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}],
         "rejected": [{"role": "assistant", "content": "5"}]}
        for prompt in ("a", "b")
    ]  # fmt: skip
    recipe = of(lines(rows), "kto")
    found = prepare_groups(recipe, framing(recipe.tokens, "qwen3"))
    assert (
        found[0].answers[0].input_ids[: found[0].answers[0].spans[0].start]
        != (found[1].answers[0].input_ids[: found[1].answers[0].spans[0].start])
    )
    keys = list(found.prompt_keys())
    assert keys[0] == keys[1] != keys[2] == keys[3]


# On disk


@given(groups, st.integers(1, 5))
def test_stored_groups_are_read_as_they_were(tmp_path_factory: Any, stored: list[Group], batch: int) -> None:
    folder = tmp_path_factory.mktemp("groups")
    with GroupWriter(folder) as writer:
        for start in range(0, len(stored), batch):
            writer.write([(0, i, group) for i, group in enumerate(stored[start : start + batch])])
    found = StoredGroups(folder, ["rows.jsonl"])
    assert list(found) == stored
    assert found.lengths.tolist() == [len(pack(group.answers)) for group in stored]
    assert found.supervised.tolist() == [group.supervised for group in stored]
    with pytest.raises(IndexError):
        found[len(stored)]


def test_the_digest_depends_on_groups_and_not_on_batches(tmp_path: Path) -> None:
    def digest(name: str, *batches: list[Group]) -> str:
        (tmp_path / name).mkdir()
        with GroupWriter(tmp_path / name) as writer:
            for batch in batches:
                writer.write([(0, 0, group) for group in batch])
        return StoredGroups(tmp_path / name, ["rows.jsonl"]).digest()

    answers = [Example((1, k), ()) for k in range(4)]
    first, second = Group((answers[0], answers[1]), (True, False)), Group((answers[2], answers[3]), (True, False))
    whole = digest("whole", [first, second])
    assert digest("parts", [first], [second]) == whole
    apart = [Group((answer,), (liked,)) for answer, liked in zip(answers, (True, False) * 2, strict=True)]
    assert digest("apart", apart) != whole
    assert digest("weighed", [Group(first.answers, first.liked, 0.5), second]) != whole


def test_prepared_groups_are_found_again_and_damaged_ones_are_prepared_anew(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = of(lines([pair("a", "b", "c"), pair("d", "e", "f")]))
    before = list(prepared(recipe))
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_write_groups", lambda *_: pytest.fail("prepared a second time"))
        assert list(prepared(recipe)) == before
    (folder,) = data_cache().iterdir()
    for name, size in ((GROUPS, 20), (EXAMPLES, 100)):
        (folder / name).write_bytes((folder / name).read_bytes()[:size])
        assert list(prepared(recipe)) == before


def test_other_methods_share_what_was_prepared_but_kto_does_not(lines: Lines) -> None:
    path = lines([pair("a", "b", "c")])
    names = {method: prepared(of(path, method)).fingerprint for method in ("dpo", "simpo", "kto")}
    assert names["dpo"] == names["simpo"] != names["kto"]
