"""Do clients of the OpenAI API work with a running server, unmodified? Chat, stream, forced calls, JSON, responses.

    weitune serve RUN &
    python -m bench.clients --url http://127.0.0.1:8000/v1 --model RUN [--python PYTHON] [--node FOLDER]

``--python`` is the Python of an environment with the clients, ``--node`` a folder whose ``node_modules`` has openai.
The run's template must write calls. A client that is not installed is left out.

call           a forced call with arguments that can be read
streamed call  the same call from the pieces of a stream
result         the call and its result sent back: the prompt is longer by them, and there is an answer
two calls      a turn with two calls sent back, with the results in the other order; one more call is forced
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_TOOL = (
    '{"type": "function", "function": {"name": "tides", "description": "Tells the tides.", "parameters": {"type": '
    '"object", "properties": {"port": {"enum": ["Brest", "Cork"]}}, "required": ["port"]}}}'
)
_SCHEMA = '{"enum": ["high", "low"]}'
_TWO_CALLS = json.dumps(
    [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": port, "type": "function", "function": {"name": "tides", "arguments": f'{{"port": "{port}"}}'}}
                for port in ("Brest", "Cork")
            ],
        },
        *({"role": "tool", "tool_call_id": port, "content": f"{port}: noon"} for port in ("Cork", "Brest")),
    ]
)
_PYTHON = f"""
import json, sys
from importlib.metadata import version
url, model = sys.argv[1:3]
tool, schema, two_calls = json.loads('''{_TOOL}'''), json.loads('''{_SCHEMA}'''), json.loads(r'''{_TWO_CALLS}''')
ask = [{{"role": "user", "content": "When is high tide?"}}]
form = {{"type": "json_schema", "json_schema": {{"name": "tide", "schema": schema, "strict": True}}}}
found = {{}}
def check(name, call):
    try: found[name] = bool(call())
    except Exception as error: found[name] = f"{{type(error).__name__}}: {{error}}"[:200]
"""
_END = "\nprint(json.dumps(found))\n"
_CLIENTS = {
    "openai": """
from openai import OpenAI
client = OpenAI(base_url=url, api_key="none", max_retries=0)
def create(messages=ask, **options):
    return client.chat.completions.create(model=model, messages=messages, max_tokens=200, **options)
def called(messages=ask): return create(messages, tools=[tool], tool_choice="required")
def parts(call): return call.function.name, json.loads(call.function.arguments)["port"]
def call(messages=ask): return parts(called(messages).choices[0].message.tool_calls[0])
def streamed_call():
    name = arguments = ""
    for chunk in create(tools=[tool], tool_choice="required", stream=True):
        for piece in chunk.choices[0].delta.tool_calls or ():
            name, arguments = name + (piece.function.name or ""), arguments + (piece.function.arguments or "")
    return (name, json.loads(arguments)["port"]) == call()
def result():
    first = called()
    message = first.choices[0].message
    answer = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "noon"}
    second = create([*ask, message, answer], tools=[tool])
    said = second.choices[0].message
    return second.usage.prompt_tokens > first.usage.prompt_tokens and (said.content or said.tool_calls)
check("chat", lambda: create().choices[0].message.content)
check("stream", lambda: [chunk for chunk in create(stream=True)][-1].choices[0].finish_reason)
check("call", call)
check("streamed call", streamed_call)
check("result", result)
check("two calls", lambda: call([*ask, *two_calls]))
check("json", lambda: json.loads(create(response_format=form).choices[0].message.content) in schema["enum"])
check("logprobs", lambda: create(logprobs=True, top_logprobs=2).choices[0].logprobs.content)
check("text", lambda: client.completions.create(model=model, prompt="The tide", max_tokens=9).choices[0].text)
check("responses", lambda: client.responses.create(model=model, input="When?", max_output_tokens=200).output_text)
""",
    "langchain-openai": """
from langchain_openai import ChatOpenAI
chat = ChatOpenAI(base_url=url, api_key="none", model=model, max_tokens=200)
check("chat", lambda: chat.invoke("When?").content)
check("stream", lambda: [piece.content for piece in chat.stream("When?")])
calling = chat.bind_tools([tool], tool_choice="required")
check("call", lambda: calling.invoke("When?").tool_calls[0]["args"]["port"])
check("json", lambda: json.loads(chat.bind(response_format=form).invoke("When?").content) in schema["enum"])
""",
    "litellm": """
import litellm
same = {"model": f"openai/{model}", "api_base": url, "api_key": "none", "messages": ask, "max_tokens": 200}
def create(**options): return litellm.completion(**same, **options)
def call(): return create(tools=[tool], tool_choice="required").choices[0].message.tool_calls[0].function.name
check("chat", lambda: create().choices[0].message.content)
check("stream", lambda: list(create(stream=True)))
check("call", lambda: call() == "tides")
check("json", lambda: json.loads(create(response_format=form).choices[0].message.content) in schema["enum"])
""",
    "llm": """
from llm.default_plugins.openai_models import Chat
chat = Chat(model, model_name=model, api_base=url)
check("chat", lambda: chat.prompt("When?", stream=False, key="none", max_tokens=200).text())
check("stream", lambda: list(chat.prompt("When?", key="none", max_tokens=200)))
""",
}
_NODE = f"""
const OpenAI = require('openai');
const {{version}} = JSON.parse(require('fs').readFileSync('node_modules/openai/package.json'));
const [url, model] = process.argv.slice(-2);
const client = new OpenAI({{baseURL: url, apiKey: 'none', maxRetries: 0}});
const create = options => client.chat.completions.create(
    {{model, messages: [{{role: 'user', content: 'When?'}}], max_tokens: 200, ...options}});
const found = {{version}};
const check = async (name, call) => {{
  try {{ found[name] = Boolean(await call()); }} catch (e) {{ found[name] = String(e); }}
}};
(async () => {{
  await check('chat', async () => (await create({{}})).choices[0].message.content);
  await check('stream', async () => {{
    let n = 0; for await (const c of await create({{stream: true}})) n++; return n > 2; }});
  await check('call', async () => JSON.parse((await create({{tools: [{_TOOL}], tool_choice: 'required'}}))
      .choices[0].message.tool_calls[0].function.arguments));
  await check('json', async () => ['high', 'low'].includes(JSON.parse((await create({{response_format:
      {{type: 'json_schema', json_schema: {{name: 'tide', schema: {_SCHEMA}}}}}}})).choices[0].message.content)));
  await check('responses', async () => (await client.responses.create(
      {{model, input: 'When?', max_output_tokens: 200}})).output_text);
  console.log(JSON.stringify(found));
}})();
"""


def ran(command: list[str], folder: Path | None = None) -> str:
    """Return what a command prints; what it prints as an error if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, check=False)
    return done.stdout if done.returncode == 0 else json.dumps({"failed": done.stderr.strip()[-200:]})


def python_client(python: str, name: str, code: str, where: list[str]) -> dict[str, object] | None:
    """Return what a client of Python did; None if it is not installed."""
    asked = f"from importlib.metadata import version; print(version({name!r}))"
    version = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False)
    if version.returncode:
        return None
    found: dict[str, object] = json.loads(ran([python, "-c", _PYTHON + code + _END, *where]).splitlines()[-1])
    return {"version": version.stdout.strip(), **found}


def curl(url: str, model: str) -> dict[str, object]:
    """Return what curl did."""
    ask: list[dict[str, Any]] = [{"role": "user", "content": "When?"}]
    calling = {"tools": [json.loads(_TOOL)], "tool_choice": "required", "max_tokens": 200}
    command = ["curl", "-sS", f"{url}/chat/completions", "-H", "Content-Type: application/json", "-d"]

    def sent(messages: list[dict[str, Any]], **options: Any) -> str:
        return ran([*command, json.dumps({"model": model, "messages": messages, "max_tokens": 20, **options})])

    def reply(messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(sent(messages, **options))
        return found

    first, streamed = reply(ask, **calling), sent(ask, stream=True)
    calls = calls_in(first)
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "noon"} for call in calls]
    turn = first.get("choices", [{}])[0].get("message")
    second = reply([*ask, turn, *results], tools=calling["tools"]) if calls else {}
    longer = "usage" in second and second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"]
    return {
        "version": ran(["curl", "--version"]).split()[1],
        "chat": "choices" in reply(ask),
        "stream": streamed.rstrip().endswith("data: [DONE]"),
        "call": bool(calls),
        "streamed call": [each["function"] for each in streamed_calls(sent(ask, stream=True, **calling))]
        == [each["function"] for each in calls],
        "result": longer,
        "two calls": bool(calls_in(reply([*ask, *json.loads(_TWO_CALLS)], **calling))),
    }


def calls_in(reply: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the calls of a reply whose arguments can be read."""
    if "choices" not in reply:
        return []
    calls: list[dict[str, Any]] = reply["choices"][0]["message"].get("tool_calls") or []
    return [call for call in calls if "port" in json.loads(call["function"]["arguments"])]


def streamed_calls(text: str) -> list[dict[str, Any]]:
    """Return the calls whose pieces are in a stream of server-sent events."""
    found: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        if not line.startswith("data: {"):
            continue
        for choice in json.loads(line.removeprefix("data: ")).get("choices", ()):
            for piece in choice["delta"].get("tool_calls") or ():
                call = found.setdefault(piece["index"], {"function": {"name": "", "arguments": ""}})
                for key, written in piece["function"].items():
                    call["function"][key] += written
    return [found[at] for at in sorted(found)]


def main() -> None:
    """Try every client that is there, and print what each did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--node", type=Path)
    given = parser.parse_args()
    where = [given.url, given.model]
    print(json.dumps({"curl": curl(*where)}))
    for name, code in _CLIENTS.items():
        if (found := python_client(given.python, name, code, where)) is not None:
            print(json.dumps({name: found}))
    if given.node is not None:
        print(json.dumps({"openai (node)": json.loads(ran(["node", "-e", _NODE, "--", *where], given.node))}))


if __name__ == "__main__":
    main()
