"""The outputs of a GGUF file for a prompt, computed by llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from weitune.export.verify.outputs import ANSWER_TOKENS, Outputs
from weitune.export.verify.prompts import VerificationPrompt
from weitune.generate.llama_cpp import LlamaCpp
from weitune.generate.sampling import Sampling

_AT_ONCE = 4  # prompts that share a pass over the weights
_ALL = 10**6  # more tokens than any vocabulary has
_CERTAIN = 1e9  # added to a logit, it makes its token the likeliest; reported log-probabilities are those before it


class LlamaCppModel:
    """A GGUF model in llama.cpp, with attention in float32, so that what differs is the file."""

    def __init__(self, llama: LlamaCpp, end_of_turn: int, *, framed: bool) -> None:
        """``framed``: the file has the run's template. If not (an adapter's base), prompts are taken as they are."""
        self.engine = f"llama.cpp (xllamacpp {metadata.version('xllamacpp')})"
        self._llama, self._end, self._framed = llama, end_of_turn, framed
        self._adapter = 0 if llama.adapters else None
        self.at_once = llama.slots
        self._free: SimpleQueue[int] = SimpleQueue()
        for slot in range(llama.slots):
            self._free.put(slot)

    def outputs(self, prompt: VerificationPrompt) -> Outputs:
        """Let llama.cpp frame, tokenize and answer the prompt, and measure how likely the taught answer is."""
        with self._slot() as slot:
            tokens = self.prompt_tokens(prompt)
            body = self._llama.body(tokens, Sampling(max_new_tokens=ANSWER_TOKENS), self._adapter)
            answer = self._llama.request("/completion", {**body, "id_slot": slot})
            stopped = answer["stop_type"] == "eos"
            greedy = tuple(answer["tokens"][:-1] if stopped else answer["tokens"])
            return Outputs(tokens, greedy, stopped, self._logprobs(prompt, slot))

    def logprobs(self, prompt: VerificationPrompt) -> tuple[float, ...]:
        with self._slot() as slot:
            return self._logprobs(prompt, slot)

    @contextmanager
    def _slot(self) -> Iterator[int]:
        """Yield a slot to keep from the first token to the last, so that its cache has what came before."""
        slot = self._free.get()
        try:
            yield slot
        finally:
            self._free.put(slot)

    def stops_at(self, token: int) -> bool:
        """Force ``token``, and see whether llama.cpp goes on."""
        forced = {"prompt": [token], "n_predict": 2, "logit_bias": [[token, _CERTAIN]]}
        return bool(self._llama.request("/completion", forced)["stop_type"] == "eos")

    def prompt_tokens(self, prompt: VerificationPrompt) -> tuple[int, ...]:
        """Return the tokens that llama.cpp makes of the prompt's messages."""
        if not self._framed:
            return prompt.prompt_tokens
        rendered = self._llama.request("/apply-template", {"messages": prompt.messages})["prompt"]
        tokenized = {"content": rendered, "add_special": True, "parse_special": True}
        return tuple(self._llama.request("/tokenize", tokenized)["tokens"])

    def _logprobs(self, prompt: VerificationPrompt, slot: int) -> tuple[float, ...]:
        """Force the answer, token by token; the prompt cache makes each cost one token."""
        contexts = ([*prompt.context, *prompt.answer[:at]] for at in range(len(prompt.answer)))
        return tuple(
            self._logprob(context, token, slot) for context, token in zip(contexts, prompt.answer, strict=True)
        )

    def _logprob(self, context: list[int], token: int, slot: int) -> float:
        """Return the log-probability of ``token`` after ``context``.

        llama.cpp reports none for a token that is a part of a character. Such a token is looked up among the likeliest
        ones that llama.cpp reports beside the end-of-turn token.
        """
        own = self._probabilities(context, token, 1, slot)
        if own and own[0]["id"] == token:
            return float(own[0]["logprob"])
        for count in (100, _ALL):
            for other in self._probabilities(context, self._end, count, slot)[0]["top_logprobs"]:
                if other["id"] == token:
                    return float(other["logprob"])
        raise AssertionError(f"llama.cpp does not know the token {token}")

    def _probabilities(self, context: list[int], token: int, count: int, slot: int) -> list[dict[str, Any]]:
        """Force ``token`` after ``context`` and return llama.cpp's probabilities: its own and the ``count`` largest."""
        body = self._llama.body(context, Sampling(max_new_tokens=1), self._adapter)
        forced = {**body, "id_slot": slot, "n_probs": count, "logit_bias": [[token, _CERTAIN]]}
        answer: dict[str, Any] = self._llama.request("/completion", forced)
        probabilities: list[dict[str, Any]] = answer.get("completion_probabilities", [])
        return probabilities


@contextmanager
def open_gguf(model: Path, adapter: Path | None, end_of_turn: int, context_tokens: int) -> Iterator[LlamaCppModel]:
    """Open a GGUF file of the whole model, or of the base with an adapter's beside it."""
    adapters = [adapter] if adapter else []
    with LlamaCpp(model, adapters, slots=_AT_ONCE, context_tokens=context_tokens, exact=True) as llama:
        yield LlamaCppModel(llama, end_of_turn, framed=adapter is None)
