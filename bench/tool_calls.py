"""Are served calls those of the model? Held-out requests with tools, `weitune serve` beside transformers' greedy text.

python -m bench.tool_calls RUN --data held-out.json [--skip 0] [--limit 50] [--tokens 256] [--types F32,Q8_0]

requests    conversations up to a call, which the run has not learned: all up to their first, then all up to a later one
called      of these, requests for which transformers' text has calls
malformed   of these, requests for which it begins a call that cannot be read: content on both sides
equal       served answers whose calls (names and arguments) and content equal those that the same reader finds in
            transformers' text
faulty      served answers with a call that is not of the type function, or whose id is missing or is another call's

A call's id is made anew for each answer unless the model writes it, so ids are not compared.

transformers generates greedily in float32, with the adapter beside the weights. Unequal answers are printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from bench.serving import keep, service
from weitune import Run
from weitune.data.calls.derive import answer_form
from weitune.data.calls.reader import Said, read_answer
from weitune.data.conversation import Conversation
from weitune.data.read.conversations import Reader, read_conversations
from weitune.export.source.export_source import ExportSource, open_export_source
from weitune.export.verify.outputs import Computing, open_reference


def asked(files: list[Path], skip: int, limit: int) -> list[Conversation]:
    """Return the conversations of ``files`` up to each call: after the first ``skip``, at most ``limit``."""
    found, later = [], []
    for conversation in read_conversations(Reader([str(file) for file in files])):
        calls = [at for at, turn in enumerate(conversation.turns) if at and turn.tool_calls]
        if calls and conversation.tools:
            found.append(conversation.before(calls[0]))
            later += [conversation.before(at) for at in calls[1:]]
    return [*found, *later][skip : skip + limit]


def body_of(conversation: Conversation, model: str, tokens: int) -> dict[str, Any]:
    """Return the request for the answer to ``conversation``."""
    messages: list[dict[str, Any]] = []
    open_calls: list[str] = []
    for at, turn in enumerate(conversation.turns):
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.tool_calls:
            open_calls = [call.id or f"call_{at}_{number}" for number, call in enumerate(turn.tool_calls)]
            functions = [{"name": call.name, "arguments": json.dumps(call.arguments)} for call in turn.tool_calls]
            message["tool_calls"] = [
                {"type": "function", "id": name, "function": function}
                for name, function in zip(open_calls, functions, strict=True)
            ]
        if turn.role == "tool":
            message["tool_call_id"] = turn.tool_call_id or open_calls.pop(0)
        messages.append(message)
    return {"model": model, "messages": messages, "tools": list(conversation.tools), "max_tokens": tokens}


def greedy_answers(source: ExportSource, conversations: list[Conversation], tokens: int) -> list[list[int]]:
    """Return transformers' greedy answers of base + adapter in float32, without the token that ended them."""
    model, ends = open_reference(source, Computing("fp32", torch.device("cpu"))).model, list(source.stop_tokens)
    answers = []
    for conversation in conversations:
        prompt = torch.tensor([source.framing.prompt(conversation)])
        made = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=tokens,
            eos_token_id=ends, pad_token_id=ends[0],
        )[0, prompt.shape[1] :].tolist()  # fmt: skip
        answers.append(made[: next((at for at, token in enumerate(made) if token in ends), None)])
    return answers


def is_faulty(message: dict[str, Any]) -> bool:
    """Return whether a served message has a call that a client could not answer."""
    calls = message.get("tool_calls", ())
    ids = [call.get("id") for call in calls]
    named = all(isinstance(each, str) and each for each in ids) and len(set(ids)) == len(ids)
    return not named or any(call.get("type") != "function" for call in calls)


def told(message: dict[str, Any]) -> tuple[str, list[tuple[str, Any]]]:
    """Return content and calls of a served message."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return message["content"] or "", [(call["name"], json.loads(call["arguments"])) for call in calls]


def main() -> None:
    """Ask both sides, compare, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--skip", type=int, default=0, help="Requests at the beginning that another call asks.")
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--types", default="F32,Q8_0")
    given = parser.parse_args()
    run = Run(given.run)
    source = open_export_source(run)
    form, marks = answer_form(source.framing)
    conversations = [each.with_system(run.recipe.system) for each in asked(given.data, given.skip, given.limit)]
    answers = greedy_answers(source, conversations, given.tokens)
    said: list[Said] = [
        read_answer(marks.of_tokens(answer, source.framing.decode), form, marks, conversation.tools)
        for answer, conversation in zip(answers, conversations, strict=True)
    ]
    opening = marks.written(form.calls.opening) if form.calls is not None else ""
    result: dict[str, Any] = {
        "requests": len(said),
        "called": sum(bool(each.calls) for each in said),
        "malformed": sum(bool(opening) and opening in each.content for each in said),
    }
    expected = [(each.content, [(call.name, call.arguments) for call in each.calls]) for each in said]
    for kind in given.types.split(","):
        with service(given.run, "--type", kind) as server:
            bodies = [body_of(conversation, run.name, given.tokens) for conversation in conversations]
            messages = [server.chat(**body)["choices"][0]["message"] for body in bodies]
        served = [told(message) for message in messages]
        unequal = [at for at, (one, other) in enumerate(zip(served, expected, strict=True)) if one != other]
        result[f"equal_{kind}"] = len(served) - len(unequal)
        result[f"faulty_{kind}"] = sum(map(is_faulty, messages))
        for at in unequal:
            print(f"{kind}, request {given.skip + at}:\n  transformers {expected[at]}\n  served       {served[at]}")
    keep("tool_calls", result)


if __name__ == "__main__":
    main()
