"""The server as its clients meet it: the unmodified ``openai`` package, and connections that mean no good."""

from __future__ import annotations

import asyncio
import http.client
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from tests.limits import HANG_SECONDS
from tests.serve.asgi import Client
from tests.serve.live import Live, live, llama_models, silent, two_runs
from weitune import Run
from weitune.export.llama_models import LlamaModels
from weitune.generate.llama_cpp import LlamaCpp
from weitune.generate.sampling import Sampling
from weitune.serve import http as http_module
from weitune.serve import unread
from weitune.serve.admission import Admission
from weitune.serve.answers.answering import Answering
from weitune.serve.guard import Guard
from weitune.serve.local import Capacity, application
from weitune.serve.requests.request import Limits
from weitune.serve.requests.text import parse_text_request

pytest.importorskip("xllamacpp")
openai = pytest.importorskip("openai")

QUESTION = "你是谁？"
ASK = [{"role": "user", "content": QUESTION}]
LENGTH = 24
LIMITS = Limits(max_tokens=1000, choices=2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return two_runs(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def models(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModels]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with llama_models(runs, "F32", silent) as models:
            yield models


@pytest.fixture(scope="module")
def server(models: LlamaModels) -> Iterator[Live]:
    with live(models, capacity=Capacity(slots=3, queue=32, threads=1), limits=LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Live) -> Any:
    return client_of(server)


def client_of(server: Live, key: str = "none") -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=HANG_SECONDS)


def said(client: Any, model: str = "first", messages: Any = ASK, **options: Any) -> str:
    reply = client.chat.completions.create(model=model, messages=messages, **{"max_tokens": LENGTH, **options})
    return str(reply.choices[0].message.content)


def endless(models: LlamaModels) -> dict[str, Any]:
    """Return options of an answer that does not end before 900 tokens."""
    stops = models.by_name["first"].stop_tokens
    return {"max_tokens": 900, "logit_bias": {str(token): -100 for token in stops}}


def test_answers_are_those_of_chat(client: Any, runs: dict[str, Run]) -> None:
    answers = {name: said(client, name) for name in ("first", "second", "base")}
    assert answers["first"] == runs["first"].chat(QUESTION, max_new_tokens=LENGTH)
    assert answers["second"] == runs["second"].chat(QUESTION, max_new_tokens=LENGTH)
    assert answers["base"] == runs["first"].chat(QUESTION, system="", checkpoint="base", max_new_tokens=LENGTH)
    assert len(set(answers.values())) == 3


def test_a_dialogue_and_a_system_prompt_of_ones_own(client: Any, runs: dict[str, Run]) -> None:
    history = [*ASK, {"role": "assistant", "content": "我家住在河边。"}]
    messages = [{"role": "system", "content": "Be kind."}, *history, {"role": "user", "content": "And I?"}]
    expected = runs["first"].chat("And I?", history=history, system="Be kind.", max_new_tokens=LENGTH)
    assert said(client, messages=messages) == expected


def test_two_adapters_and_the_base_at_once(client: Any) -> None:
    names = ["first", "second", "base"]
    alone = {name: said(client, name) for name in names}
    with ThreadPoolExecutor(9) as clients:
        together = list(clients.map(lambda name: (name, said(client, name)), names * 3))
    assert all(answer == alone[name] for name, answer in together)


def test_no_adapter_goes_on_from_what_another_has_read(models: LlamaModels) -> None:
    """llama.cpp keeps prompts that lost their slot to a longer answer by their tokens, whichever adapter read them."""
    prompts = [[*range(10, 30), *range(30 + 10 * n, 40 + 10 * n)] for n in range(3)]

    def likely(llama: LlamaCpp, adapter: int, prompt: list[int], *, cached: bool) -> list[float]:
        body = llama.body(prompt, Sampling(max_new_tokens=60), adapter)
        answer = llama.request("/completion", {**body, "cache_prompt": cached, "n_probs": 1, "ignore_eos": True})
        return [token["logprob"] for token in answer["completion_probabilities"][:20]]

    with LlamaCpp(models.base, models.adapters, slots=2, exact=True) as llama:
        found, alone = (
            np.array([[likely(llama, adapter, prompt, cached=cached) for prompt in prompts] for adapter in (0, 1)])
            for cached in (True, False)
        )
    assert np.abs(alone[0] - alone[1]).max() > 0.01
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-3)


def test_a_stream_says_the_same(client: Any) -> None:
    stream = client.chat.completions.create(
        model="first", messages=ASK, max_tokens=LENGTH, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = client.chat.completions.create(model="first", messages=ASK, max_tokens=LENGTH)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 4
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"


def test_stop_ends_an_answer_before_it(client: Any) -> None:
    answer = said(client)
    stop = re.findall(r"\w{2,}", answer)[-1]  # no half character, which no text can name
    reply = client.chat.completions.create(model="first", messages=ASK, max_tokens=LENGTH, stop=stop)
    assert reply.choices[0].message.content == answer[: answer.index(stop)].rstrip("\ufffd") != ""
    assert reply.choices[0].finish_reason == "stop"
    told = client.chat.completions.create(model="first", messages=ASK, max_tokens=LENGTH, stop=stop, logprobs=True)
    assert told.choices[0].message.content == reply.choices[0].message.content
    text = b"".join(bytes(token.bytes) for token in told.choices[0].logprobs.content).decode(errors="ignore")
    said_only = told.choices[0].message.content.replace("\ufffd", "")
    assert text.startswith(said_only)
    assert stop not in text


def test_the_beginning_of_a_stop_string_stays(client: Any) -> None:
    answer = said(client)
    reply = client.chat.completions.create(model="first", messages=ASK, max_tokens=LENGTH, stop=answer[-1] + "\x00")
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (answer, "length")


def test_max_tokens_cuts(client: Any) -> None:
    reply = client.chat.completions.create(model="first", messages=ASK, max_tokens=3)
    assert (reply.choices[0].finish_reason, reply.usage.completion_tokens) == ("length", 3)
    with pytest.raises(openai.BadRequestError, match="max_tokens must be at most 1000"):
        said(client, max_tokens=1001)


def test_logprobs_are_the_models_own(client: Any) -> None:
    options = {"model": "first", "messages": ASK, "max_tokens": LENGTH, "logprobs": True, "top_logprobs": 3}
    reply = client.chat.completions.create(**options)
    tokens = reply.choices[0].logprobs.content
    assert reply.choices[0].message.content == said(client)
    assert len(tokens) == reply.usage.completion_tokens == LENGTH
    text = b"".join(bytes(token.bytes) for token in tokens).decode(errors="ignore")
    assert text == reply.choices[0].message.content.replace("\ufffd", "")
    for token in tokens:  # greedy: each is the likeliest
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob <= 0
        assert token.bytes == token.top_logprobs[0].bytes
    hot = client.chat.completions.create(**options, temperature=2, seed=1, extra_body={"min_p": 1.0})
    assert hot.choices[0].message.content == reply.choices[0].message.content
    streamed = [chunk.choices[0] for chunk in client.chat.completions.create(**options, stream=True)]
    assert [token for choice in streamed if choice.logprobs for token in choice.logprobs.content] == tokens
    assert (
        client.chat.completions.create(**{**options, "top_logprobs": 0}).choices[0].logprobs.content[0].top_logprobs
        == []
    )


@pytest.mark.parametrize(("frequency", "presence"), [(1.5, 0), (-1, 0), (0.5, 1)])
def test_penalties_are_those_of_the_protocol(frequency: float, presence: float, models: LlamaModels) -> None:
    """Each token is the likeliest after what its earlier occurrences in the answer alone take from it."""
    prompt = [token for token in range(10, 480) for _ in range(token % 3)]
    length, punished = 12, {"frequency_penalty": frequency, "presence_penalty": presence}
    fields = {"model": "base", "prompt": prompt, "max_tokens": length, **punished}
    [request], _ = parse_text_request(fields, models.by_name, LIMITS)
    with LlamaCpp(models.base, models.adapters, exact=True) as llama:
        answering = Answering(llama, Admission(1, 1))
        body = answering._body(answering.frame(request), 0)
        tokens = llama.request("/completion", {**body, "stream": False})["tokens"]
        for at, token in enumerate(tokens):
            said = Counter(tokens[:at])
            bias = [[old, -frequency * said[old] - presence * (old not in prompt)] for old in said]
            again = {**llama.body([*prompt, *tokens[:at]], Sampling(max_new_tokens=1)), "logit_bias": bias}
            assert llama.request("/completion", {**again, "stream": False})["tokens"] == [token]
    assert len(tokens) == length


def test_a_text_is_continued(client: Any) -> None:
    options = {"model": "first", "prompt": "I live by the river", "max_tokens": LENGTH}
    whole = client.completions.create(**options, logprobs=2)
    assert len(whole.choices[0].logprobs.tokens) == whole.usage.completion_tokens == LENGTH
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**options, stream=True))
    assert streamed == whole.choices[0].text != ""
    base = client.completions.create(**{**options, "model": "base"})
    assert base.choices[0].text != streamed


def test_the_application_answers_where_it_is_mounted(runs: dict[str, Run], client: Any) -> None:
    async def go() -> None:
        capacity, guard = Capacity(slots=1, threads=1), Guard(hosts=frozenset({"chat.example.org"}))
        with application({"first": runs["first"]}, "F32", capacity=capacity, guard=guard) as app:

            async def mounting(scope: Any, receive: Any, send: Any) -> None:
                assert scope["path"].startswith("/llm/")
                await app({**scope, "root_path": "/llm"}, receive, send)

            mounted = Client(mounting)  # type: ignore[arg-type]
            models = (await mounted.send("GET", "/llm/v1/models")).json
            assert [model["id"] for model in models["data"]] == ["base", "first"]
            body = {"model": "first", "messages": ASK, "max_tokens": LENGTH}
            answer = (await mounted.send("POST", "/llm/v1/chat/completions", body)).json
            assert answer["choices"][0]["message"]["content"] == said(client)
            assert (await mounted.send("GET", "/llm/nothing")).status == 404
            for host, status in {"evil.example": 403, "chat.example.org": 200, "chat.example.org:443": 200}.items():
                assert (await mounted.send("GET", "/llm/v1/models", host=host)).status == status

    asyncio.run(go())


def test_control_tokens_reach_the_reader(client: Any, models: LlamaModels) -> None:
    """llama.cpp leaves control tokens out of its text unless it is told to keep them."""
    framing = models.by_name["first"].framing
    token = next(token for token in framing.control_ids if token not in models.by_name["first"].stop_tokens)
    assert said(client, max_tokens=3, logit_bias={str(token): 100}) == ""
    with LlamaCpp(models.base, (), exact=True) as llama:
        text = next(text for text, id_ in framing.control_tokens.items() if id_ == token)
        body = llama.body([5, 6, 7], Sampling(max_new_tokens=3))
        body |= {"logit_bias": [[token, 100]], "preserved_tokens": [text]}
        chunks = [chunk for chunk in llama.complete(body) if chunk["tokens"]]
    assert [(chunk["content"], chunk["tokens"]) for chunk in chunks] == [(text, [token])] * 3


def test_the_same_seed_says_the_same(client: Any) -> None:
    options = {"temperature": 1.5, "seed": 5}
    assert said(client, **options) == said(client, **options)
    assert len({said(client, temperature=1.5, seed=seed) for seed in range(4)}) > 1
    reply = client.chat.completions.create(model="first", messages=ASK, max_tokens=LENGTH, n=2, **options)
    for seed in (-1, 2**32 - 1, -(2**32)):  # of 64 bits, though the engine's have 32 and one of them means none
        assert said(client, temperature=1.5, seed=seed) == said(client, temperature=1.5, seed=seed)
    first, second = (choice.message.content for choice in reply.choices)
    assert first == said(client, **options) != second


def test_refusals_are_the_clients_own_exceptions(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["base", "first", "second"]
    with pytest.raises(openai.NotFoundError, match="there are: base, first, second"):
        said(client, "gpt-4")
    with pytest.raises(openai.BadRequestError, match="unknown parameter 'temprature'"):
        said(client, extra_body={"temprature": 1})
    with pytest.raises(openai.BadRequestError, match="this server takes 1024") as error:
        said(client, messages=[{"role": "user", "content": "house " * 2000}])
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="cannot call tools: its chat template does not write calls"):
        said(client, tools=[{"type": "function", "function": {"name": "f"}}])


ROUTES = [("GET", "/health"), ("GET", "/v1/models"), ("GET", "/v1/models/base"), ("GET", "/metrics"),
          ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/responses"),
          ("GET", "/nowhere")]  # fmt: skip


def test_a_key_closes_every_route(models: LlamaModels) -> None:
    with live(models, guard=Guard(key="sesame")) as server:
        body = {"model": "first", "messages": ASK, "max_tokens": 2}
        for method, path in ROUTES:
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                assert server.request(method, path, body, headers)[0] == 401
        with pytest.raises(openai.AuthenticationError):
            said(client_of(server, "wrong"))
        assert said(client_of(server, "sesame"))


def test_names_and_pages_of_others_are_refused(server: Live) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        for method, path in ROUTES:
            assert server.request(method, path, {}, headers)[0] == 403
    assert server.request("GET", "/health")[0] == 200


LONG_LIST = {"type": "array", "items": {"type": "integer"}, "minItems": 800}
LONG: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": ASK}),
    "text": ("/v1/completions", {"prompt": "Once"}),
    "responses": ("/v1/responses", {"input": "Once", "max_output_tokens": 900}),
    "logprobs": ("/v1/chat/completions", {"messages": ASK, "logprobs": True, "top_logprobs": 2}),
    "text with logprobs": ("/v1/completions", {"prompt": "Once", "logprobs": 2}),
    "schema": (
        "/v1/chat/completions",
        {
            "messages": ASK,
            "response_format": {"type": "json_schema", "json_schema": {"name": "long", "schema": LONG_LIST}},
        },
    ),
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", LONG)
def test_clients_that_vanish_free_their_slots(kind: str, stream: bool, models: LlamaModels, server: Live) -> None:
    path, body = LONG[kind]
    if kind == "schema":
        pytest.importorskip("llguidance")
    options = {} if path == "/v1/responses" else endless(models)  # it knows no logit_bias
    server.abandon(path, {"model": "first", "stream": stream, **body, **options}, clients=6, running=3)


def test_beyond_the_queue_clients_are_told_to_come_back(models: LlamaModels) -> None:
    with live(models, capacity=Capacity(slots=1, queue=1, threads=1), limits=LIMITS) as server:
        client = client_of(server)
        options = {"model": "first", "messages": ASK, "stream": True, **endless(models)}
        held = client.chat.completions.create(**options)
        next(iter(held))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(lambda: next(iter(client.chat.completions.create(**options))))
            server.wait_for("weitune_waiting", 1)
            with pytest.raises(openai.RateLimitError) as refused:
                said(client)
            assert refused.value.response.headers["retry-after"] == "1"
            held.close()
            assert waiting.result(60)
        assert said(client)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_bodies_that_are_too_large_or_no_json_change_nothing(path: str, server: Live) -> None:
    assert server.request("POST", path, b"x" * (4 << 20) + b"x")[0] == 413
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b'{"model": "first", "messages": ' + b"[" * 9000):
        assert server.request("POST", path, body)[0] == 400
    assert server.request("GET", "/health")[0] == 200


@pytest.mark.parametrize(
    ("line", "headers", "status"),
    [("POST /nowhere", "Content-Length: 9", 404), ("GET /health", "Content-Length: 9", 200),
     ("POST /v1/completions", "Content-Length: 9\r\nOrigin: https://evil.example", 403),
     ("POST /v1/completions", "Content-Length: 99999999", 413), ("PUT /health", "Transfer-Encoding: chunked", 405)],
)  # fmt: skip
def test_a_connection_whose_body_is_not_read_is_closed(
    line: str, headers: str, status: int, server: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread, "_SECONDS", 0.2)
    with server.connect() as connection:
        connection.settimeout(HANG_SECONDS)
        connection.sendall(f"{line} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\nx".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close\r\n" in answer.lower()


def test_a_connection_whose_body_is_read_stays_open(server: Live) -> None:
    connection = http.client.HTTPConnection(*server.address, timeout=HANG_SECONDS)
    for method, path, body, status in (("POST", "/v1/completions", "{", 400), ("GET", "/nowhere", None, 404)) * 2:
        connection.request(method, path, body)
        response = connection.getresponse()
        response.read()
        assert (response.status, response.headers["connection"]) == (status, None)
    connection.close()


def drip(connection: socket.socket, count: int) -> None:
    """Send one byte after the other."""
    for _ in range(count):
        connection.send(b"x")
        time.sleep(0.02)


def test_a_header_that_does_not_end_is_given_up(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "_HEADER_SECONDS", 0.3)
    for sent in (b"", b"GET /health HTTP/1.1\r\nHost: localh"):
        with server.connect() as connection:
            connection.sendall(sent)
            connection.settimeout(HANG_SECONDS)
            assert connection.recv(100) == b""
    with server.connect() as connection:  # one byte at a time gains nothing
        connection.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        with pytest.raises(OSError):  # noqa: PT011  (the connection is closed; how that shows depends on the system)
            drip(connection, 20_000)  # far longer than the limit above, and too short to be refused for its length


def test_a_header_that_is_too_long_is_refused(server: Live) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * (64 << 10))
        with suppress(ConnectionResetError):
            assert connection.recv(100).startswith(b"HTTP/1.1 4")
    assert server.request("GET", "/health")[0] == 200
