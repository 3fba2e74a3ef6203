"""The likelihood of every token of an answer, measured one by one.

llama.cpp reports a character that several tokens make up as one, with the likelihood of the last of them. So each place
is asked for again: its prompt is in the cache, and another token is forced there, which has a whole text. The reported
likelihoods are those before any forcing. Cost: about as much as generating the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weitune.generate.llama_cpp import Completion, LlamaCpp

_LIKELIEST = 1000
"""Tokens among which that of the answer is looked up."""
_UNLIKELY = -9999.0
"""The protocol's value for a token that is not among them."""


def likelihoods(
    llama: LlamaCpp, body: Mapping[str, Any], tokens: Sequence[int], first: int, forced: int, completion: Completion
) -> list[Mapping[str, Any]]:
    """Return the likelihood of each of ``tokens``, the answer to ``body``, from number ``first`` on, as the engine
    reports it.

    ``forced`` is a token with a whole text. Ends early once ``completion`` is closed.
    """
    found: list[Mapping[str, Any]] = []
    asked = {
        **body, "n_predict": 1, "samplers": ["top_k"], "top_k": 1, "logit_bias": [[forced, 1000.0]], "stop": [],
        "stream": False, "n_probs": _LIKELIEST, "cache_prompt": True,
    }  # fmt: skip
    for at, token in enumerate(tokens[first:], first):
        if completion.closed.is_set():
            break
        answer = llama.request("/completion", {**asked, "prompt": [*body["prompt"], *tokens[:at]]})
        likeliest = answer["completion_probabilities"][0]["top_logprobs"]
        own = next((other for other in likeliest if other["id"] == token), None)
        unlikely = {"id": token, "token": "", "bytes": [], "logprob": _UNLIKELY}
        found.append({**(own or unlikely), "top_logprobs": likeliest[: body["n_probs"]]})
    return found
