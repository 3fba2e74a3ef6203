"""The sizes of activations inside base + adapter, measured on dialogues of the run's data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from weitune.export.verify.prompts import VerificationPrompt
from weitune.progress import Progress

DIALOGUES = 64
"""To measure on, at most."""
_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Measurement:
    """Activations of base + adapter on dialogues of the run's data."""

    sizes: Mapping[str, Tensor]
    """Root mean square of the inputs of modules, shape (in,), by the modules' names."""
    hidden_states: Tensor
    """Input of the head before each taught token, shape (n, in)."""
    taught: Tensor
    """Those tokens, shape (n,)."""


def within(prompts: Sequence[VerificationPrompt]) -> Sequence[VerificationPrompt]:
    """Return as many of ``prompts``, at even distances, as :data:`_TOKENS` tokens of the first ones make."""
    ends = accumulate(len(prompt.context + prompt.answer) for prompt in prompts)
    count = max(1, sum(end <= _TOKENS for end in ends))
    return prompts[:: len(prompts) // count][:count]


def measure(
    model: Any, modules: Iterable[str], prompts: Sequence[VerificationPrompt], progress: Progress
) -> Measurement:
    """Run ``model``, base + adapter in transformers, on ``prompts``; measure what enters its ``modules`` and head."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, values: Tensor) -> None:  # values: (…, in)
        rows = values.float().flatten(0, -2)
        squares = rows.square().sum(0)
        sums[name] = sums[name] + squares if name in sums else squares
        counts[name] = counts.get(name, 0) + len(rows)

    def adding(name: str) -> Any:
        return lambda module, inputs: add(name, inputs[0])

    names = dict.fromkeys(name for name in modules if name != "lm_head")
    hooks = [model.get_submodule(name).register_forward_pre_hook(adding(name)) for name in names]
    states = []
    try:
        with torch.inference_mode():
            for done, prompt in enumerate(prompts, 1):
                ids = torch.tensor([prompt.context + prompt.answer], device=model.device)
                entering = model.model(ids, use_cache=False).last_hidden_state  # without the head and its logits
                add("lm_head", entering)
                states.append(entering[0, -len(prompt.answer) - 1 : -1].float().cpu())
                progress(done, len(prompts))
    finally:
        for hook in hooks:
            hook.remove()
    sizes = {name: (total / counts[name]).sqrt().cpu() for name, total in sums.items()}
    return Measurement(sizes, torch.cat(states), torch.tensor([token for prompt in prompts for token in prompt.answer]))
