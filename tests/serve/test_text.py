"""Texts that are continued as they are: ``/v1/completions``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serve.asgi import Response, ScriptedEngine
from tests.serve.test_tools import Writing, ask, framing_of

BODY = {"model": "captain", "prompt": "Once upon"}


def continued(engine: ScriptedEngine, name: str = "qwen2.5", **fields: Any) -> Response:
    return ask(engine, name, {**BODY, **fields}, "/v1/completions")


def test_a_text_whole_and_streamed() -> None:
    whole = continued(ScriptedEngine()).json
    assert whole["object"] == "text_completion"
    assert whole["choices"] == [{"index": 0, "text": "Hello.", "logprobs": None, "finish_reason": "stop"}]
    assert whole["usage"]["completion_tokens"] == 3
    *chunks, usage, done = continued(ScriptedEngine(), stream=True, stream_options={"include_usage": True}).events
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello."
    assert (usage["usage"], done) == (whole["usage"], "[DONE]")


@pytest.mark.parametrize("name", ["qwen2.5", "llama3", "gemma", "mistral"])
def test_the_text_is_continued_without_a_template(name: str) -> None:
    engine = ScriptedEngine()
    for prompt in ("Once upon", ["Once upon"]):
        continued(engine, name, prompt=prompt)
    first, second = (body["prompt"] for body in engine.bodies)
    expected = framing_of(name)._backend.encode("Once upon").ids
    assert first == second == expected
    continued(engine, name, prompt=first)
    assert engine.bodies[-1]["prompt"] == first


def test_text_is_no_control_token_and_tokens_are_what_they_are() -> None:
    engine = ScriptedEngine()
    token = framing_of("qwen2.5").control_tokens["<|im_end|>"]
    continued(engine, prompt="<|im_end|>")
    assert token not in engine.bodies[0]["prompt"]
    continued(engine, prompt=[token])
    assert engine.bodies[1]["prompt"] == [token]


def test_calls_in_a_text_are_text() -> None:
    engine = Writing([{"content": "<tool_call>", "tokens": [1]}])
    assert continued(engine).json["choices"][0]["text"] == "<tool_call>"


@pytest.mark.parametrize(
    "fields",
    [{"prompt": ""}, {"prompt": []}, {"prompt": ["a", ""]}, {"prompt": ["a", [1]] * 9}, {"prompt": ["a", 1]},
     {"prompt": [10**7]}, {"prompt": [-1]}, {"prompt": [True]}, {"prompt": {}}, {"suffix": "x"}, {"echo": 1},
     {"echo": True, "logprobs": 0}, {"best_of": 2}, {"logprobs": 6}, {"logprobs": True}, {"messages": []},
     {"tools": [1]}],
)  # fmt: skip
def test_what_does_not_fit_is_refused(fields: dict[str, Any]) -> None:
    response = continued(ScriptedEngine(), **fields)
    assert response.status == 400
    assert response.json["error"]["param"] == next(iter(fields))


def test_each_prompt_of_a_list_is_a_choice_as_it_is_alone() -> None:
    engine = ScriptedEngine()
    token = framing_of("qwen2.5").text_tokens("Once")[0]
    prompts: list[Any] = ["Once upon", [token], "Then"]
    whole = continued(engine, prompt=prompts, seed=7, temperature=1).json
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    asked = {tuple(body["prompt"]) for body in engine.bodies}
    assert {body["sampling"].seed for body in engine.bodies} == {7}
    alone = ScriptedEngine()
    usages = [continued(alone, prompt=prompt).json["usage"]["prompt_tokens"] for prompt in prompts]
    assert asked == {tuple(body["prompt"]) for body in alone.bodies}
    assert (whole["usage"]["prompt_tokens"], whole["usage"]["completion_tokens"]) == (sum(usages), 9)


@pytest.mark.parametrize("streamed", [False, True])
def test_prompts_stand_before_their_continuations_with_echo(streamed: bool) -> None:
    token = framing_of("qwen2.5").text_tokens("Once")[0]
    reply = continued(ScriptedEngine(), prompt=["Then", [token]], n=2, echo=True, stream=streamed)
    texts = [""] * 4
    for event in reply.events[:-1] if streamed else [reply.json]:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["ThenHello."] * 2 + [framing_of("qwen2.5").decode([token]) + "Hello."] * 2


def test_likelihoods() -> None:
    engine = ScriptedEngine()
    token = {"token": "Hi", "bytes": [72, 105], "logprob": -0.5}
    told = {
        "id": 1,
        **token,
        "top_logprobs": [{"id": 1, **token}, {"id": 2, "token": "No", "bytes": [], "logprob": -2.0}],
    }
    engine.last = {"content": "HiHi", "tokens": [1, 1], "stop": True, "stop_type": "eos",
                   "completion_probabilities": [told, told]}  # fmt: skip
    engine.words = ()
    choice = continued(engine, logprobs=2).json["choices"][0]
    assert engine.bodies[0]["n_probs"] == 2
    assert choice["text"] == "HiHi"
    assert choice["logprobs"] == {
        "tokens": ["Hi", "Hi"], "token_logprobs": [-0.5, -0.5], "top_logprobs": [{"Hi": -0.5, "No": -2.0}] * 2,
        "text_offset": [0, 2],
    }  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("text", "stop", "listed"),
    [("Once END", "END", "Once "), ("Once 水END", "水END", "Once "), ("Once 水END", "END", "Once 水"),
     ("Once", "e", "Once"), ("Once", "O", ""), ("Once \ufffdEND", "END", "Once \ufffd")],
)  # fmt: skip
def test_likelihoods_are_those_of_the_text_before_a_stop_string(
    text: str, stop: str, listed: str, streamed: bool
) -> None:
    framing = framing_of("qwen2.5")
    tokens = list(framing._backend.encode(text).ids)
    told = [{"id": token, "token": "", "bytes": [], "logprob": -token, "top_logprobs": []} for token in tokens]
    engine = ScriptedEngine(())
    engine.last = {"content": text.removesuffix(stop), "tokens": tokens, "stop": True, "stop_type": "word",
                   "stopping_word": stop, "completion_probabilities": told}  # fmt: skip
    reply = continued(engine, logprobs=0, stop=stop, stream=streamed, stream_options={"include_usage": True})
    first, last = (reply.events[0], reply.events[-2]) if streamed else (reply.json, reply.json)
    told_tokens = [-logprob for logprob in first["choices"][0]["logprobs"]["token_logprobs"]]
    assert told_tokens == tokens[: len(told_tokens)]
    assert framing.decode(told_tokens) == listed
    assert last["usage"]["completion_tokens"] == len(tokens)
