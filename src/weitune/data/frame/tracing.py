"""Render disguised strings, while the template decides by the strings themselves.

Templates look into strings: ``'</think>' in content``, ``content.startswith('<tool_response>')``. With a disguised
string (:mod:`.control_tokens`) they would take another branch than with the string itself. So the template's syntax
tree is changed, once for each template: comparisons see the strings' own characters; methods and filters that search
or cut a string look for the places in the string itself, and then cut the disguised one, which has the same length:

    content                      a⟂/think>b
    '</think>' in content        asks a</think>b: true
    content.split('</think>')    cuts where a</think>b is cut: a, b
    content[1:]                  ⟂/think>b

What a template writes by itself stays as it is, even where it writes again what it has cut out of a row's text. The
caller compares the result with the rendering by transformers, so a mistake here cannot go unnoticed. Cost: one more
rendering, only for conversations with look-alikes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import Environment, nodes, pass_context
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer

from weitune.data.frame.control_tokens import Disguise

_DISGUISE = "weitune disguise"
"""The variable that holds the disguise; with a space in its name, no template can read it."""
_PLAIN, _METHOD = "weitune_plain", "weitune_method"
_COMPARING = ("in", "eq", "==", "equalto", "ne", "!=", "lt", "<", "lessthan", "le", "<=", "gt", ">", "greaterthan",
              "ge", ">=")  # fmt: skip
"""Tests that compare strings, as in `selectattr('content', 'eq', …)`."""


def environment_of(source: str) -> Environment:
    """Return the sandboxed environment in which transformers renders the template ``source``."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment: Environment = _compile_jinja_template(source).environment
    return environment


class TracedTemplate:
    """A chat template that renders disguised strings as it would render the strings themselves."""

    def __init__(self, source: str) -> None:
        environment = environment_of(source).overlay()
        environment.filters = {**environment.filters, **_FILTERS}
        compared = {name: _on_plain(environment.tests[name]) for name in _COMPARING if name in environment.tests}
        environment.tests = {**environment.tests, **compared}
        tree = environment.parse(source)
        _Instrument().visit(tree)
        tree.set_environment(environment)
        self._template = environment.from_string(tree)

    def render(self, variables: Mapping[str, Any], disguise: Disguise) -> str:
        """Return the rendering, disguised. Raises whatever the template raises."""
        return disguise.unescape(self._template.render({**variables, _DISGUISE: disguise}))


class _Instrument(NodeTransformer):
    """Sends comparisons and methods of strings through the filters below."""

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802  (Jinja's naming)
        self.generic_visit(node)
        node.expr = _filter(node.expr, _PLAIN, [])
        for operand in node.ops:
            operand.expr = _filter(operand.expr, _PLAIN, [])
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        method = node.node
        if not isinstance(method, nodes.Getattr):
            return node
        called = _filter(method.node, _METHOD, [nodes.Const(method.attr), *node.args])
        for part in ("kwargs", "dyn_args", "dyn_kwargs"):
            setattr(called, part, getattr(node, part))
        return called


def _filter(node: nodes.Expr, name: str, arguments: list[nodes.Expr]) -> nodes.Filter:
    return nodes.Filter(node, name, arguments, [], None, None, lineno=node.lineno)


def _plain(context: Context, value: Any) -> Any:
    """Return ``value`` with the own characters of its strings."""
    if isinstance(value, str):
        return context[_DISGUISE].plain(value)
    if isinstance(value, list | tuple):
        return type(value)(_plain(context, item) for item in value)
    if isinstance(value, dict):
        return {_plain(context, key): _plain(context, item) for key, item in value.items()}
    return value


@pass_context
def _plain_filter(context: Context, value: Any) -> Any:
    return _plain(context, value)


def _on_plain(test: Any) -> Callable[..., bool]:
    @pass_context
    def compared(context: Context, *values: Any) -> bool:
        return bool(test(*(_plain(context, value) for value in values)))

    return compared


@pass_context
def _method(context: Context, value: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call the method ``name`` of ``value``; if that is a string, such that the disguise makes no difference."""
    if isinstance(value, str) and (name in _ASKING or name in _CUTTING):
        text = context[_DISGUISE].plain(value)
        plain_args = [_plain(context, argument) for argument in args]
        if name in _ASKING:
            return getattr(text, name)(*plain_args, **kwargs)
        return _CUTTING[name](value, text, name, *plain_args, **kwargs)
    if isinstance(value, str) and name == "replace":
        return _replaced(context, value, *args, **kwargs)
    environment: Any = context.environment  # the sandbox, which guards attributes and calls
    return environment.call(context, environment.getattr(value, name), *args, **kwargs)


def _aligned(hidden: str, text: str, parts: Iterable[str], gap: int) -> list[str]:
    """Return what ``hidden`` has where ``text`` has ``parts``, in order, at least ``gap`` characters apart."""
    hidden_parts, at = [], 0
    for part in parts:
        at = text.index(part, at)
        hidden_parts.append(hidden[at : at + len(part)])
        at += len(part) + gap
    return hidden_parts


def _split(hidden: str, text: str, name: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    return _aligned(hidden, text, getattr(text, name)(sep, maxsplit), len(sep or ""))


def _partition(hidden: str, text: str, name: str, *args: Any) -> Any:
    return tuple(_aligned(hidden, text, getattr(text, name)(*args), 0))


def _lines(hidden: str, text: str, name: str, *args: Any, **kwargs: Any) -> list[str]:
    return _aligned(hidden, text, getattr(text, name)(*args, **kwargs), 0)


def _without_start(hidden: str, text: str, name: str, *args: Any) -> str:
    return hidden[len(text) - len(getattr(text, name)(*args)) :]


def _without_end(hidden: str, text: str, name: str, *args: Any) -> str:
    return hidden[: len(getattr(text, name)(*args))]


def _stripped(hidden: str, text: str, name: str, *args: Any) -> str:
    start = len(text) - len(text.lstrip(*args))
    return hidden[start : start + len(text.strip(*args))]


def _replaced(context: Context, hidden: str, old: str, new: str, count: int = -1) -> str:
    if not old:
        return hidden.replace(old, new, count)
    text, old = context[_DISGUISE].plain(hidden), context[_DISGUISE].plain(old)
    return new.join(_aligned(hidden, text, text.split(old, count), len(old)))


@pass_context
def _replace_filter(context: Context, value: Any, old: str, new: str, count: int | None = None) -> str:
    return _replaced(context, str(value), str(old), str(new), -1 if count is None else count)


@pass_context
def _trim_filter(context: Context, value: Any, chars: str | None = None) -> str:
    hidden = str(value)
    return _stripped(hidden, context[_DISGUISE].plain(hidden), "strip", chars)


_ASKING = frozenset({"startswith", "endswith", "find", "rfind", "index", "rindex", "count", "isalnum", "isalpha",
                     "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable",
                     "isspace", "istitle", "isupper"})  # fmt: skip
"""Methods of a string that do not return a string."""
_CUTTING: Mapping[str, Callable[..., Any]] = {
    "split": _split, "rsplit": _split, "partition": _partition, "rpartition": _partition, "splitlines": _lines,
    "lstrip": _without_start, "removeprefix": _without_start, "rstrip": _without_end, "removesuffix": _without_end,
    "strip": _stripped,
}  # fmt: skip
"""Methods that return parts of a string."""
_FILTERS: Mapping[str, Callable[..., Any]] = {
    _PLAIN: _plain_filter, _METHOD: _method, "trim": _trim_filter, "replace": _replace_filter,
}  # fmt: skip
