"""In headless Chromium, a page of an allowed site reads answers, streams and errors; one of another site nothing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

from tests.chromium import chromium, sandbox_arguments
from tests.serve.asgi import ASK, ScriptedEngine, make_app
from weitune.serve.guard import Guard
from weitune.serve.http import Server, http_server, listen, url_of

KEY = "sesame"
PAGE = """<!doctype html><script>
const server = %(server)s, ask = %(ask)s, key = %(key)s;
const call = (path, options) => fetch(server + path, options);
const post = (body, authorization = "Bearer " + key) => call("/v1/chat/completions",
  {method: "POST", body: JSON.stringify(body),
   headers: {"Content-Type": "application/json", Authorization: authorization, "X-Stainless-Lang": "js"}});
const refused = async (response) => [response.status, (await response.json()).error.code];
const cases = {
  models: async () => {
    const response = await call("/v1/models", {headers: {Authorization: "Bearer " + key}});
    return (await response.json()).data.length;
  },
  whole: async () => (await (await post(ask)).json()).choices[0].message.content,
  stream: async () => {
    const reader = (await post({...ask, stream: true})).body.getReader(), decoder = new TextDecoder();
    let text = "";
    for (let part; !(part = await reader.read()).done;) text += decoder.decode(part.value, {stream: true});
    return text.trim().split("\\n\\n").filter((line) => line !== "data: [DONE]")
      .map((line) => JSON.parse(line.slice(6)).choices[0].delta.content || "").join("");
  },
  wrong_key: async () => refused(await post(ask, "Bearer wrong")),
  wrong_model: async () => refused(await post({...ask, model: "x"})),
  wrong_field: async () => refused(await post({...ask, functions: [{}]})),
  busy: async () => { const r = await post({...ask, n: 2}); return [r.status, r.headers.get("Retry-After")]; },
};
(async () => {
  const found = {};
  for (const [name, work] of Object.entries(cases))
    try { found[name] = await work(); } catch (error) { found[name] = String(error); }
  await fetch("/found", {method: "POST", body: JSON.stringify(found)});
})();
</script>"""


@contextmanager
def serving(guard: Guard) -> Iterator[str]:
    """Serve a scripted model at a free port, with room for one more answer; give its address."""
    app, started = make_app(ScriptedEngine(), slots=1, queue=1, guard=guard), threading.Event()
    servers: list[Server] = []

    async def work(listening: Any) -> None:
        servers.append(http_server(app))
        started.set()
        await servers[0].serve(sockets=[listening])

    with app._answering.admission.admitted(1), listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(work(listening)))
        thread.start()
        assert started.wait(60)
        try:
            yield url_of(listening)
        finally:
            servers[0].should_exit = True
            thread.join(30)


class Site(ThreadingHTTPServer):
    """A web site with one page, which tells what it found."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.page = ""
        self.found: Queue[dict[str, Any]] = Queue()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name that http.server gives it)
        pass

    def do_GET(self) -> None:
        self._say(self.server.page.encode() if self.path == "/" else b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._say(b"")
        self.server.found.put(json.loads(body))

    def _say(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def site() -> Iterator[Site]:
    with Site() as here:
        thread = threading.Thread(target=here.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield here
        finally:
            here.shutdown()
            thread.join()


def visit(here: Site, server: str, profile: Path) -> dict[str, Any]:
    """Open the site's page in a browser and return what it found."""
    values = {"server": server, "ask": ASK, "key": KEY}
    here.page = PAGE % {name: json.dumps(value) for name, value in values.items()}
    command = [
        chromium(), "--headless", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
        *sandbox_arguments(), "--remote-debugging-port=0",
        f"--user-data-dir={profile}", f"{here.origin}/",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            return here.found.get(timeout=120)
        finally:
            browser.kill()


def test_pages_of_an_allowed_site_can_use_the_server_and_others_cannot(tmp_path: Path) -> None:
    with site() as allowed, site() as other, serving(Guard(key=KEY, origins=frozenset({allowed.origin}))) as server:
        assert visit(allowed, server, tmp_path / "allowed") == {
            "models": 2,
            "whole": "Hello.",
            "stream": "Hello.",
            "wrong_key": [401, "invalid_api_key"],
            "wrong_model": [404, "model_not_found"],
            "wrong_field": [400, "unsupported_parameter"],
            "busy": [429, "1"],
        }
        found = visit(other, server, tmp_path / "other")
        assert found
        assert set(found.values()) == {"TypeError: Failed to fetch"}
