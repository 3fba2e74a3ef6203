"""Tools, calls and results come through Ollama's template as the chat template frames them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.data.frame.families import tokenizer_of
from tests.export.formats import go_template
from tests.export.formats.go_template import Shown
from tests.export.formats.test_modelfile import read_modelfile
from tests.export.runs import save_run
from weitune.data.frame.choose import framing_for
from weitune.export.formats.ollama import modelfile, turn_frames
from weitune.export.formats.ollama_tools import ToolFrames, tool_frames
from weitune.export.options import ExportOptions
from weitune.export.run import export
from weitune.export.source.chat_template import self_contained_template
from weitune.recipe.schema import Tokens

FAMILIES = ("qwen2.5", "qwen3", "qwen3-not-thinking")
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Of a \"city\" & more", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "time", "description": "现在几点", "parameters": {"type": "object"}}},
]  # fmt: skip


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


ASKED = {"role": "user", "content": "How is it in Lima, and what time is it?"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [call("weather", city="Lima"), call("time")]}
TALKED = {"role": "assistant", "content": "I look.", "tool_calls": [call("weather", city="Lima")]}
RESULTS = [{"role": "tool", "content": '{"sky": "clear"}'}, {"role": "tool", "content": "noon"}]
SYSTEM = {"role": "system", "content": "Be brief."}
AGAIN = {"role": "user", "content": "And now?"}
DIALOGUES: list[list[dict[str, Any]]] = [
    [ASKED], [SYSTEM, ASKED], [SYSTEM, ASKED, CALLED, *RESULTS], [ASKED, TALKED, RESULTS[0]],
    [ASKED, TALKED, RESULTS[0], CALLED, *RESULTS, {"role": "assistant", "content": "Clear, noon."}, AGAIN],
]  # fmt: skip


class Framed:
    """A family's chat template, and the Modelfile that weitune writes for it."""

    def __init__(self, family: str, system: str | None = None) -> None:
        self.tokenizer = tokenizer_of(family)
        arguments = {"enable_thinking": False} if family.endswith("not-thinking") else None
        framing = framing_for(self.tokenizer, Tokens(template_args=arguments))
        self.template = self_contained_template(framing, None, "")
        turns = turn_frames(lambda messages, ask: self.jinja(messages, [], ask), "", system)
        self.frames = tool_frames(self.jinja, turns, "", system)
        self.turns = turns
        self.text = modelfile("run.gguf", self.frames or turns, ["<|im_end|>"], 512)

    def jinja(self, messages: Sequence[Any], tools: Sequence[Any], ask: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                list(messages), list(tools) or None, chat_template=self.template, tokenize=False,
                add_generation_prompt=ask,
            )
        )  # fmt: skip

    def ollama(self, messages: Sequence[Any], tools: Sequence[Any]) -> str:
        commands = dict(read_modelfile(self.text))
        if messages[0]["role"] != "system" and "system" in commands:
            messages = [{"role": "system", "content": commands["system"]}, *messages]
        listed = [Tool({**tool, "Function": Shown(tool["function"])}) for tool in tools]
        said = [
            {
                "Role": message["role"],
                "Content": message["content"],
                "ToolCalls": [
                    {"Function": {"Name": each["function"]["name"], "Arguments": Shown(each["function"]["arguments"])}}
                    for each in message.get("tool_calls", [])
                ],
            }
            for message in messages
        ]
        return go_template.render(commands["template"], {"Messages": said, "Tools": listed})


class Tool(Shown):
    """A tool, whose JSON does not have Go's name of the function."""

    def __str__(self) -> str:
        return str(Shown({key: value for key, value in self.items() if key != "Function"}))


def compact(text: str) -> str:
    """Return what Jinja rendered with the JSON of tools and arguments as Go writes it."""
    calls = [each for message in (CALLED, TALKED) for each in message["tool_calls"]]  # type: ignore[attr-defined]
    for value in [*TOOLS, *(each["function"]["arguments"] for each in calls)]:
        text = text.replace(json.dumps(value, ensure_ascii=False), str(Shown(value)))
    return text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("messages", DIALOGUES)
def test_ollama_frames_tools_as_training_did(family: str, messages: list[dict[str, Any]]) -> None:
    framed = Framed(family)
    assert framed.frames is not None
    assert framed.frames.render(messages, TOOLS) == framed.jinja(messages, TOOLS)
    assert framed.ollama(messages, TOOLS) == compact(framed.jinja(messages, TOOLS))
    assert framed.ollama(messages, TOOLS[:1]) == compact(framed.jinja(messages, TOOLS[:1]))
    plain = [message for message in messages if message["role"] in {"system", "user"}]
    assert framed.ollama(plain[:2], []) == framed.jinja(plain[:2], [])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", ["You are Maren.", "a\N{NO-BREAK SPACE}b"])
def test_the_runs_system_prompt_comes_before_the_tools(family: str, system: str) -> None:
    framed = Framed(family, system)
    trained = [{"role": "system", "content": system}, ASKED]
    assert framed.ollama([ASKED], TOOLS) == compact(framed.jinja(trained, TOOLS))
    assert framed.ollama([ASKED], []) == framed.jinja(trained, [])
    assert framed.ollama([SYSTEM, ASKED], TOOLS) == compact(framed.jinja([SYSTEM, ASKED], TOOLS))


@pytest.mark.parametrize("family", FAMILIES)
def test_ollama_finds_the_text_before_calls(family: str) -> None:
    """Ollama looks for the first block of .ToolCalls, which must begin with a text; calls begin with that, up to {."""
    nodes = go_template.tree(dict(read_modelfile(Framed(family).text))["template"])
    assert first_text(nodes).split("{")[0].strip() == "<tool_call>"


def first_text(nodes: Sequence[Any]) -> str:
    for node in nodes:
        if isinstance(node, str) or len(node) == 1:
            continue
        if node[0][0] == "if" and ".ToolCalls" in node[0]:
            assert isinstance(node[1][0], str)
            return node[1][0]
        if found := first_text([*node[1], *node[2]]):
            return found
    return ""


@pytest.mark.parametrize("family", ["llama3", "smollm2", "generation"])
def test_a_template_without_tools_of_this_form_gets_none(family: str) -> None:
    framed = Framed(family)
    assert framed.frames is None
    assert ".Tools" not in framed.text


def test_what_would_be_read_as_an_action_is_not_written() -> None:
    framed = Framed("qwen2.5")

    def braced(messages: Sequence[Any], tools: Sequence[Any], ask: bool) -> str:
        return framed.jinja(messages, tools, ask).replace("<tool_call>\n", "{{tool_call}}\n")

    assert isinstance(tool_frames(framed.jinja, framed.turns), ToolFrames)
    assert tool_frames(braced, framed.turns) is None


def test_a_template_that_ignores_results_gets_none() -> None:
    framed = Framed("qwen2.5")

    def deaf(messages: Sequence[Any], tools: Sequence[Any], ask: bool) -> str:
        return framed.jinja([message for message in messages if message["role"] != "tool"], tools, ask)

    assert tool_frames(deaf, framed.turns) is None


def test_an_export_says_whether_ollama_gets_tools(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "qwen2")
    plain = export(run, tmp_path / "plain", ExportOptions("ollama", "F32", prompts=0)).folder
    assert json.loads((plain / "weitune.json").read_text())["tools"] is False
    config = Path(run.recipe.model) / "chat_template.jinja"
    config.write_text(tokenizer_of("qwen2.5").chat_template, encoding="utf-8")
    tools = export(run, tmp_path / "tools", ExportOptions("ollama", "F32", prompts=0)).folder
    assert json.loads((tools / "weitune.json").read_text())["tools"] is True
    assert ".Tools" in (tools / "Modelfile").read_text(encoding="utf-8")
