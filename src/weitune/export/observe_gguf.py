"""What a GGUF file does with a probe, observed in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from weitune.export.observe import ANSWER_TOKENS, Observation, Subject
from weitune.export.probes import Probe
from weitune.generate.llama_cpp import LlamaCpp
from weitune.generate.sampling import Sampling

_CERTAIN = 1e9  # added to a logit, it makes its token the likeliest; reported log-probabilities are those before it


class LlamaCppSubject:
    """A GGUF model in llama.cpp, with attention in float32, so that what differs is the file."""

    def __init__(self, llama: LlamaCpp, *, framed: bool) -> None:
        """``framed``: the file has the run's template. If not (an adapter's base), prompts are taken as they are."""
        self.engine = f"llama.cpp (xllamacpp {metadata.version('xllamacpp')})"
        self._llama, self._framed = llama, framed
        self._adapter = 0 if llama.adapters else None

    def observe(self, probe: Probe) -> Observation:
        """Let llama.cpp frame, tokenize and answer the probe, and tell how likely the taught answer is."""
        prompt = self._prompt(probe)
        body = self._llama.body(prompt, Sampling(max_new_tokens=ANSWER_TOKENS), self._adapter)
        answer = self._llama.request("/completion", body)
        stopped = answer["stop_type"] == "eos"
        greedy = tuple(answer["tokens"][:-1] if stopped else answer["tokens"])
        return Observation(prompt, greedy, stopped, self._logprobs(probe))

    def stops_at(self, token: int) -> bool:
        """Force ``token``, and see whether llama.cpp goes on."""
        forced = {"prompt": [token], "n_predict": 2, "logit_bias": [[token, _CERTAIN]]}
        return bool(self._llama.request("/completion", forced)["stop_type"] == "eos")

    def _prompt(self, probe: Probe) -> tuple[int, ...]:
        if not self._framed:
            return probe.prompt
        rendered = self._llama.request("/apply-template", {"messages": probe.messages})["prompt"]
        tokenized = {"content": rendered, "add_special": True, "parse_special": True}
        return tuple(self._llama.request("/tokenize", tokenized)["tokens"])

    def _logprobs(self, probe: Probe) -> tuple[float, ...]:
        """Force the answer, token by token; the prompt cache makes each cost one token."""
        found = []
        for at, token in enumerate(probe.answer):
            body = self._llama.body(
                [*probe.context, *probe.answer[:at]], Sampling(max_new_tokens=1), self._adapter
            )  # fmt: skip
            forced = {**body, "n_probs": 1, "logit_bias": [[token, _CERTAIN]]}
            found.append(self._llama.request("/completion", forced)["completion_probabilities"][0]["logprob"])
        return tuple(found)


@contextmanager
def gguf_subject(model: Path, adapter: Path | None, *, context_tokens: int) -> Iterator[Subject]:
    """Open a GGUF file of the whole model, or of the base with an adapter's beside it."""
    adapters = [adapter] if adapter else []
    with LlamaCpp(model, adapters, context_tokens=context_tokens, exact=True) as llama:
        yield LlamaCppSubject(llama, framed=adapter is None)
