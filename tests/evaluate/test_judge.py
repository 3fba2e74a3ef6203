"""A judge that favours a place decides nothing, and the interval is Wilson's."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from weitune.errors import InputError
from weitune.evaluate.judge import ask_endpoint, compare_pair, win_rate


def prefers(word: str):  # type: ignore[no-untyped-def]
    """A judge that likes answers with ``word`` in them."""

    def ask(message: str) -> str:
        a = message.split("[answer A]\n")[1].split("\n\n[answer B]", maxsplit=1)[0]
        return "A" if word in a else "The better one is B."

    return ask


def test_the_better_answer_wins_in_both_orders() -> None:
    assert compare_pair(prefers("good"), "q", None, "a good one", "a poor one") == "tuned"
    assert compare_pair(prefers("good"), "q", "r", "a poor one", "a good one") == "base"


@pytest.mark.parametrize("reply", ["A", "B", "TIE", "", "I cannot say"])
def test_a_judge_with_a_fixed_reply_decides_nothing(reply: str) -> None:
    assert compare_pair(lambda message: reply, "q", None, "x", "y") == "tie"


def test_the_interval_is_wilsons() -> None:
    """Values from the closed form for 8 of 10, worked out apart."""
    found = win_rate(["tuned"] * 8 + ["base"] * 2)
    assert (found.pairs, found.wins, found.losses, found.rate) == (10, 8, 2, 0.8)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert win_rate(["tie"] * 4).rate == 0.5
    sure = win_rate(["tuned"] * 20)
    assert 0.8 < sure.low < sure.high <= 1
    with pytest.raises(ValueError, match="no verdicts"):
        win_rate([])


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[dict[str, object]]]]:
    seen: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            reply = json.dumps({"choices": [{"message": {"content": "A"}}]}).encode()
            self.send_response(200 if body["model"] == "m" else 404)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", seen
    server.shutdown()


def test_the_endpoint_is_asked_as_openai_s(endpoint: tuple[str, list[dict[str, object]]]) -> None:
    url, seen = endpoint
    assert ask_endpoint(url + "/", "m", "secret")("Which?") == "A"
    assert seen[0]["path"] == "/v1/chat/completions"
    assert seen[0]["key"] == "Bearer secret"
    assert seen[0]["messages"] == [{"role": "user", "content": "Which?"}]
    with pytest.raises(InputError, match="gave no usable answer"):
        ask_endpoint(url, "another", None)("Which?")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:8000", "http://127.0.0.1:9/v1"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InputError):
        ask_endpoint(url, "m", None)("Which?")
