"""A frozen base divided among the processes of a run, by torch's ``fully_shard`` (FSDP, arXiv 2304.11277).

                process 0    process 1
    matrices    first rows   last rows    gathered while their unit is computed: a layer, the embeddings, the head
    vectors     all          all
    adapters    all          all          their gradients are averaged, as without sharding

FSDP's hooks gather a module when its own forward runs; other code that reads its weights does so within
:func:`gathered`. Every process must reach the same units in the same order, or all wait forever.

Cost: 1/n of the matrices in memory and, for a moment, the largest unit twice; each layer is sent twice a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from weitune.errors import ModelError
from weitune.model.decoder_of import decoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shard(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> None:
    """Put this process's part of the matrices of ``model``, and all of the rest, on ``device``, at least in ``dtype``.

    Weights may be mapped from their files: one unit at a time is read. A head that is tied to the embeddings gets its
    own matrix; both are frozen. Raises ModelError if the model has no list of decoder layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and head.weight is embeddings.weight:
        head.weight = nn.Parameter(embeddings.weight.detach(), requires_grad=False)
    # PEFT takes this name of a mesh as a sign that the layers keep their shapes.
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),), mesh_dim_names=("fsdp",))
    for unit in _units(model):
        _place(unit, device, dtype)
        vectors = {parameter for parameter in unit.parameters() if parameter.dim() < 2}
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=vectors)
    _place(model, device, dtype)


@contextmanager
def gathered(module: Any) -> Iterator[None]:
    """Gather the weights of ``module`` for the block, if it is a unit of :func:`shard`."""
    gather(module)
    try:
        yield
    finally:
        release(module)


def gather(module: Any) -> None:
    """Gather the weights of ``module``, if it is a unit of :func:`shard` and they are not gathered yet."""
    if hasattr(module, "unshard"):
        module.unshard()


def release(module: Any) -> None:
    """Free what :func:`gather` has gathered."""
    if hasattr(module, "reshard"):
        module.reshard()


def held_numbers(parameter: nn.Parameter) -> int:
    """Return how many numbers of ``parameter`` this process holds between passes."""
    local = getattr(parameter, "to_local", None)
    return int((local() if local else parameter).numel())


def gathered_bytes(model: PreTrainedModel) -> int:
    """Return the bytes for gathering the largest unit: those that the processes send, and the matrices made of them."""
    return 2 * max(sum(p.numel() * p.element_size() for p in unit.parameters()) for unit in _units(model))


def _units(model: PreTrainedModel) -> list[nn.Module]:
    layers = getattr(decoder_of(model), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError("model.shard.no_layers")
    head = model.get_output_embeddings()
    return [model.get_input_embeddings(), *layers, *([head] if head is not None else [])]


def _place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move what is not sharded to ``device``, and convert weights narrower than ``dtype``."""
    for parameter in module.parameters():
        if not hasattr(parameter, "to_local"):
            to = torch.promote_types(parameter.dtype, dtype)
            parameter.data = parameter.data.to(device, to, copy=parameter.dim() < 2)  # a copy releases the mapped file
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            setattr(owner, name, buffer.to(device))
