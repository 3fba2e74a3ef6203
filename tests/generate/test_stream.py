"""Tokens cross threads; exceptions do too; and a reader that leaves ends generation."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from tests.limits import HANG_SECONDS
from tests.tiny import tiny_tokenizer
from weitune.generate.detokenize import Detokenizer
from weitune.generate.stream import AnswerStream

TOKENIZER = tiny_tokenizer("chatml")
STOP = TOKENIZER.eos_token_id
HELLO = TOKENIZER("Thank you for the answer")["input_ids"]


def stream_of(start: Any) -> AnswerStream:
    return AnswerStream(start, Detokenizer(TOKENIZER), frozenset([STOP]))


def script(tokens: list[int]) -> Any:
    """Return a generation that reports a prompt and then ``tokens``, as transformers does."""

    def start(queue: Any, cancelled: Any) -> None:
        queue.put(torch.tensor([[1, 2, 3]]))
        for token in tokens:
            queue.put(torch.tensor([token]))
        queue.end()

    return start


def endless(reported: list[int]) -> Any:
    """Return a generation that goes on until it is cancelled."""

    def start(queue: Any, cancelled: Any) -> None:
        ids = torch.tensor([[1]])
        queue.put(ids)
        while not cancelled(ids, None).all():
            reported.append(1)
            queue.put(torch.tensor([HELLO[0]]))
            time.sleep(0.001)

    return start


def generating() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "generate"]


def test_neither_the_prompt_nor_the_stop_token_is_part_of_the_answer() -> None:
    stream = stream_of(script([*HELLO, STOP]))
    assert "".join(stream) == "Thank you for the answer"
    assert stream.answer.text == "Thank you for the answer"
    assert stream.answer.tokens == tuple(HELLO)
    assert stream.answer.stopped


def test_an_answer_without_stop_token_was_cut() -> None:
    stream = stream_of(script(HELLO))
    assert "".join(stream) == "Thank you for the answer"
    assert not stream.answer.stopped


def test_no_piece_is_empty() -> None:
    ids = TOKENIZER("甄嬛😀")["input_ids"]
    assert list(stream_of(script(ids))) == ["甄", "嬛", "😀"]


def test_an_exception_in_the_generating_thread_is_raised_in_the_reader() -> None:
    def start(queue: Any, cancelled: Any) -> None:
        script(HELLO[:2])(queue, cancelled)
        raise MemoryError("no room for one more token")

    stream = stream_of(start)
    heard = []
    with pytest.raises(MemoryError, match="one more token"):
        heard.extend(stream)
    assert stream.answer.tokens == tuple(HELLO[:2])
    assert generating() == []


def test_nothing_is_generated_before_the_first_piece_is_asked_for() -> None:
    reported: list[int] = []
    stream = stream_of(endless(reported))
    stream.close()
    assert reported == []
    assert generating() == []


@pytest.mark.parametrize("leave", ["close", "drop", "exception"])
def test_generation_ends_when_the_reader_goes_away(leave: str) -> None:
    reported: list[int] = []
    stream = stream_of(endless(reported))
    next(stream)
    assert len(generating()) == 1
    if leave == "exception":
        with pytest.raises(KeyboardInterrupt):
            stream._pieces.throw(KeyboardInterrupt())
    elif leave == "close":
        stream.close()
    del stream
    assert generating() == []
    count = len(reported)
    time.sleep(0.02)
    assert len(reported) == count


def test_a_reader_sees_each_piece_before_the_answer_is_whole() -> None:
    heard = threading.Event()

    def start(queue: Any, cancelled: Any) -> None:
        queue.put(torch.tensor([[1]]))
        queue.put(torch.tensor([HELLO[0]]))
        assert heard.wait(HANG_SECONDS), "the first piece was held back until the end"

    stream = stream_of(start)
    assert next(stream) == "Th"
    heard.set()
    assert list(stream) == []
