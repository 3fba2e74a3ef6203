"""What answers rows: each answer is that of the conversation alone under its own seed; servers are asked as in chat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from tests.data.frame import families
from tests.generate.test_engine import conversation, tiny_engine
from tests.generate.test_remote import STREAM, Handler, event, url
from weitune.data.calls.derive import tools_for
from weitune.data.conversation import Conversation, ToolCall, Turn
from weitune.data.frame.choose import framing_for
from weitune.errors import InputError
from weitune.generate.batch.answerers import LocalAnswerer, RemoteAnswerer
from weitune.generate.engine import Engine
from weitune.generate.remote import RemoteEngine, engine_on_server
from weitune.generate.sampling import Sampling
from weitune.generate.stream import Answer
from weitune.recipe.schema import Tokens

__all__ = ["url"]  # a fixture
TOOLS = tools_for([ToolCall("tides", {"port": ""})])
ASKED = [
    conversation("hi"),
    conversation("What is the capital of France?"),
    conversation("hi"),
    conversation("你是谁？"),
]


def answers(engine: Engine, asked: list[Conversation], sampling: Sampling, seeds: list[int | None]) -> dict[int, str]:
    finished = LocalAnswerer(lambda: engine, {}, 2).finished(asked, sampling, seeds)
    return {at: "-" if answer is None else answer.text for at, answer in finished}


@pytest.mark.parametrize("family", ["qwen2", "gemma"])
def test_every_answer_is_drawn_with_its_own_seed(family: str) -> None:
    engine = tiny_engine(family)
    seeds: list[int | None] = [5, 6, 7, 8]
    alone = [
        engine.answer(each, Sampling(max_new_tokens=12, temperature=1, seed=seed)).text
        for each, seed in zip(ASKED, seeds, strict=True)
    ]
    assert alone[0] != alone[2]
    together = answers(engine, ASKED, Sampling(max_new_tokens=12, temperature=1, seed=1), seeds)
    assert [together[at] for at in range(4)] == alone


def test_models_that_transformers_decodes_draw_with_their_own_seeds_too(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(max_new_tokens=12, temperature=1)
    ours = answers(tiny_engine(), ASKED, sampling, [5, 6, 7, 8])
    monkeypatch.setattr("weitune.generate.engine.decodable_blocks", lambda model: None)
    assert answers(tiny_engine(), ASKED, sampling, [5, 6, 7, 8]) == ours


def test_a_prompt_that_leaves_no_room_gets_no_answer() -> None:
    engine = tiny_engine(max_position_embeddings=64)
    asked = [conversation("hi"), conversation("hello " * 80), conversation("x")]
    given = answers(engine, asked, Sampling(max_new_tokens=4), [None] * 3)
    assert given[1] == "-"
    assert {0, 2} == {at for at, text in given.items() if text != "-"}


class Speaking:
    """An engine that says what it is given, as the template of Qwen2.5 writes it."""

    def __init__(self, *answers: Turn) -> None:
        self.framing = framing_for(families.tokenizer_of("qwen2.5"), Tokens())
        self._answers = answers

    def fits(self, *_: Any) -> bool:
        return True

    def finished(self, prompts: list[list[int]], *_: Any, **__: Any) -> Iterator[tuple[int, Answer]]:
        for at, (prompt, turn) in enumerate(zip(prompts, self._answers, strict=True)):
            (example,) = self.framing.examples(Conversation((Turn("user", "q"), turn), TOOLS))
            tokens = list(example.input_ids[len(prompt) :])
            tokens = tokens[: tokens.index(self.framing.control_tokens["<|im_end|>"])]
            yield at, Answer(self.framing.decode(tokens), tuple(tokens), at != 2)


def test_calls_that_a_model_here_writes_are_read() -> None:
    call = ToolCall("tides", {"port": "圣马洛"})
    said = Turn("assistant", "I look."), Turn("assistant", "<tool_call> is a word."), Turn("assistant", "")
    engine = Speaking(*(turn._replace(tool_calls=() if at == 1 else (call,)) for at, turn in enumerate(said)))
    asked = [Conversation((Turn("user", "q"),), TOOLS)] * 3
    given = dict(LocalAnswerer(lambda: cast(Engine, engine), {}, 2).finished(asked, Sampling(), [None] * 3))
    first, second, cut = (given[at] for at in range(3))
    assert first is not None
    assert (first.text, first.calls) == ("I look.", (call,))
    assert second is not None
    assert (second.text, second.calls) == ("<tool_call> is a word.", ())
    assert cut is not None
    assert not cut.calls
    assert "圣马洛" in cut.text
    kept = dict(
        LocalAnswerer(lambda: cast(Engine, engine), {}, 2).finished(asked, Sampling(), [None] * 3, {"type": "object"})
    )
    assert not any(answer.calls for answer in kept.values() if answer is not None)


def test_a_server_is_asked_with_the_seed_of_each_row(url: str) -> None:
    Handler.reply = (200, STREAM)
    answerer = RemoteAnswerer(RemoteEngine(url, "m"), 2)
    given = dict(answerer.finished(ASKED, Sampling(temperature=1), [1, 2, 3, 4]))
    assert [answer.text for answer in given.values() if answer is not None] == ["甄嬛。"] * 4
    asked = {body["seed"]: body["messages"][-1]["content"] for _, _, body in Handler.seen}
    assert asked == {seed: each.turns[-1].content for seed, each in enumerate(ASKED, 1)}


def test_an_answer_that_a_server_breaks_off_is_refused(url: str) -> None:
    Handler.reply = (200, [event(delta={"content": "甄"})])
    with pytest.raises(InputError, match="the answer has no end"):
        list(RemoteAnswerer(RemoteEngine(url, "m"), 2).finished(ASKED, Sampling(), [None] * 4))


def test_the_model_of_a_server_is_its_only_one_or_must_be_named(url: str) -> None:
    Handler.reply = (200, [b'{"data": [{"id": "one"}]}'])
    assert engine_on_server(url, None).model == "one"
    with pytest.raises(InputError, match="has no model 'two'"):
        engine_on_server(url, "two")
    Handler.reply = (200, [b'{"data": [{"id": "one"}, {"id": "two"}]}'])
    assert engine_on_server(url, "two").model == "two"
    with pytest.raises(InputError, match="several models: one, two"):
        engine_on_server(url, None)
