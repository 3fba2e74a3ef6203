"""What rounding to a file's number format must change, so that an export is not blamed for it.

Both sides of a comparison compute in float32. In bfloat16, a layer rounds its output before the adapter's update is
added to it and again afterwards, so updates below half a unit of the output vanish; the merged file has them. After
three steps of training, that alone moved log-probabilities by 0.33 on average, and the file by 0.00.

A merged file in a narrower format than float32 is compared with base + adapter whose weights were merged by PEFT and
rounded in the same way. The two differ only where a sum is so near the middle between two numbers of the format that
its last bit in float32 decides, in about one weight of 2¹⁵ for bfloat16: an error of about √2⁻¹⁵ of the rounding's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from weitune.export.formats.merged import written_slots
from weitune.export.source.export_source import ExportSource
from weitune.export.verify.compare import Bounds, differences, divergences
from weitune.export.verify.outputs import Computing, Outputs
from weitune.forecast.device_memory import free_bytes
from weitune.messages import say
from weitune.model.load.device import choose_device, device_map

_SHARE = 0.05
"""Share of what rounding costs by which an export may differ on top: several times what ties cause."""
_MARGIN = 10
"""A bound for the margin is so many times that for the mean difference, as for every format."""
_ROOM = 1.15
"""Memory of a model in float32 with its activations, as a multiple of its weights."""


def choose_computing(source: ExportSource) -> Computing:
    """Return float32 where there is memory for it, on the accelerator or the CPU; else what the run trained in."""
    slots = source.base.slots.values()
    needed = int(_ROOM * 4 * sum(torch.Size(slot.shape).numel() for slot in slots if slot.dtype.is_floating_point))
    device = choose_device()
    if device.type != "cpu":
        spread = device_map(device, spread=True) == "auto"
        devices = (
            [torch.device(device.type, i) for i in range(torch.accelerator.device_count())] if spread else [device]
        )
        if sum(map(free_bytes, devices)) >= needed:
            return Computing("fp32")
    if free_bytes(torch.device("cpu")) >= needed or source.recipe.train.precision == "fp32":
        return Computing("fp32", torch.device("cpu"))
    return Computing(source.recipe.train.precision)


def narrower_formats(source: ExportSource, dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """Return the format in a merged file of each parameter of the text model, if it is narrower than float32.

    ``dtype`` is the format that was asked for.
    """
    slots = written_slots(source.base.slots, dtype)
    written = {
        parameter: slots[name].dtype
        for name, place in source.layout.places.items()
        for parameter in place.parameters
        if slots[name].dtype.is_floating_point
    }
    return {name: form for name, form in written.items() if form.itemsize < torch.float32.itemsize}


def merge_rounded(model: nn.Module, formats: Mapping[str, torch.dtype]) -> None:
    """Let PEFT merge the adapter of ``model`` into its float32 weights, and round each to its format."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
    for name, parameter in model.named_parameters():
        if dtype := formats.get(name.replace(".base_layer", "")):
            parameter.data = parameter.data.to(dtype).to(parameter.dtype)


@dataclass(frozen=True, slots=True)
class RoundingCost:
    """How far rounding alone moves the outputs of base + adapter."""

    mean: float
    """Mean absolute difference of the taught tokens' log-probabilities."""
    largest: float
    same_answers: int
    answers: int

    @classmethod
    def between(cls, exact: Sequence[Outputs], rounded: Sequence[Outputs]) -> RoundingCost:
        each = [difference for difference, _, _ in differences(exact, rounded)]
        same = len(exact) - len(divergences(exact, rounded))
        return cls(sum(each) / len(each), max(each), same, len(exact))

    def widened(self, bounds: Bounds) -> Bounds:
        """Return ``bounds``, those of float32, with room for weights that lie between two numbers of the format."""
        more = _SHARE * self.mean
        return Bounds(bounds.mean_difference + more, bounds.margin + _MARGIN * more, bounds.perplexity + more)

    def note(self, formats: Mapping[str, torch.dtype]) -> str:
        """Return the cost for people."""
        names = sorted({str(dtype).removeprefix("torch.") for dtype in formats.values()})
        return say("export.rounding.cost", formats=", ".join(names), cost=self)
