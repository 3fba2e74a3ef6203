"""The training state at one step: copied in memory, written as the files of a checkpoint, and restored.

    model, optimizer ── take ──▶ Snapshot ── files ──▶ checkpoint-100/ ── restore ──▶ model, optimizer
                        copies in memory     beside training

Random numbers depend on (seed, step, device) alone and the order of the examples on (seed, epoch), so the progress of
a run is one integer, and no generator state is saved.

Cost: :meth:`Snapshot.take` copies three times the trained parameters while training waits; writing goes on beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from weitune.errors import NonFiniteError, RunError
from weitune.files.json_files import json_bytes
from weitune.messages import say
from weitune.model.lora.trainable_state import TrainableState
from weitune.model.lora.wrapped_adapter import in_text, in_wrapper
from weitune.run.checkpoint import Checkpoint
from weitune.run.names import OPTIMIZER, STATE

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_HEADER_BYTES, _JSON_BYTES = 160, 16_384
"""Rough sizes of a tensor's entry in a safetensors header, and of the JSON files of a checkpoint."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Copies on the CPU of everything that a run needs to go on after ``step`` steps."""

    step: int
    tensors: Mapping[str, Tensor]
    """What :class:`.TrainableState` saves."""
    config: bytes
    names: tuple[str, str]
    """Names of the files for configuration and tensors."""
    moments: Mapping[str, Tensor]
    """By the parameter's name in the model, a dot and AdamW's name of the moment; none for a parameter that never had
    a gradient (an expert that no token was sent to)."""
    state: Mapping[str, Any]

    @classmethod
    def take(
        cls, step: int, trained: TrainableState, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
    ) -> Snapshot:
        """Copy the trained parameters and the optimizer state. Raises NonFiniteError if a number is not finite."""
        tensors = {name: _copy(tensor) for name, tensor in trained.tensors().items()}
        moments = {
            f"{name}.{moment}": _copy(optimizer.state[parameter][moment])
            for name, parameter in _parameters(trained)
            if parameter in optimizer.state
            for moment in _MOMENTS
        }
        broken = [name for name, tensor in (tensors | moments).items() if not torch.isfinite(tensor).all()]
        if broken:
            raise NonFiniteError("training.snapshot.not_finite", step=step, tensors=len(broken), example=broken[0])
        return cls(step, tensors, trained.config(), trained.files, moments, state)

    @property
    def size_bytes(self) -> int:
        tensors = [*self.tensors.values(), *self.moments.values()]
        return sum(tensor.nbytes + _HEADER_BYTES for tensor in tensors) + _JSON_BYTES

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Yield name and contents of every file of the checkpoint; one at a time is in memory."""
        yield self.names[0], self.config
        yield self.names[1], save(dict(self.tensors), metadata={"format": "pt"})
        yield OPTIMIZER, save(dict(self.moments))
        state = {"step": self.step, **self.state}
        yield STATE, json_bytes(state, allow_nan=False)


def restore(checkpoint: Checkpoint, trained: TrainableState, optimizer: torch.optim.Optimizer) -> None:
    """Load the tensors and the optimizer state of ``checkpoint`` into ``trained`` and ``optimizer``, bit by bit.

    Raises RunError, naming every tensor that does not fit, before anything has changed.
    """
    file = trained.files[1]
    if not (checkpoint.folder / file).is_file():
        raise RunError("training.snapshot.no_file", folder=checkpoint.folder, file=file)
    text = in_text(load_file(checkpoint.folder / file), trained.names)
    tensors = trained.completed(in_wrapper(text, trained.names))
    moments = in_text(load_file(checkpoint.folder / OPTIMIZER), trained.names)
    parameters = {name: each for name, each in _parameters(trained) if f"{name}.{_MOMENTS[0]}" in moments}
    shapes = {
        f"{name}.{moment}": torch.Size() if moment == "step" else parameter.shape
        for name, parameter in parameters.items()
        for moment in _MOMENTS
    }
    _check_fit(checkpoint, file, tensors, trained.shapes())
    _check_fit(checkpoint, OPTIMIZER, moments, shapes)
    trained.load(tensors)
    for name, parameter in parameters.items():
        state = {moment: moments[f"{name}.{moment}"] for moment in _MOMENTS}
        optimizer.state[parameter] = {
            moment: each.to(parameter.device) if moment == "step" else each.to(parameter)  # once some were in 16 bits
            for moment, each in state.items()
        }


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _parameters(trained: TrainableState) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in trained.model.named_parameters() if parameter.requires_grad]


def _check_fit(
    checkpoint: Checkpoint, file: str, saved: Mapping[str, Tensor], expected: Mapping[str, torch.Size]
) -> None:
    problems = [say("training.snapshot.missing", name=name) for name in expected.keys() - saved.keys()]
    problems += [say("training.snapshot.unknown", name=name) for name in saved.keys() - expected.keys()]
    problems += [
        say("training.snapshot.other_shape", name=name, shape=tuple(saved[name].shape), expected=tuple(expected[name]))
        for name in expected.keys() & saved.keys()
        if saved[name].shape != expected[name]
    ]
    if problems:
        raise RunError(
            "training.snapshot.does_not_fit",
            file=checkpoint.folder / file,
            tensors=len(problems),
            problems="\n  ".join(sorted(problems)[:10]),
        )
