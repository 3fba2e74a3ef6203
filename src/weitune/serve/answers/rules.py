"""What an answer must be, as a grammar: JSON that fits a schema, or a call of one of some tools.

    response_format                     start: ⓐ %json {…}             ⓐ: what the template writes before content
    tool_choice                         start: ⓐ (c0 | c1) ⓑ           as the template writes calls
                                        c0: "{\\"name\\": \\"tides\\", \\"arguments\\": " %json {…} "}"

Schemas are compiled in a thread, one at a time: a large one takes long, and nobody else should wait for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weitune.data.calls.form import Envelope, JsonCalls
from weitune.data.calls.marks import Marks
from weitune.errors import InputError
from weitune.generate.constrain.schema import ANY_OBJECT, JsonRule, check_sizes
from weitune.generate.llama_cpp import takes_grammars
from weitune.serve.answers.framings import KnownFraming
from weitune.serve.errors import ApiError
from weitune.serve.requests.request import ChatRequest

_ID = "/[a-zA-Z0-9]{9}/"
_SPACE = "/[ \\n]?/"


@dataclass(frozen=True, slots=True)
class Rule:
    """A grammar for one answer, and the schema of its content if it has one."""

    grammar: str
    content: JsonRule | None = None


class Rules:
    """Makes the rules of requests."""

    def __init__(self) -> None:
        self._one = asyncio.Semaphore(1)

    async def of(self, request: ChatRequest, known: KnownFraming) -> Rule | None:
        """Return the rule of ``request``, if it has one. Raises ApiError with the reason if none can be made."""
        forced = request.tool_choice not in ("auto", "none")
        if request.schema is None and not forced:
            return None
        param = "tool_choice" if forced else "response_format"
        if not takes_grammars():
            raise ApiError(400, "serve.rules.no_llguidance", param=param, code="unsupported_parameter")
        if known.form.begins_in_reasoning:
            raise ApiError(400, "serve.rules.thinks", name=request.model.name, param=param)
        try:
            if forced:
                check_sizes(_parameters(function) for function in _chosen(request))
            async with self._one:
                return await asyncio.to_thread(_forced_call if forced else _json_answer, request, known)
        except InputError as error:
            raise ApiError(400, "serve.errors.passed_on", message=error.message, param=param) from None


def _json_answer(request: ChatRequest, known: KnownFraming) -> Rule:
    rule = JsonRule(ANY_OBJECT if request.schema is None else request.schema)
    opening = _literal(known.form.plain_opening, known.marks)
    return Rule(f"%llguidance {{}}\nstart: {opening} {rule.expression}\n", rule)


def _forced_call(request: ChatRequest, known: KnownFraming) -> Rule:
    form = known.form.calls
    if not isinstance(form, JsonCalls) or form.envelope.arguments_are_text:
        raise InputError("serve.rules.not_forced")
    rules = [_call_rule(function, form.envelope) for function in _chosen(request)]
    head, tail = ('"["', '"]"') if form.between is None else ("", "")
    opening, closing = (_literal(text, known.marks) for text in (form.opening, form.closing))
    before = _literal(known.form.call_opening, known.marks)
    calls = " | ".join(f"c{i}" for i in range(len(rules)))
    lines = [f"start: {before} {opening} {_SPACE} {head} ({calls}) {tail} {_SPACE} {closing}"]
    lines += [f"c{i}: {rule}" for i, rule in enumerate(rules)]
    return Rule("%llguidance {}\n" + "\n".join(lines) + "\n")


def _chosen(request: ChatRequest) -> list[Mapping[str, Any]]:
    """Return the functions of which one must be called."""
    functions = [tool["function"] for tool in request.conversation.tools]
    return [function for function in functions if request.tool_choice in ("required", f"={function['name']}")]


def _parameters(function: Mapping[str, Any]) -> Mapping[str, Any]:
    return function.get("parameters") or ANY_OBJECT


def _call_rule(function: Mapping[str, Any], envelope: Envelope) -> str:
    """Return the grammar of a call of ``function``. Raises InputError if its schema is refused."""
    arguments = JsonRule(_parameters(function))
    name, key = json.dumps(function["name"]), json.dumps(envelope.arguments)
    before = json.dumps(f"{{{json.dumps(envelope.name)}: {name}, {key}: ")
    if envelope.id is None:
        return f'{before} {arguments.expression} "}}"'
    id_ = json.dumps(f', {json.dumps(envelope.id)}: "')
    return f'{before} {arguments.expression} {id_} {_ID} "\\"}}"'


def _literal(text: str, marks: Marks) -> str:
    """Return marked ``text`` as a grammar: control tokens by their ids, other text as strings."""
    return " ".join(
        f"<[{piece}]>" if isinstance(piece, int) else json.dumps(piece, ensure_ascii=False)
        for piece in marks.pieces(text)
    )
