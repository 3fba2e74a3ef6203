"""A model's outputs for a prompt: computed by transformers here, by llama.cpp in :mod:`.outputs_gguf`.

Both sides of a comparison give :class:`Outputs`; :mod:`.compare` compares them without knowing the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from weitune.export.source.export_source import ExportSource
from weitune.export.verify.prompts import VerificationPrompt
from weitune.generate.open_model import attach_saved_adapter
from weitune.model.load.config import loaded_stop_tokens
from weitune.model.load.locate import ModelFiles
from weitune.model.load.names import model_names
from weitune.model.load.tokenizer import load_tokenizer
from weitune.model.load.weights import load_weights


class Computing(NamedTuple):
    """How both sides of a comparison compute."""

    precision: str = "fp32"
    """As ``train.precision``."""
    device: torch.device | None = None
    """None leaves the choice to the loader."""


ANSWER_TOKENS = 48
"""How many tokens of greedy answers are compared."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of one engine for one prompt."""

    prompt_tokens: tuple[int, ...]
    """The tokens that its own template and tokenizer make of the prompt's messages."""
    greedy: tuple[int, ...]
    """The likeliest answer, without the token that ended it."""
    stopped: bool
    """Whether the answer ended by itself, within :data:`ANSWER_TOKENS`."""
    logprobs: tuple[float, ...]
    """Log-probability of every token of the taught answer, given those before it."""
    margins: tuple[float, ...] = ()
    """How far the likeliest token was ahead of the second, in log-probability, at every step of the greedy answer."""

    def ended_at(self, tokens: Collection[int]) -> Outputs:
        """Return the outputs as they would be if the answer ended at ``tokens`` too."""
        at = next((i for i, token in enumerate(self.greedy) if token in tokens), None)
        return self if at is None else replace(self, greedy=self.greedy[:at], stopped=True)


class EngineModel(Protocol):
    """A model in an engine."""

    engine: str
    at_once: int
    """How many prompts it can take at the same time, from threads."""

    def outputs(self, prompt: VerificationPrompt) -> Outputs:
        """Answer ``prompt``."""

    def logprobs(self, prompt: VerificationPrompt) -> tuple[float, ...]:
        """Return the log-probability of every token of the taught answer, given those before it."""

    def stops_at(self, token: int) -> bool:
        """Return whether an answer ends at ``token``."""


class TransformersModel:
    """A model in transformers, with its adapter beside the weights or without one."""

    at_once = 1

    def __init__(
        self, model: Any, tokens_of: Callable[[VerificationPrompt], Sequence[int]], stop_tokens: Iterable[int]
    ) -> None:
        """``tokens_of`` returns the tokens of a prompt; answers end at ``stop_tokens``."""
        from transformers import GenerationConfig, __version__

        self.engine = f"transformers {__version__}"
        self.model, self._tokens_of, self._stop_tokens = model, tokens_of, frozenset(stop_tokens)
        model.generation_config = GenerationConfig()  # `generate` would fill in the base's own sampling

    @property
    def dtype(self) -> torch.dtype:
        """The number format that the model computes in."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def outputs(self, prompt: VerificationPrompt) -> Outputs:
        """Generate greedily, and measure how likely the taught answer is."""
        tokens = tuple(self._tokens_of(prompt))
        greedy, margins = self._greedy(tokens)
        end = next((i for i, token in enumerate(greedy) if token in self._stop_tokens), None)
        return Outputs(tokens, greedy[:end], end is not None, self.logprobs(prompt), margins)

    def stops_at(self, token: int) -> bool:
        return token in self._stop_tokens

    def _greedy(self, tokens: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[float, ...]]:
        from transformers import GenerationConfig

        ends = {"eos_token_id": sorted(self._stop_tokens), "pad_token_id": min(self._stop_tokens)}
        config = GenerationConfig(
            max_new_tokens=ANSWER_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True, **ends
        )
        ids = torch.tensor([tokens], device=self.model.device)
        output = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        best = torch.stack([logits[0].float().topk(2).values for logits in output.logits])  # (steps, 2)
        return tuple(output.sequences[0, len(tokens) :].tolist()), tuple((best[:, 0] - best[:, 1]).tolist())

    def logprobs(self, prompt: VerificationPrompt) -> tuple[float, ...]:
        """Read them in one forward pass."""
        ids = torch.tensor([prompt.context + prompt.answer], device=self.model.device)
        with torch.inference_mode():
            logits = self.model(ids, logits_to_keep=len(prompt.answer) + 1, use_cache=False).logits[0, :-1]
        chosen = logits.float().log_softmax(-1).gather(1, ids[0, -len(prompt.answer) :, None])
        return tuple(chosen[:, 0].tolist())


def open_reference(source: ExportSource, computing: Computing) -> TransformersModel:
    """Return base + adapter: the base with the adapter beside its weights."""
    precision, device = computing
    model = load_weights(source.files, source.tokenizer, precision=precision, device=device).model
    adapted = attach_saved_adapter(model, source.adapter_folder, model_names(source.files)).eval()
    return TransformersModel(adapted.get_base_model(), lambda prompt: prompt.prompt_tokens, source.stop_tokens)


def open_merged(folder: Path, computing: Computing) -> TransformersModel:
    """Open a merged export as anybody would: its weights, its tokenizer, its chat template, its stop tokens."""
    files = ModelFiles(folder)
    tokenizer = load_tokenizer(files)
    model = load_weights(files, tokenizer, precision=computing.precision, device=computing.device).model

    def tokens_of(prompt: VerificationPrompt) -> list[int]:
        ids: list[int] = tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, return_dict=False)
        return ids

    return TransformersModel(model, tokens_of, loaded_stop_tokens(model))
