"""Fit a GGUF file to the run's data before it is quantized.

    all quantized types     channels are smoothed (:mod:`.smoothing`)
    Q8_0                    the head is tried
    Q6_K, Q5_K_M, Q4_K_M    the columns of every matrix get an importance: the mean square of their inputs, which
                            llama.cpp's quantizer weighs its errors with

Both are measured on the same dialogues, in one pass of base + adapter over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from weitune.errors import InputError
from weitune.export.measure import DIALOGUES, measure, within
from weitune.export.smoothing import FAMILIES, LEVELS, Channels, SmoothedWeights, channels_of, head_loss
from weitune.export.source.base_weights import Weights
from weitune.export.source.export_source import ExportSource
from weitune.export.verify.outputs import open_reference
from weitune.export.verify.prompts import choose_prompts
from weitune.export.verify.rounding import choose_computing
from weitune.gguf.types import MIXTURES, GgufType
from weitune.messages import say
from weitune.progress import Stage

HEAD_LOSS = 0.02
"""Mean error of log-probabilities that a Q8_0 head may cause: a fifth of what a Q8_0 file may differ."""
_PARTS_OF_ADAPTERS = (".base_layer", ".lora_")


class Fitted(NamedTuple):
    """What to write to a GGUF file."""

    weights: Weights
    head: GgufType = "Q8_0"
    """The type of the output head: F16 where rounding it and its input alone costs too much."""
    importance: Mapping[str, Tensor] = {}
    """Of the columns of parameters, shape (in,)."""
    notes: Sequence[str] = ()

    @property
    def smoothed(self) -> bool:
        return isinstance(self.weights, SmoothedWeights)


def fitted(source: ExportSource, gguf_type: GgufType, stage: Stage, *, smooth: bool = True) -> Fitted:
    """Return the merged weights of ``source``, fitted to its data for ``gguf_type``.

    They are left as they are for a type that is not quantized, and if there is no dialogue to measure on. Only models
    of families whose channels are known are smoothed, and no base that is a ``.gguf`` file: most of it is copied.
    """
    channels = list(_channels(source)) if smooth and gguf_type in LEVELS else []
    if not channels and gguf_type not in MIXTURES:
        return Fitted(source.merged)
    try:
        prompts, notes = choose_prompts(source, DIALOGUES)
    except InputError:
        prompts, notes = [], []
    if not prompts:
        return Fitted(source.merged, notes=[say("export.fit.no_dialogue")])
    model = open_reference(source, choose_computing(source)).model
    inputs = dict(_inputs(source, model)) if gguf_type in MIXTURES else {}
    modules = [*(each.input_of[0] for each in channels), *inputs.values()]
    measured = measure(model, modules, within(prompts), stage(say("export.fit.measuring")))
    importance = {name: measured.sizes[module].square() for name, module in inputs.items()}
    if not channels:
        return Fitted(source.merged, importance=importance, notes=notes)
    weights = SmoothedWeights(source.merged, channels, measured.sizes, gguf_type, stage(say("export.fit.smoothing")))
    if gguf_type != "Q8_0":
        smoothed = {
            name: values / weights.factors.get(name, torch.ones(1)).square() for name, values in importance.items()
        }
        return Fitted(weights, importance=smoothed, notes=notes)
    name = "model.embed_tokens.weight" if source.head_is_tied else "lm_head.weight"
    loss = head_loss(
        measured, source.merged.read(name), weights.factors.get(name), stage(say("export.fit.trying_head"))
    )
    return Fitted(weights, "F16" if loss > HEAD_LOSS else "Q8_0", notes=notes)


def _channels(source: ExportSource) -> Iterator[Channels]:
    """Yield the channels that can be smoothed: none of a text model in a wrapper, whose files name it otherwise."""
    if source.config.model_type not in FAMILIES or source.files.gguf:
        return
    channels = list(channels_of(source.config, head_is_tied=source.head_is_tied))
    if all(f"{module}.weight" in source.merged.slots for each in channels for module in each.input_of):
        yield from channels


def _inputs(source: ExportSource, model: Any) -> Iterator[tuple[str, str]]:
    """Yield the parameters whose columns can be weighed, and the module whose input each multiplies.

    Those are linear layers, and the first matrices of experts, which are weighed by the inputs of all experts together.
    What enters an expert's last matrix cannot be seen from outside.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear | BaseTunerLayer) and getattr(module, "in_features", None) is not None
        if linear and name != "lm_head" and not any(part in name for part in _PARTS_OF_ADAPTERS):
            yield f"{name}.weight", name
    for expert in source.layout.experts:
        if expert.name.startswith("gate"):
            yield expert.full_name, expert.module
