"""Web pages of other sites: what a browser is told, on every kind of answer, and who is told nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.serve.asgi import ASK, Client, Response, ScriptedEngine, make_app
from weitune import cli
from weitune.errors import InputError
from weitune.serve import app as app_module
from weitune.serve.app import App
from weitune.serve.guard import Guard, host_name
from weitune.serve.origins import read_origins

SITE, OTHER = "https://chat.example.org", "https://evil.example"
ALLOWED = frozenset({SITE, "http://localhost:3000"})
CHAT = "/v1/chat/completions"


def send(method: str, path: str, body: Any = None, app: App | None = None, **headers: str) -> Response:
    app = app or make_app(ScriptedEngine(), guard=Guard(key="sesame", origins=ALLOWED))
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(Client(app).send(method, path, body, named))


def preflight(origin: str = SITE, path: str = CHAT, app: App | None = None, **headers: str) -> Response:
    return send("OPTIONS", path, app=app, origin=origin, access_control_request_method="POST", **headers)


def cors(response: Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


@pytest.mark.parametrize("origin", sorted(ALLOWED))
def test_a_preflight_is_answered_before_the_key_is_asked_for(origin: str) -> None:
    response = preflight(origin, access_control_request_headers="content-type,authorization")
    assert response.status == 204
    assert response.body == b""
    assert response.headers["vary"] == "Origin"
    assert cors(response) == {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": "authorization, content-type",
        "access-control-expose-headers": "Retry-After",
        "access-control-max-age": "600",
    }


def test_headers_of_known_clients_are_allowed_and_no_others() -> None:
    asked = "Authorization, X-Stainless-OS,x-stainless-retry-count , openai-beta, cookie, x-evil, a b, \r\nx: y"
    allowed = cors(preflight(access_control_request_headers=asked))["access-control-allow-headers"]
    assert allowed == "authorization, content-type, x-stainless-os, x-stainless-retry-count, openai-beta"


def test_private_networks_are_allowed_where_they_are_asked_for() -> None:
    name = "access-control-allow-private-network"
    assert cors(preflight(access_control_request_private_network="true"))[name] == "true"
    assert name not in cors(preflight())
    assert name not in cors(preflight(access_control_request_private_network="maybe"))


def test_a_path_that_is_not_there_is_said_after_the_preflight() -> None:
    assert preflight(path="/chat/completions").status == 204


@pytest.mark.parametrize(
    ("status", "method", "path", "body", "headers"),
    [
        (200, "POST", CHAT, ASK, {}),
        (200, "POST", CHAT, {**ASK, "stream": True}, {}),
        (200, "GET", "/v1/models", None, {}),
        (400, "POST", CHAT, b"{", {}),
        (401, "POST", CHAT, ASK, {"authorization": "Bearer wrong"}),
        (404, "GET", "/nothing", None, {}),
        (404, "POST", CHAT, {**ASK, "model": "nobody"}, {}),
        (405, "DELETE", CHAT, None, {}),
        (413, "POST", CHAT, ASK, {"content-length": "99999999"}),
    ],
)
def test_every_answer_to_an_allowed_site_can_be_read_there(
    status: int, method: str, path: str, body: Any, headers: dict[str, str]
) -> None:
    given = {"authorization": "Bearer sesame", "origin": SITE, **headers}
    response = send(method, path, body, **given)
    assert response.status == status
    assert cors(response)["access-control-allow-origin"] == SITE
    assert response.headers["vary"] == "Origin"


def test_429_and_500_can_be_read_there_too(caplog: pytest.LogCaptureFixture) -> None:
    full = make_app(ScriptedEngine(), slots=1, queue=0, guard=Guard(origins=ALLOWED))
    with full._answering.admission.admitted(1):
        response = send("POST", CHAT, ASK, app=full, origin=SITE)
    assert response.status == 429
    assert cors(response)["access-control-allow-origin"] == SITE
    assert "Retry-After" in cors(response)["access-control-expose-headers"]
    assert response.headers["retry-after"] == "1"

    class Broken(ScriptedEngine):
        def complete(self, body: Any) -> Any:
            raise ZeroDivisionError

    response = send("POST", CHAT, ASK, app=make_app(Broken(), guard=Guard(origins=ALLOWED)), origin=SITE)
    assert response.status == 500
    assert response.json["error"]["type"] == "server_error"
    assert cors(response)["access-control-allow-origin"] == SITE
    assert "ZeroDivisionError" in caplog.text


def test_503_can_be_read_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "_EXTRA_REQUESTS", -3)
    app = make_app(ScriptedEngine(), slots=1, queue=1, guard=Guard(origins=ALLOWED))
    for _ in range(2):
        response = send("GET", "/health", app=app, origin=SITE)
        assert response.status == 503
        assert response.json["error"]["code"] == "overloaded"
        assert cors(response)["access-control-allow-origin"] == SITE
    monkeypatch.setattr(app_module, "_EXTRA_REQUESTS", 0)
    assert send("GET", "/health", app=app, origin=SITE).status == 200


@pytest.mark.parametrize(
    "origin", [OTHER, "null", "https://chat.example.org:444", "http://chat.example.org", SITE.upper()]
)
def test_other_sites_are_refused_and_told_nothing(origin: str) -> None:
    for response in (preflight(origin), send("POST", CHAT, ASK, origin=origin, authorization="Bearer sesame")):
        assert response.status == 403
        assert response.json["error"]["code"] == "origin_not_allowed"
        assert not cors(response)
        assert response.headers["vary"] == "Origin"


def test_without_allowed_sites_there_are_no_such_headers() -> None:
    plain = make_app(ScriptedEngine())
    response = send("POST", CHAT, ASK, app=plain)
    assert response.status == 200
    assert "vary" not in response.headers
    assert not cors(response)
    same_site = send("POST", CHAT, ASK, app=plain, origin="http://localhost")
    assert same_site.status == 200
    assert preflight(app=plain).status == 403


def test_a_wrong_host_is_refused_before_all_else() -> None:
    app = make_app(ScriptedEngine(), guard=Guard(origins=ALLOWED))
    headers = {"origin": SITE, "access-control-request-method": "POST"}
    response = asyncio.run(Client(app).send("OPTIONS", CHAT, None, headers, host="evil.example"))
    assert response.status == 403


def test_options_that_is_no_preflight_needs_the_key() -> None:
    assert send("OPTIONS", CHAT, origin=SITE).status == 401
    assert send("OPTIONS", CHAT, origin=SITE, authorization="Bearer sesame").status == 405


def test_a_star_allows_every_site_by_its_name() -> None:
    app = make_app(ScriptedEngine(), guard=Guard(key="sesame", origins=frozenset({"*"})))
    for origin in (SITE, OTHER, "null"):
        assert cors(preflight(origin, app=app))["access-control-allow-origin"] == origin
    assert send("POST", CHAT, ASK, app=app, origin=OTHER).status == 401


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("https://chat.example.org", "https://chat.example.org"),
        ("HTTPS://Chat.Example.ORG/", "https://chat.example.org"),
        ("https://chat.example.org:443", "https://chat.example.org"),
        ("http://chat.example.org:80/", "http://chat.example.org"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("chrome-extension://abcdefgh", "chrome-extension://abcdefgh"),
        ("null", "null"),
        ("*", "*"),
    ],
)
def test_origins_are_read_as_browsers_write_them(given: str, read: str) -> None:
    assert read_origins([given]) == {read}


NO_ORIGINS = [
    "", "chat.example.org", "localhost:3000", "https://", "https://a.example/page", "https://*.example.org",
    "http://a b", "https://a.example?x", "https://me@a.example", "http://a:99999999", "http://a:port", "https://a.example,https://b",
]  # fmt: skip


@pytest.mark.parametrize("given", NO_ORIGINS)
def test_what_no_browser_would_send_is_refused(given: str) -> None:
    with pytest.raises(InputError, match="is not the origin of a web site"):
        read_origins([given])


def test_names_of_hosts() -> None:
    assert [host_name(text) for text in ("Chat.Example", "chat.example:8000", "[::1]", "bücher.example")] == [
        "chat.example", "chat.example", "::1", "xn--bcher-kva.example",
    ]  # fmt: skip
    for text in ("", "https://chat.example", "a/b", "me@a", " a", "a..b", "a:port"):
        with pytest.raises(InputError, match="is not the name of a host"):
            host_name(text)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--allow-origin", "*"], "lets any web page"),
        (["--allow-origin", "null"], "'null' without a key lets any web page"),
        (["--api-key", "sesame\n"], "no client can send"),
        (["--api-key", "密钥"], "no client can send"),
        (["--allow-origin", "chat.example.org"], "is not the origin"),
        (["--allow-host", "https://chat.example.org"], "is not the name of a host"),
    ],
)
def test_the_command_says_so_with_exit_code_2(
    options: list[str], told: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.tiny import save_tiny_run

    run = save_tiny_run(tmp_path / "run")
    assert cli.main(["serve", str(run), *options, "--dry-run"]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/chat/completions", "did you mean /v1/chat/completions?"),
        ("/v1/chat/completions/", "did you mean /v1/chat/completions?"),
        ("/v1/v1/chat/completions", "did you mean /v1/chat/completions?"),
        ("/models", "did you mean /v1/models?"),
        ("/models/zhenhuan", "did you mean /v1/models/NAME?"),
        ("/v1/health", "did you mean /health?"),
        (
            "/v1/embeddings",
            "there are /health, /v1/models, /metrics, /v1/chat/completions, /v1/completions, /v1/responses",
        ),
        ("/", "there are /health"),
    ],
)
def test_a_path_that_is_not_there_gets_a_hint(path: str, hint: str) -> None:
    response = send("POST", path, ASK, app=make_app(ScriptedEngine()))
    assert response.status == 404
    assert hint in response.json["error"]["message"]
