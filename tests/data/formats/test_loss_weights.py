"""The loss weight of a message, under every key that tools write."""

from __future__ import annotations

from typing import Any

import pytest

from tests.data.read.reading_rows import ASKED, assistant, fault, faults, messages, read, turns, unread, user


def weight(**keys: Any) -> float:
    return turns(user(), assistant(**keys))[1].weight


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, 1.0),
        ({"weight": 0}, 0.0),
        ({"weight": 0.25}, 0.25),
        ({"weight": True}, 1.0),
        ({"loss_weight": 2}, 2.0),
        ({"loss": False}, 0.0),
        ({"loss": True}, 1.0),
        ({"train": False}, 0.0),
        ({"train": 0}, 0.0),
        ({"train": 1}, 1.0),
        ({"loss": 1.0}, 1.0),
        ({"train": None, "weight": None}, 1.0),
        ({"train": True, "weight": 0.5}, 0.5),
        ({"loss": False, "train": False, "weight": 0}, 0.0),
        ({"weight": 1, "loss_weight": 1.0}, 1.0),
    ],
)
def test_weights(keys: dict[str, Any], expected: float) -> None:
    assert weight(**keys) == expected
    speech = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", **keys}]}
    assert read(speech).turns[1].weight == expected
    assert unread(messages(user(), assistant(**keys))) == {}


@pytest.mark.parametrize(
    "keys",
    [
        {"weight": 0, "train": True},
        {"weight": 0.5, "loss": False},
        {"loss": True, "train": False},
        {"weight": 1, "loss_weight": 0.5},
        {"weight": 1, "loss_weight": 0},
    ],
)
def test_keys_that_disagree(keys: dict[str, Any]) -> None:
    problem = fault(messages(user(), assistant(**keys)))
    assert problem.kind == "two weights"
    assert problem.field == f"messages[1].{next(iter(keys))}"
    assert all(f"`{key}`" in problem.found for key in keys)
    speech = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", **keys}]}
    assert fault(speech).kind == "two weights"


@pytest.mark.parametrize("key", ["loss", "train"])
@pytest.mark.parametrize("value", ["false", "true", "0", "", 2, 0.5, -1, [], float("nan"), 10**400])
def test_flags_are_booleans(key: str, value: Any) -> None:
    problem = fault(messages(user(), assistant(**{key: value})))
    assert (problem.kind, problem.field) == ("wrong weight", f"messages[1].{key}")
    assert problem.expected == "true or false"


@pytest.mark.parametrize("value", ["1", "false", -0.1, float("inf"), float("nan"), [1], 10**400])
def test_weights_must_be_numbers(value: Any) -> None:
    for key in ("weight", "loss_weight"):
        problem = fault(messages(user(), assistant(**{key: value})))
        assert (problem.kind, problem.expected) == ("wrong weight", "a number of at least 0")


def test_only_answers_are_learned() -> None:
    others = [user(train=True), user(loss=1), user(weight=0.5), user(train=False), user(loss_weight=0)]
    row = messages({"role": "system", "content": "s", "train": True}, *others, assistant(train=True))
    assert unread(row) == {
        "messages[].train (system)": 1,
        "messages[].train (user)": 1,
        "messages[].loss (user)": 1,
        "messages[].weight (user)": 1,
    }
    assert [problem.field for problem in faults(messages(user(train="true"), assistant()))] == ["messages[0].train"]


def test_weights_of_parts_of_a_message_are_refused() -> None:
    detail = [{"begin_offset": 0, "end_offset": 8, "train": False}]
    problem = fault(messages(user(), assistant(train_detail=detail)))
    assert problem.field == "messages[1].train_detail"
    assert weight(train_detail=[]) == 1.0
    assert turns(user(train_detail=detail), assistant())[0] == ASKED


def test_pairs_of_xtuner() -> None:
    pair = {"input": "q", "output": "a"}
    assert read({"conversation": [{**pair, "output_with_loss": False}, pair]}).turns[1].weight == 0.0
    assert read({"conversation": [{**pair, "output_with_loss": True}]}).turns[1].weight == 1.0
    assert fault({"conversation": [{**pair, "output_with_loss": "false"}]}).kind == "wrong weight"
