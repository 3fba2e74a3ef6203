"""A judge: a model behind an OpenAI-compatible endpoint that says which of two answers is better.

Judges favour one position (Zheng et al., arXiv 2306.05685), so each pair is shown twice, the second time swapped. An
answer wins if it wins both times; anything else is a tie and counts half.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from weitune.errors import InputError, first_line
from weitune.evaluate.evaluation import Evaluation, WinRate
from weitune.evaluate.intervals import share_interval
from weitune.generate.openai_client import OpenAIClient
from weitune.progress import Progress

Verdict = Literal["tuned", "base", "tie"]
_TIMEOUT_SECONDS = 120
_INSTRUCTION = """\
Two assistants have answered the same message. Judge which answer is better as an answer to it{criterion}. \
The order of the answers means nothing. Reply with one word only: A, B or TIE.

[message]
{question}
{reference}
[answer A]
{a}

[answer B]
{b}"""


def ask_endpoint(url: str, model: str, key: str | None) -> Callable[[str], str]:
    """Return a function that sends one message to ``url`` (such as ``http://localhost:8000/v1``) and returns the reply.

    It raises InputError if the endpoint does not answer as the OpenAI API does.
    """
    client = OpenAIClient(url, key, timeout_seconds=_TIMEOUT_SECONDS, proxies=True)

    def ask(message: str) -> str:
        body = {"model": model, "temperature": 0, "max_tokens": 8, "messages": [{"role": "user", "content": message}]}
        try:
            with client.post("/chat/completions", body) as response:
                text: str = json.load(response)["choices"][0]["message"]["content"]
        except (InputError, OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
            raise InputError("evaluate.judge.no_usable_answer", url=url, reason=first_line(error)) from None
        return text or ""

    return ask


def judge_answers(evaluation: Evaluation, ask: Callable[[str], str], judge: str, progress: Progress) -> WinRate:
    """Return how often ``judge`` (its name), asked through ``ask``, prefers the last model's answers to the base's."""
    base, tuned = evaluation.models[0].which, evaluation.models[-1].which
    verdicts = []
    for done, answer in enumerate(evaluation.answers, 1):
        said = answer.said[tuned], answer.said[base]
        verdicts.append(compare_pair(ask, answer.prompt, answer.reference, *said))
        progress(done, len(evaluation.answers))
    return replace(win_rate(verdicts), which=tuned, judge=judge)


def compare_pair(ask: Callable[[str], str], question: str, reference: str | None, tuned: str, base: str) -> Verdict:
    """Return which answer ``ask`` prefers in both orders."""
    first = _verdict(ask(_message(question, reference, tuned, base)))
    second = _verdict(ask(_message(question, reference, base, tuned)))
    if (first, second) == ("A", "B"):
        return "tuned"
    return "base" if (first, second) == ("B", "A") else "tie"


def win_rate(verdicts: Sequence[Verdict]) -> WinRate:
    """Return the win rate of the tuned model with its interval. Raises ValueError if there are no verdicts."""
    pairs, wins, losses = len(verdicts), verdicts.count("tuned"), verdicts.count("base")
    if not pairs:
        raise ValueError("there are no verdicts")
    rate = (wins + (pairs - wins - losses) / 2) / pairs
    low, high = share_interval(wins + (pairs - wins - losses) / 2, pairs)
    return WinRate(pairs, wins, losses, rate, low, high)


def _message(question: str, reference: str | None, a: str, b: str) -> str:
    return _INSTRUCTION.format(
        criterion=", in the manner of the reference" if reference else "",
        question=question,
        reference=f"\n[reference answer]\n{reference}\n" if reference else "",
        a=a,
        b=b,
    )


def _verdict(reply: str) -> str:
    match = re.search(r"\b(A|B|TIE)\b", reply.upper())
    return match[1] if match else "TIE"
