"""Answers to the rows of a file: killed anywhere and given again, the file is the same; other settings are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from weitune.data.conversation import Conversation, ToolCall, Turn
from weitune.data.formats.parse import Options
from weitune.errors import InputError
from weitune.generate.batch.answer_file import PartialAnswers
from weitune.generate.batch.answer_rows import Outcome, Request, answer_rows, asked_rows
from weitune.generate.sampling import Sampling
from weitune.generate.stream import Answer


@dataclass
class Echo:
    """Answers with the question and the seed, the last question first; ``power`` is cut after so many answers."""

    identity: dict[str, str] = field(default_factory=lambda: {"model": "echo"})
    power: int = 1000
    asked: list[Conversation] = field(default_factory=list)

    def finished(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        seeds: Sequence[int | None],
        schema: Mapping[str, Any] | None = None,
    ) -> Iterator[tuple[int, Answer | None]]:
        for at in reversed(range(len(conversations))):
            if not self.power:
                raise KeyboardInterrupt
            self.power -= 1
            self.asked.append(conversations[at])
            question = conversations[at].turns[-1].content
            text = "" if question in ("blank", "call") else f"{question} {seeds[at]}"
            calls = (ToolCall("tides", {"port": "圣马洛"}, "c1"),) if question == "call" else ()
            yield at, None if question == "long" else Answer(text, (), question != "cut", calls)


def questions(*texts: str) -> list[Conversation]:
    return [Conversation((Turn("user", text),)) for text in texts]


def answered(
    target: Path, answerer: Echo, asked: Sequence[Conversation], request: Request, *, force: bool = False
) -> Outcome:
    return answer_rows(asked, answerer, request, target, lambda done, total: None, force=force)


SAMPLED = Request(Sampling(temperature=1, seed=10), samples=3)


def said(target: Path) -> list[str]:
    lines = target.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"][-1]["content"] for line in lines]


def test_answers_are_written_in_the_order_of_the_rows_each_with_its_seed(tmp_path: Path) -> None:
    target = tmp_path / "answers.jsonl"
    outcome = answered(target, Echo(), questions("a", "b"), SAMPLED)
    assert said(target) == ["a 10", "a 11", "a 12", "b 13", "b 14", "b 15"]
    assert outcome == Outcome(written=6, found=0, unfinished=0, blank=0, too_long=0)
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


@pytest.mark.parametrize("power", range(7))
@pytest.mark.parametrize("torn", [0, 5])
def test_a_killed_command_goes_on_where_it_stopped(power: int, torn: int, tmp_path: Path) -> None:
    whole, target = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    asked = questions("a", "b")
    answered(whole, Echo(), asked, SAMPLED)
    if power < 6:
        with pytest.raises(KeyboardInterrupt):
            answered(target, Echo(power=power), asked, SAMPLED)
        assert not target.exists()
        partial = tmp_path / ".answers.jsonl.partial"
        content = partial.read_bytes()
        partial.write_bytes(content[: len(content) - torn])
    again = Echo()
    outcome = answered(target, again, asked, SAMPLED)
    assert target.read_bytes() == whole.read_bytes()
    kept = power - (torn > 0) if power < 6 else 0
    assert outcome.found == max(0, kept)
    assert len(again.asked) == 6 - max(0, kept)


@pytest.mark.parametrize(
    ("request_", "identity", "named"),
    [
        (replace(SAMPLED, sampling=Sampling(temperature=0.5, seed=10)), "echo", "temperature: 1 there, 0.5 now"),
        (replace(SAMPLED, samples=2), "echo", "samples: 3 there, 2 now"),
        (replace(SAMPLED, system="S"), "echo", "system: None there, S now"),
        (SAMPLED, "other", "model: echo there, other now"),
        (replace(SAMPLED, schema={"enum": [1]}), "echo", 'schema: None there, {"enum": \\[1]} now'),
    ],
)
def test_answers_under_other_settings_are_refused(request_: Request, identity: str, named: str, tmp_path: Path) -> None:
    target, asked = tmp_path / "answers.jsonl", questions("a", "b")
    with pytest.raises(KeyboardInterrupt):
        answered(target, Echo(power=2), asked, SAMPLED)
    before = (tmp_path / ".answers.jsonl.partial").read_bytes()
    with pytest.raises(InputError, match=named):
        answered(target, Echo({"model": identity}), asked, request_)
    assert (tmp_path / ".answers.jsonl.partial").read_bytes() == before
    assert answered(target, Echo({"model": identity}), asked, request_, force=True).found == 0


def test_two_commands_do_not_write_the_same_answers(tmp_path: Path) -> None:
    target, asked = tmp_path / "answers.jsonl", questions("a", "b")
    with PartialAnswers(target, {}), pytest.raises(InputError, match="another process is writing the answers"):
        answered(target, Echo(), asked, SAMPLED, force=True)
    assert answered(target, Echo(), asked, SAMPLED, force=True).written == 6


def test_other_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        answered(tmp_path / "answers.jsonl", Echo(power=2), questions("a", "b"), SAMPLED)
    with pytest.raises(InputError, match="rows: "):
        answered(tmp_path / "answers.jsonl", Echo(), questions("a", "c"), SAMPLED)


def test_a_file_that_exists_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    target, answerer = tmp_path / "answers.jsonl", Echo()
    target.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="--force"):
        answered(target, answerer, questions("a"), SAMPLED)
    assert (answerer.asked, target.read_text(encoding="utf-8")) == ([], "mine")
    answered(target, answerer, questions("a"), SAMPLED, force=True)
    assert said(target) == ["a 10", "a 11", "a 12"]


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        answered(tmp_path / "nowhere" / "answers.jsonl", Echo(), questions("a"), SAMPLED)


def test_the_system_prompt_is_asked_under_and_not_written(tmp_path: Path) -> None:
    target, answerer = tmp_path / "answers.jsonl", Echo()
    own = questions("b")[0].with_system("Own")
    answered(target, answerer, [*questions("a"), own], Request(Sampling(), system="Card"))
    assert sorted(str(each.system) for each in answerer.asked) == ["Card", "Own"]
    rows = [json.loads(line)["messages"] for line in target.read_text(encoding="utf-8").splitlines()]
    assert [[message["role"] for message in row] for row in rows] == [
        ["user", "assistant"],
        ["system", "user", "assistant"],
    ]


def test_what_is_not_written_is_counted(tmp_path: Path) -> None:
    target, asked = tmp_path / "answers.jsonl", questions("a", "blank", "cut", "long")
    assert answered(target, Echo(), asked, Request(Sampling())) == Outcome(2, 0, 1, 1, 1)
    assert said(target) == ["a None", "cut None"]
    answered(target, Echo(), asked, Request(Sampling(), drop_unfinished=True), force=True)
    assert said(target) == ["a None"]
    with pytest.raises(InputError, match="nothing to write"):
        answered(tmp_path / "none.jsonl", Echo(), questions("blank"), Request(Sampling()))


def test_several_greedy_answers_would_be_the_same(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--temperature"):
        answered(tmp_path / "answers.jsonl", Echo(), questions("a"), Request(Sampling(), samples=2))


def test_reasoning_is_separated(tmp_path: Path) -> None:
    target = tmp_path / "answers.jsonl"
    answered(target, Echo(), questions("<think>\nHm.\n</think>\n\nYes."), Request(Sampling()))
    (row,) = (json.loads(line) for line in target.read_text(encoding="utf-8").splitlines())
    assert row["messages"][-1] == {"role": "assistant", "content": "Yes. None", "reasoning_content": "Hm."}


def test_answers_that_were_given_without_the_tools_of_their_rows_are_not_gone_on_with(tmp_path: Path) -> None:
    tools = ({"type": "function", "function": {"name": "tides", "parameters": {}}},)
    target, asked = tmp_path / "answers.jsonl", [replace(row, tools=tools) for row in questions("a", "b")]
    with pytest.raises(KeyboardInterrupt):
        answered(target, Echo(power=1), asked, Request(Sampling()))
    (partial,) = tmp_path.iterdir()
    header, *rest = partial.read_text(encoding="utf-8").splitlines(keepends=True)
    settings = json.loads(header)["settings"]
    del settings["tools"]  # as version 0.1 left it
    partial.write_text(json.dumps({"settings": settings}) + "\n" + "".join(rest), encoding="utf-8")
    with pytest.raises(InputError, match="other settings"):
        answered(target, Echo(), asked, Request(Sampling()))


def test_calls_are_written_and_survive_a_kill(tmp_path: Path) -> None:
    target, asked = tmp_path / "answers.jsonl", questions("a", "call")
    with pytest.raises(KeyboardInterrupt):
        answered(target, Echo(power=1), asked, Request(Sampling()))
    assert answered(target, Echo(), asked, Request(Sampling())) == Outcome(2, 1, 0, 0, 0)
    *_, row = (json.loads(line) for line in target.read_text(encoding="utf-8").splitlines())
    function = {"name": "tides", "arguments": '{"port": "圣马洛"}'}
    assert row["messages"][-1] == {
        "role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }  # fmt: skip


def test_rows_are_prompts_or_dialogues_without_their_last_answer(tmp_path: Path) -> None:
    prompts, dialogues = tmp_path / "prompts.jsonl", tmp_path / "dialogues.jsonl"
    prompts.write_text('{"prompt": "p"}\n', encoding="utf-8")
    turns = [("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "r")]
    messages = [{"role": role, "content": text} for role, text in turns]
    rows = [{"messages": messages}, {"messages": [*messages, {"role": "assistant", "content": "b"}]}]
    dialogues.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = asked_rows([str(dialogues), str(prompts)], Options())
    assert [each.turns for each in asked] == [tuple(Turn(*turn) for turn in turns)] * 2 + [(Turn("user", "p"),)]
    assert len(asked_rows(["builtin:prompts-en"], Options())) >= 300


def test_the_prompts_of_pairs_and_of_judged_answers_are_asked(tmp_path: Path) -> None:
    pairs, judged = tmp_path / "pairs.jsonl", tmp_path / "judged.jsonl"
    pairs.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n', encoding="utf-8")
    judged.write_text('{"prompt": "q", "completion": "a", "label": false}\n', encoding="utf-8")
    assert [each.turns for each in asked_rows([str(pairs), str(judged)], Options())] == [
        (Turn("user", "p"),),
        (Turn("user", "q"),),
    ]
