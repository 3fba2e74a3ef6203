"""How much memory a computation takes at its peak, without doing it.

PyTorch's fake tensors have a shape, a format and a device, but no numbers: a model of any size, made of them, runs
forward and backward in no memory. :class:`LiveBytes` adds up what would be allocated while it runs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MOST_OPERATIONS = 15_000
"""An operation takes 100 to 400 microseconds."""
_EXPERTS = 16
"""Experts that tokens go to, if the experts are computed one by one: each takes many operations."""


class TooManyOperations(Exception):  # noqa: N818  (it ends a measurement, and is no error)
    """A computation has more than MOST_OPERATIONS."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made within the block and still exist.

    Memory that several tensors share is counted once, that of ``before`` and of views of it not at all, nor what an
    operator allocates and frees inside. Raises TooManyOperations.
    """

    def __init__(self, before: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._before = {tensor.untyped_storage()._cdata for tensor in before}
        self.now = 0
        self._peak = 0
        self._operations = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # which is asked for twice as often as anything is computed
        self._operations += 1
        if self._operations > MOST_OPERATIONS:
            raise TooManyOperations
        made = _SHAPES.get(function, function)(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return made

    def peak(self) -> int:
        """Return the most bytes since the last call of this method."""
        peak, self._peak = self._peak, self.now
        return peak

    def _count(self, storage: Any) -> None:
        address = storage._cdata
        if address in self._sizes or address in self._before:
            return
        self._sizes[address] = storage.nbytes()
        weakref.finalize(storage, self._freed, address)
        self.now += self._sizes[address]
        self._peak = max(self._peak, self.now)

    def _freed(self, address: int) -> None:
        self.now -= self._sizes.pop(address)


def _grouped_product(a: Tensor, b: Tensor, offsets: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """Return the shape of ``torch._grouped_mm``, whose own function for shapes accepts 16 bits alone."""
    if a.dim() == 2 and b.dim() == 2:
        assert offsets is not None  # noqa: S101  (the operator demands it)
        return a.new_empty(len(offsets), a.shape[0], b.shape[1])
    return a.new_empty(*a.shape[:-1], b.shape[-1])


def _spread_evenly(chosen: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """Return counts, which are real, as if tokens had chosen the first few of ``minlength`` experts equally often."""
    with unset_fake_temporarily():
        counts = torch.zeros(minlength, dtype=torch.long)
        counts[:_EXPERTS] = len(chosen) // min(minlength, _EXPERTS)
        counts[0] += len(chosen) - counts.sum()
        return counts


def _zeros(_high: int, size: list[int], **_: Any) -> Tensor:
    with unset_fake_temporarily():
        return torch.zeros(size, dtype=torch.long)


def _number(tensor: Tensor) -> Any:
    with unset_fake_temporarily():
        return torch.ops.aten._local_scalar_dense.default(tensor)


_SHAPES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten._grouped_mm.default: _grouped_product,
    torch.ops.aten.bincount.default: _spread_evenly,
    torch.ops.aten.randint.default: _zeros,
    torch.ops.aten._local_scalar_dense.default: _number,
}
"""Operators that fake tensors lack, or whose numbers the host reads."""


def make_fake(model: nn.Module, fake: FakeTensorMode) -> None:
    """Replace every parameter and buffer of ``model``, which may be on the meta device, by a fake tensor on the CPU."""
    made: dict[int, tuple[Tensor, Tensor]] = {}

    def like(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            made[id(tensor)] = (tensor, empty)  # the tensor is kept, so that no other gets its id
        return made[id(tensor)][1]

    with fake:
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        held[name] = like(tensor)  # type: ignore[assignment]
