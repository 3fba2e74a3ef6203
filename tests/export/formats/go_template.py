"""What Go's ``text/template`` makes of a template, for the actions that weitune writes, from its documentation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_STRING = r'"(?:\\.|[^"\\])*"'
_ACTION = re.compile(r"\{\{(-)? ?((?:" + _STRING + r'|[^"{}])*?) ?\}\}')
_WORD = re.compile(_STRING + r"|[()]|:=|=|\$\w*(?:\.\w+)*|[.\w]+|,")
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "eq": lambda one, other: one == other,
    "ne": lambda one, other: one != other,
    "not": lambda value: not value,
    "and": lambda one, other: one and other,
    "index": lambda values, at: values[at],
}


class Shown(dict[str, Any]):
    """A value that Ollama prints as JSON, as Go writes it: without spaces."""

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False, separators=(",", ":"))


def tree(template: str) -> list[Any]:
    """Return the template as a list of texts (str), actions (one word list), and blocks (word list, then, otherwise).

    A text is trimmed at its end if the action after it begins with ``{{-``.
    """
    parts: list[Any] = []
    at = 0
    for action in _ACTION.finditer(template):
        text = template[at : action.start()]
        parts += [text.rstrip(" \t\r\n") if action[1] else text, _WORD.findall(action[2])]
        at = action.end()
    tokens = iter([part for part in [*parts, template[at:]] if part != ""])
    return _nodes(tokens)[0]


def _nodes(tokens: Iterator[Any]) -> tuple[list[Any], list[str]]:
    """Return the nodes up to the end of a block, and the words of the action that ended it."""
    nodes: list[Any] = []
    for token in tokens:
        if isinstance(token, str):
            nodes.append(token)
        elif token[0] in {"end", "else"}:
            return nodes, token
        elif token[0] in {"if", "range"}:
            nodes.append(_block(token, tokens))
        else:
            nodes.append((token,))
    return nodes, []


def _block(words: list[str], tokens: Iterator[Any]) -> tuple[list[str], list[Any], list[Any]]:
    then, ended = _nodes(tokens)
    if ended == ["end"]:
        return words, then, []
    return words, then, [_block(ended[1:], tokens)] if ended[1:] else _nodes(tokens)[0]


def render(template: str, root: Mapping[str, Any]) -> str:
    """Return what the template prints for ``root``."""
    return _run(tree(template), root, {"$": root})


def _run(nodes: Sequence[Any], dot: Any, variables: dict[str, Any]) -> str:
    out = ""
    for node in nodes:
        if isinstance(node, str):
            out += node
        elif len(node) == 1:
            out += _act(node[0], dot, variables)
        elif node[0][0] == "if":
            out += _run(node[1] if _value(node[0][1:], dot, variables) else node[2], dot, variables)
        else:
            out += _range(node[0][1:], node[1], dot, variables)
    return out


def _range(words: list[str], body: Sequence[Any], dot: Any, variables: dict[str, Any]) -> str:
    names: list[str] = []
    if ":=" in words:
        names, words = [words[0], words[2]], words[4:]
    out = ""
    for at, item in enumerate(_value(words, dot, variables) or []):
        variables |= dict(zip(names, (at, item), strict=False))
        out += _run(body, item, variables)
    return out


def _act(words: list[str], dot: Any, variables: dict[str, Any]) -> str:
    if words[1:2] in ([":="], ["="]):
        assert (words[0] in variables) == (words[1] == "=") or words[1] == ":="
        variables[words[0]] = _value(words[2:], dot, variables)
        return ""
    return str(_value(words, dot, variables))


def _value(words: list[str], dot: Any, variables: dict[str, Any]) -> Any:
    values, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word == "(":
            depth, inner = 1, []
            while depth:
                inner.append(rest.pop(0))
                depth += {"(": 1, ")": -1}.get(inner[-1], 0)
            values.append(_value(inner[:-1], dot, variables))
            if rest and rest[0].startswith("."):
                values[-1] = _field(values[-1], rest.pop(0))
        else:
            values.append(_word(word, dot, variables))
    return values[0](*values[1:]) if callable(values[0]) else values[0]


def _word(word: str, dot: Any, variables: dict[str, Any]) -> Any:
    if word.startswith('"'):
        return string(word)
    if word.startswith("$"):
        name, *fields = word.split(".")
        return _field(variables[name], "." + ".".join(fields)) if fields else variables[name]
    if word.startswith("."):
        return _field(dot, word)
    return int(word) if word.isdigit() else _FUNCTIONS[word]


def _field(value: Any, path: str) -> Any:
    for name in path.split(".")[1:]:
        value = value.get(name)
    return value


def string(literal: str) -> str:
    """Return the text that a Go string literal stands for."""
    assert literal[0] == literal[-1] == '"'
    assert "\n" not in literal
    plain = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"'}

    def read(match: re.Match[str]) -> str:
        return plain[match[1]] if match[1] in plain else chr(int(match[1][1:], 16))

    return re.sub(r"\\(u[0-9a-f]{4}|U[0-9a-f]{8}|.)", read, literal[1:-1])
