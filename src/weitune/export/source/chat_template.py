"""The chat template of an export: the run's framing, as one Jinja template that needs no arguments.

Training, ``chat`` and ``serve`` frame with the tokenizer's template, the run's template arguments and the run's system
prompt. Other programs know only the template, so it contains the other two: the arguments as fixed values (llama.cpp
would pass its own ``enable_thinking``), and the system prompt for dialogues that have none.

    {%- set enable_thinking = false %}                                                         the run's arguments
    {%- if messages[0]['role'] != 'system' %}{% set messages = [{…}] + messages %}{% endif %}  its system prompt
    {%- if tools %}…{% else %}                                                                 a second template, if any
    …                                                                                          the template itself
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from weitune.data.frame.framing import Framing

_TUTORIAL = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\n<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{%- if message['role'] == 'assistant' %}{{- END }}{%- else %}{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def self_contained_template(framing: Framing, system: str | None, end_of_turn: str) -> str:
    """Return the Jinja template that frames as ``framing`` does, with ``system`` where a dialogue has no system prompt.

    ``end_of_turn`` is the text of the framing's end-of-turn token.
    """
    described = framing.describe()
    if described["kind"] == "tutorial":
        source, arguments, with_tools = _TUTORIAL.replace("END", _literal(end_of_turn)), {}, None
    else:
        source, arguments = described["template"], described["template_args"]
        with_tools = described.get("template_with_tools")
    if with_tools is not None:
        source = "{%- if tools %}" + with_tools + "{%- else %}" + source + "{%- endif %}"
    settings = "".join(f"{{%- set {name} = {_literal(value)} %}}" for name, value in sorted(arguments.items()))
    return settings + _opening(system) + source


def _opening(system: str | None) -> str:
    if system is None:
        return ""
    message = f"{{'role': 'system', 'content': {_literal(system)}}}"
    return f"{{%- if messages[0]['role'] != 'system' %}}{{%- set messages = [{message}] + messages %}}{{%- endif %}}"


def _literal(value: Any) -> str:
    """Return ``value`` (JSON) as a Jinja literal."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
        return f"'{escaped}'"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(key))}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value)
