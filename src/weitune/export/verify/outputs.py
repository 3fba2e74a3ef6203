"""What a model does with a probe, in the engine it is for: transformers here, llama.cpp in :mod:`.outputs_gguf`.

Both sides of a comparison give :class:`Outputs` values; :mod:`.compare` compares them without knowing the engine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from weitune.export.source.export_source import ExportSource
from weitune.export.verify.prompts import VerificationPrompt
from weitune.generate.open_model import attach_saved_adapter
from weitune.model.load.locate import ModelFiles
from weitune.model.load.stop_tokens import loaded_stop_tokens
from weitune.model.load.tokenizer import load_tokenizer
from weitune.model.load.weights import load_weights

ANSWER_TOKENS = 48
"""Greedy answers are compared this far."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one engine did with one probe."""

    prompt: tuple[int, ...]
    """The tokens that its own template and tokenizer make of the probe's messages."""
    greedy: tuple[int, ...]
    """The likeliest answer, without the token that ended it."""
    stopped: bool
    """Whether the answer ended by itself, within :data:`ANSWER_TOKENS`."""
    logprobs: tuple[float, ...]
    """Log-probability of every token of the taught answer, given those before it."""
    margins: tuple[float, ...] = ()
    """How far the likeliest token was ahead of the second, in log-probability, at every step of the greedy answer."""

    def ended_at(self, tokens: Collection[int]) -> Outputs:
        """Return what would have been observed if the answer ended at ``tokens`` too."""
        at = next((i for i, token in enumerate(self.greedy) if token in tokens), None)
        return self if at is None else replace(self, greedy=self.greedy[:at], stopped=True)


class Subject(Protocol):
    """A model in an engine."""

    engine: str
    at_once: int
    """How many probes it can be asked at the same time, from threads."""

    def observe(self, probe: VerificationPrompt) -> Outputs:
        """Try ``probe``."""

    def stops_at(self, token: int) -> bool:
        """Tell whether an answer ends at ``token``."""


class TransformersSubject:
    """A model in transformers, with its adapter beside the weights or without one."""

    at_once = 1

    def __init__(self, model: Any, prompt_of: Any, stop_tokens: Iterable[int]) -> None:
        """``prompt_of`` returns the tokens of a probe; answers end at ``stop_tokens``."""
        from transformers import GenerationConfig, __version__

        self.engine = f"transformers {__version__}"
        self.model, self._prompt_of, self._stop_tokens = model, prompt_of, frozenset(stop_tokens)
        model.generation_config = GenerationConfig()  # `generate` would fill in the base's own sampling

    @property
    def dtype(self) -> torch.dtype:
        """The number format that the model computes in."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def observe(self, probe: VerificationPrompt) -> Outputs:
        """Generate greedily, and read the log-probabilities of the taught answer in one forward pass."""
        prompt = tuple(self._prompt_of(probe))
        greedy, margins = self._greedy(prompt)
        end = next((i for i, token in enumerate(greedy) if token in self._stop_tokens), None)
        return Outputs(prompt, greedy[:end], end is not None, self._logprobs(probe), margins)

    def stops_at(self, token: int) -> bool:
        """Tell whether ``token`` is one of the stop tokens."""
        return token in self._stop_tokens

    def _greedy(self, prompt: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[float, ...]]:
        from transformers import GenerationConfig

        config = GenerationConfig(
            max_new_tokens=ANSWER_TOKENS, do_sample=False, eos_token_id=sorted(self._stop_tokens),
            pad_token_id=min(self._stop_tokens), output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        ids = torch.tensor([prompt], device=self.model.device)
        output = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        best = torch.stack([logits[0].float().topk(2).values for logits in output.logits])  # (steps, 2)
        return tuple(output.sequences[0, len(prompt) :].tolist()), tuple((best[:, 0] - best[:, 1]).tolist())

    def _logprobs(self, probe: VerificationPrompt) -> tuple[float, ...]:
        ids = torch.tensor([probe.context + probe.answer], device=self.model.device)
        with torch.inference_mode():
            logits = self.model(ids, logits_to_keep=len(probe.answer) + 1, use_cache=False).logits[0, :-1]
        chosen = logits.float().log_softmax(-1).gather(1, ids[0, -len(probe.answer) :, None])
        return tuple(chosen[:, 0].tolist())


def reference(tuned: ExportSource) -> TransformersSubject:
    """Return the run itself: its base, loaded as for training, with the adapter beside the weights."""
    precision = tuned.recipe.train.precision
    model = load_weights(tuned.files, tuned.tokenizer, precision=precision).model
    adapted = attach_saved_adapter(model, tuned.adapter_folder).eval()
    return TransformersSubject(adapted.get_base_model(), lambda probe: probe.prompt, tuned.stop_tokens)


@contextmanager
def merged_subject(folder: Path, tuned: ExportSource) -> Iterator[Subject]:
    """Open a merged export as anybody would: its weights, its tokenizer, its chat template, its stop tokens."""
    files = ModelFiles(folder)
    tokenizer = load_tokenizer(files)
    model = load_weights(files, tokenizer, precision=tuned.recipe.train.precision).model

    def prompt_of(probe: VerificationPrompt) -> list[int]:
        ids: list[int] = tokenizer.apply_chat_template(probe.messages, add_generation_prompt=True, return_dict=False)
        return ids

    yield TransformersSubject(model, prompt_of, loaded_stop_tokens(model))
