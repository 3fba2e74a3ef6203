"""Does the unmodified ``openai`` client get the answers of ``weitune chat``? Two runs and their base in one F32 server.

    python -m bench.openai_client RUN RUN [--questions 4] [--tokens 32]

    same        questions that each of the three answers, whole and streamed, as Run.chat does in transformers
    at_once     the same, all asked at the same time
    seeds       a seed gives one answer twice, and another seed another
    stop, max_tokens, errors    hold or not

The runs have `train.precision: fp32`, so that chat computes in it too.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai

from bench.serving import keep, service
from weitune import Run

QUESTIONS = (
    "你是谁？",
    "你父亲是做什么的？",
    "皇上待你好吗？",
    "今日天气如何？",
    "你最信任的人是谁？",
    "华妃娘娘来了，怎么办？",
)


def said(client: openai.OpenAI, model: str, question: str, **options: Any) -> str:
    """Return a whole answer."""
    reply = client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], **options)
    return str(reply.choices[0].message.content)


def streamed(client: openai.OpenAI, model: str, question: str, **options: Any) -> str:
    """Return an answer that came in pieces."""
    messages: Any = [{"role": "user", "content": question}]
    chunks = client.chat.completions.create(model=model, messages=messages, stream=True, **options)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def refused(client: openai.OpenAI, error: type[openai.APIStatusError], **options: Any) -> bool:
    """Return whether a request is refused with that error."""
    try:
        said(client, **options)
    except error:
        return True
    return False


def main() -> None:
    """Ask, compare, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path)
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    questions, length = QUESTIONS[: options.questions], options.tokens
    first, second = (Run(path) for path in options.runs)
    expected: dict[tuple[str, str], str] = {}
    for run, name, more in (
        (first, first.path.name, {}),
        (second, second.path.name, {}),
        (first, "base", {"system": "", "checkpoint": "base"}),
    ):
        for question in questions:
            expected[name, question] = run.chat(question, max_new_tokens=length, **more)
    with service(first.path, str(second.path), "--type", "F32", "--slots", "3") as server:
        client = openai.OpenAI(base_url=f"http://{server.host}:{server.port}/v1", api_key="none", max_retries=0)
        greedy: dict[str, Any] = {"max_tokens": length, "temperature": 0}
        whole = {key: said(client, *key, **greedy) for key in expected}
        pieces = {key: streamed(client, *key, **greedy) for key in expected}
        with ThreadPoolExecutor(len(expected)) as pool:
            together = dict(zip(expected, pool.map(lambda key: said(client, *key, **greedy), expected), strict=True))
        name, question = next(iter(expected))
        drawn = [said(client, name, question, max_tokens=length, temperature=1, seed=seed) for seed in (1, 1, 2)]
        answer = expected[name, question]
        ask: dict[str, Any] = {"model": name, "question": question}
        keep("openai_client", {
            "client": openai.__version__, "questions": len(expected), "tokens": length,
            "same": sum(whole[key] == pieces[key] == text for key, text in expected.items()),
            "at_once": sum(together[key] == text for key, text in expected.items()),
            "different_answers": len(set(expected.values())),
            "seeds": drawn[0] == drawn[1] != drawn[2],
            "stop": said(client, **ask, **greedy, stop=answer[2:4]) == answer[: answer.index(answer[2:4])],
            "max_tokens": answer.startswith(said(client, **ask, temperature=0, max_tokens=3)),
            "errors": [
                refused(client, openai.NotFoundError, model="nobody", question=question),
                refused(client, openai.BadRequestError, **ask, max_tokens=10**6),
                refused(client, openai.BadRequestError, **ask, temperature=-1),
                refused(client, openai.BadRequestError, **ask, extra_body={"temprature": 1}),
            ],
            "answers": {f"{name}: {question}": text for (name, question), text in expected.items()},
        })  # fmt: skip


if __name__ == "__main__":
    main()
