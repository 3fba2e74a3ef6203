"""Say that memory will not do before the system kills the process without a word.

    before loading    weights alone larger than all that can be had        refuse, with both numbers
    before step 1     the largest forward pass estimated above what is free    say so, and go on: it is an estimate
    after each step   nearly nothing left at the last peak                 say so, once, and write a checkpoint
    out of memory     the allocator said no                                 the error, with the keys that lower the need

Every message names what was needed, what there was, and the recipe keys that lower it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch

from weitune.errors import ModelError, RunError, first_line
from weitune.forecast.device_memory import free_bytes, peak_bytes, resident_bytes
from weitune.forecast.host_memory import host_memory
from weitune.forecast.memory_estimate import MemoryEstimate, ModelShape, PassConfig, PassSize, pass_bytes
from weitune.model.load.device import choose_device, choose_dtype, stored_dtype
from weitune.model.load.weight_files import stored_weights
from weitune.model.load.weights import LoadedModel, load_weights
from weitune.recipe.schema import Storage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from weitune.model.load.locate import ModelFiles

_SCARCE = 0.03
"""Share of all memory below which what is left counts as nearly nothing."""
_GIB = 1 << 30
_LEAST_BYTES = {"int8": 1.0, "nf4": 0.5}
"""Bytes of a number in quantized storage, were there no layers that stay as they are."""
_REFUSALS = ("can't allocate memory", "not enough memory")
"""What torch's allocator for the CPU says."""


def weight_numbers(files: ModelFiles) -> int:
    """Return how many numbers a model's weight files hold, by their headers."""
    if files.gguf:
        from weitune.gguf.header import read_header

        return sum(prod(tensor.shape) for tensor in read_header(files.path).tensors.values())
    return sum(weight.numel for weight in stored_weights(files.folder).values())


def load_if_it_fits(
    files: ModelFiles,
    tokenizer: PreTrainedTokenizerFast,
    precision: str,
    device: str | None,
    storage: Storage = "auto",
    shards: int = 1,
) -> LoadedModel:
    """Load a model's weights (:func:`.load_weights`). Raises ModelError if memory will not do."""
    target = choose_device(device)
    dtype = stored_dtype(storage, choose_dtype(precision, target))
    need = int(weight_numbers(files) * _LEAST_BYTES.get(storage, dtype.itemsize)) // shards
    there = host_memory().available if shards == 1 else free_bytes(target)  # parts are not shared, mapped files are
    if target.type == "cpu" and need > there:  # an accelerator's driver says no without killing
        raise _too_large(files, dtype, need, target)
    try:
        return load_weights(files, tokenizer, precision=precision, storage=storage, device=device, shards=shards)
    except ModelError as error:
        if error.__cause__ is not None and is_out_of_memory(error.__cause__):
            raise _too_large(files, dtype, need, target) from error
        raise


def _too_large(files: ModelFiles, dtype: torch.dtype, need: int, device: torch.device) -> ModelError:
    name = str(dtype).removeprefix("torch.")
    bf16 = "use --train.storage bf16 (half the memory), " if dtype == torch.float32 else ""
    return ModelError(
        "forecast.memory_watch.weights_need_free",
        folder=files.folder,
        gib=_gib(need),
        name=name,
        gib2=_gib(free_bytes(device)),
        bf16=bf16,
    )


@dataclass(frozen=True, slots=True)
class PassNeed:
    """What the largest forward and backward pass of a run is expected to take, and what must be had beside it."""

    size: PassSize
    bytes: int
    """Of the pass."""
    beside: int
    """Bytes that training takes once, and has not taken yet."""

    @classmethod
    def estimate(cls, shape: ModelShape, config: PassConfig, size: PassSize, beside: int) -> PassNeed:
        """Return the need of a pass of ``size``, with ``beside`` bytes that training has yet to allocate."""
        return cls(size, sum(pass_bytes(shape, size, config)), beside)

    @property
    def tokens(self) -> int:
        """Tokens of the pass."""
        return self.size.tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return self.size.longest

    def __str__(self) -> str:
        """Return the estimate and what it is made of."""
        return f"one forward pass of {self.tokens:,} tokens takes about {_gib(self.bytes)}"

    @property
    def fix(self) -> str:
        """The keys that lower the need; only the first may change when a run goes on."""
        if self.tokens > self.longest:
            return (
                f"Lower train.micro_tokens below {self.tokens:,} (a run may go on with another value). "
                "train.recompute block lowers the need too."
            )
        return (
            f"The longest example has {self.longest:,} tokens and makes the pass that large: in a new run, lower "
            "tokens.max_length. train.recompute block lowers the need too."
        )


def peak_line(need: MemoryEstimate, device: torch.device) -> str:
    """Return a line about the memory that a run will take at its peak, by part."""
    parts = {name: size for name, size in need.parts().items() if size >= _GIB / 20}
    shown = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in parts.items())
    return f"memory: about {_gib(need.total)} at the peak ({shown}); {_gib(free_bytes(device))} are free now"


class MemoryWatch:
    """Looks after each step whether memory nearly ran out."""

    def __init__(self, need: PassNeed, device: torch.device) -> None:
        """Watch over a run with this ``need``."""
        self._need, self._device, self._told = need, device, False

    def foreseen(self) -> str:
        """Return what to say before the first step, or nothing."""
        free = free_bytes(self._device)
        if self._need.bytes + self._need.beside <= free:
            return ""
        beside = f", weights and training states another {_gib(self._need.beside)}" if self._need.beside else ""
        return f"memory may not do: {self._need}{beside}, and {_gib(free)} are free. {self._need.fix}"

    def scarce(self) -> str:
        """Return what to say now, or nothing; it says it once. Memory of the machine only."""
        if self._told:
            return ""
        memory = host_memory()
        peak = peak_bytes(torch.device("cpu"))
        left = memory.available - (peak - resident_bytes())  # what was left when the step was at its peak
        if left > _SCARCE * memory.total:
            return ""
        self._told = True
        return (
            f"memory is nearly used up: at its peak, a step leaves {_gib(max(left, 0))} of {_gib(memory.total)}; "
            f"{self._need}. The system may kill this run. {self._need.fix}"
        )

    @contextmanager
    def explained(self, command: str) -> Iterator[None]:
        """Raise RunError, with all that is known, if memory runs out in the block; ``command`` goes on with the run."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            said = first_line(error, "no more memory")
            free = _gib(free_bytes(self._device))
            raise RunError(
                "forecast.memory_watch.memory_ran_out_free",
                said=said,
                need=self._need,
                free=free,
                fix=self._need.fix,
                command=command,
            ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` is how Python or torch say that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _REFUSALS)


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
