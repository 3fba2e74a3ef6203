"""A server elsewhere as an engine: what is sent, what is read, and what is said when it cannot be had."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from tests.serve.asgi import ScriptedEngine, make_app
from weitune.data.calls.reader import Said
from weitune.data.conversation import Conversation, ToolCall, Turn
from weitune.errors import InputError
from weitune.generate.remote import RemoteEngine, RemoteStream
from weitune.generate.sampling import Sampling
from weitune.serve.answers.part import Part
from weitune.serve.replies.completion_json import ChatReply
from weitune.serve.requests.request import Limits, parse_request

ASKED = Conversation((Turn("user", "你是谁？"),))


class Handler(BaseHTTPRequestHandler):
    """Answers with what the test has put into ``reply``: a status and the parts of a body."""

    reply: tuple[int, list[bytes]] = (200, [])
    seen: ClassVar[list[tuple[str, dict[str, str], Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, dict(self.headers), body))
        self._answer()

    def do_GET(self) -> None:
        self.seen.append((self.path, dict(self.headers), None))
        self._answer()

    def _answer(self) -> None:
        status, parts = self.reply
        self.send_response(status)
        self.end_headers()
        for part in parts:
            self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    Handler.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def event(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


STREAM = [
    event(delta={"role": "assistant", "content": ""}), event(delta={"content": "甄"}), event(delta={"content": "嬛。"}),
    event(delta={}, finish_reason="stop"), b"data: [DONE]\n\n",
]  # fmt: skip


def test_an_answer_is_read_piece_by_piece(url: str) -> None:
    Handler.reply = (200, STREAM)
    stream = RemoteEngine(url, "zhenhuan", "sesame").stream(ASKED.with_system("S"), Sampling(max_new_tokens=9, top_k=4))
    assert list(stream) == ["甄", "嬛。"]
    assert (stream.answer.text, stream.answer.stopped) == ("甄嬛。", True)
    path, headers, body = Handler.seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer sesame"
    assert body == {
        "model": "zhenhuan", "stream": True, "max_tokens": 9, "top_k": 4, "temperature": 0.0,
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "你是谁？"}],
    }  # fmt: skip


def test_the_space_after_data_may_be_missing(url: str) -> None:
    Handler.reply = (200, [b"data:\n", *(line.replace(b"data: ", b"data:").replace(b"\n", b"\r\n") for line in STREAM)])
    stream = RemoteEngine(url, "a").stream(ASKED)
    assert ("".join(stream), stream.answer.stopped) == ("甄嬛。", True)


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_an_address_may_have_its_v1(url: str, end: str) -> None:
    Handler.reply = (200, [json.dumps({"data": [{"id": "a"}, {"id": "b"}]}).encode()])
    assert RemoteEngine(url.removeprefix("http://") + end, "a").models() == ["a", "b"]
    assert Handler.seen[0][0] == "/v1/models"
    assert "Authorization" not in Handler.seen[0][1]


def test_an_answer_that_is_closed_or_cut_is_told_as_such(url: str) -> None:
    Handler.reply = (200, [*STREAM[:3], event(delta={}, finish_reason="length")])
    engine = RemoteEngine(url, "a")
    whole = engine.stream(ASKED)
    assert "".join(whole) == "甄嬛。"
    assert not whole.answer.stopped
    closed = engine.stream(ASKED)
    next(closed)
    closed.close()
    assert list(closed) == []
    assert closed.answer.text == "甄"


@pytest.mark.parametrize(
    ("reply", "message", "fix"),
    [
        ((401, [b'{"error": {"message": "no key"}}']), r"refuses \(401\): no key", "--api-key"),
        ((429, [b'{"error": {"message": "busy"}}']), "busy", "Wait a moment"),
        ((500, [b"<html>oh</html>"]), "<html>oh</html>", "names"),
        ((502, []), "without a reason", "names"),
        ((200, [b'data: {"error": {"message": "it broke"}}\n\n']), "broke off: it broke", "again"),
        ((200, [*STREAM[:2], STREAM[2][:-9]]), "broke off: ", "again"),
        ((200, [b"data: 5\n\n"]), "broke off: ", "again"),
        ((200, STREAM[:2]), "the answer has no end", "again"),
    ],
)
def test_what_a_server_refuses_is_told(url: str, reply: tuple[int, list[bytes]], message: str, fix: str) -> None:
    Handler.reply = reply
    with pytest.raises(InputError, match=message) as error:
        list(RemoteEngine(url, "a").stream(ASKED))
    assert fix in error.value.fix


def test_something_else_than_a_server_is_told() -> None:
    with pytest.raises(InputError, match="is not the address"):
        RemoteEngine("ftp://localhost", "a")
    with pytest.raises(InputError, match="is not the address"):
        RemoteEngine("http://localhost:99999", "a")
    with pytest.raises(InputError, match="is not the address"):
        RemoteEngine("http://[::1", "a")
    with pytest.raises(InputError, match="cannot be reached"):
        RemoteEngine("http://127.0.0.1:1", "a").models()


def test_another_protocol_is_told(url: str) -> None:
    Handler.reply = (200, [b"hello"])
    with pytest.raises(InputError, match="does not speak the OpenAI protocol"):
        RemoteEngine(url, "a").models()


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("", "/v1/models"),
        ("/", "/v1/models"),
        ("/v1", "/v1/models"),
        ("/v1/", "/v1/models"),
        ("/v1/chat/completions", "/v1/models"),
        ("/chat/completions/", "/v1/models"),
        ("/v1/models", "/v1/models"),
        ("/openai", "/openai/v1/models"),
        ("/api/v3", "/api/v3/models"),
    ],
)
def test_the_address_may_end_anywhere(url: str, path: str, asked: str) -> None:
    Handler.reply = (200, [b'{"data": [{"id": "a"}]}'])
    assert RemoteEngine(url + path, "a").models() == ["a"]
    assert Handler.seen[-1][0] == asked


def test_a_path_that_is_not_there_is_named_with_a_hint(url: str) -> None:
    Handler.reply = (404, [b'{"error": {"message": "no such path"}}'])
    with pytest.raises(InputError, match=r"refuses \(404\) for /openai/v1/models: no such path") as error:
        RemoteEngine(f"{url}/openai", "a").models()
    assert f"up to the version, such as {url}/v1" in error.value.fix


def test_reasoning_is_put_in_tags_before_the_content() -> None:
    stream = RemoteStream.__new__(RemoteStream)
    stream._thinking = False
    deltas = [{"reasoning_content": "The "}, {"reasoning_content": "moon."}, {"content": "At "}, {"content": "noon."}]
    assert "".join(map(stream._text_of, deltas)) == "<think>\nThe moon.\n</think>\n\nAt noon."
    assert stream._text_of({"reasoning_content": "a", "content": "b"}) == "<think>\na\n</think>\n\nb"


TOOL = {"type": "function", "function": {"name": "tides", "parameters": {"type": "object", "properties": {}}}}
CALLED = Conversation(
    (
        Turn("system", "S"),
        Turn("user", "When is high tide?", name="Ann"),
        Turn(
            "assistant",
            "Let me look.",
            0.5,
            "Which port?",
            (ToolCall("tides", {"port": "Brest"}), ToolCall("moon", {})),
        ),
        Turn("tool", "noon", name="tides"),
        Turn("tool", "full"),
        Turn("user", "And in 圣马洛?"),
    ),
    (TOOL,),
)


def test_tools_calls_results_and_reasoning_are_sent(url: str) -> None:
    Handler.reply = (200, STREAM)
    list(RemoteEngine(url, "a").stream(CALLED))
    body = Handler.seen[0][2]
    tides = {"name": "tides", "arguments": '{"port": "Brest"}'}
    assert body["tools"] == [TOOL]
    assert body["messages"][1:5] == [
        {"role": "user", "content": "When is high tide?", "name": "Ann"},
        {
            "role": "assistant", "content": "Let me look.", "reasoning_content": "Which port?",
            "tool_calls": [
                {"id": "call00000", "type": "function", "function": tides},
                {"id": "call00001", "type": "function", "function": {"name": "moon", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "content": "noon", "name": "tides", "tool_call_id": "call00000"},
        {"role": "tool", "content": "full", "tool_call_id": "call00001"},
    ]  # fmt: skip


def test_weitunes_own_server_reads_all_that_is_sent(url: str) -> None:
    Handler.reply = (200, STREAM)
    offers = make_app(ScriptedEngine())._models
    list(RemoteEngine(url, next(iter(offers))).stream(CALLED))
    read = parse_request(Handler.seen[0][2], offers, Limits()).conversation
    assert read.tools == CALLED.tools
    assert [(turn.role, turn.content, turn.reasoning) for turn in read.turns] == [
        (turn.role, turn.content, turn.reasoning) for turn in CALLED.turns
    ]
    assert [call[:2] for call in read.turns[2].tool_calls] == [call[:2] for call in CALLED.turns[2].tool_calls]
    assert [turn.tool_call_id for turn in read.turns[3:5]] == [call.id for call in read.turns[2].tool_calls]


def test_calls_of_weitunes_own_server_are_read(url: str) -> None:
    calls = (ToolCall("tides", {"port": "圣马洛"}, "abcdefghi"), ToolCall("moon", {}, "ihgfedcba"))
    parts = [Part(Said(reasoning="Which?"), 1), Part(Said(calls=calls), 9, "tool_calls")]
    events = [event for part in parts for event in ChatReply("a").chunk(0, part)]
    Handler.reply = (200, [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events])
    stream = RemoteEngine(url, "a").stream(CALLED)
    assert "".join(stream) == "<think>\nWhich?\n</think>\n\n"
    assert (stream.answer.calls, stream.answer.stopped) == (calls, True)


def test_an_answer_whose_call_is_cut_is_empty(url: str) -> None:
    piece = {"index": 0, "id": "c", "function": {"name": "tides", "arguments": '{"port": '}}
    Handler.reply = (200, [*STREAM[:3], event(delta={"tool_calls": [piece]}), event(delta={}, finish_reason="length")])
    stream = RemoteEngine(url, "a").stream(CALLED)
    list(stream)
    assert (stream.answer.text, stream.answer.calls, stream.answer.stopped) == ("", (), False)
