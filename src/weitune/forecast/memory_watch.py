"""Warn about low memory before the OOM killer acts.

    before loading    the weights alone are larger than all free memory    an error, with both numbers
    before step 1     the largest pass may not fit in what is free         a warning: it is an estimate
    after each step   nearly nothing was left at the peak                  a warning, once, and a checkpoint
    out of memory     the allocator failed                                 an error

Every message names what is needed, what is free, and the recipe keys that lower the need.
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
from weitune.forecast.memory_estimate import MemoryEstimate, ModelShape, PassConfig, PassSize, pass_bytes
from weitune.messages import say
from weitune.messages.quantities import memory_text
from weitune.model.load.config import dtype_on_disk, read_config
from weitune.model.load.device import choose_dtype, stored_dtype
from weitune.model.load.published import dense_tensors, keeps_bitsandbytes, quantization_of
from weitune.model.load.weight_files import stored_weights, weight_files
from weitune.model.load.weights import LoadedModel, load_weights, unpacked_whole
from weitune.model.storage.host_memory import host_memory
from weitune.ranks import local_world_size
from weitune.recipe.schema import Storage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from weitune.model.load.locate import ModelFiles

_SCARCE = 0.03
"""Share of all memory; if less is left, memory is nearly used up."""
_SHOWN_BYTES = 50 << 20
"""Parts of less memory are left out of the first line."""
_LEAST_BYTES = {"int8": 1.0, "nf4": 0.5}
"""Bytes of a number in quantized storage: a lower bound, since some layers are not quantized."""
_CPU_ALLOCATOR = ("can't allocate memory", "not enough memory")
"""Parts of the messages of PyTorch's CPU allocator, which raises a plain RuntimeError."""


def weight_numbers(files: ModelFiles) -> int:
    """Return how many numbers a model's weight files hold once they are dequantized, by their headers.

    Of weights that stay quantized it is a lower bound: as many as would have the bytes of the files in float32.
    """
    if files.gguf:
        from weitune.gguf.header import read_header

        return sum(prod(tensor.shape) for tensor in read_header(files.path).tensors.values())
    if keeps_bitsandbytes(files.folder):
        return sum(weight.bytes for weight in stored_weights(files.folder).values()) // torch.float32.itemsize
    return sum(prod(tensor.shape) for tensor in dense_tensors(files.folder).values())


def load_if_it_fits(
    files: ModelFiles,
    tokenizer: PreTrainedTokenizerFast,
    precision: str,
    device: torch.device,
    spread: bool = False,
    storage: Storage = "auto",
    shards: int = 1,
) -> LoadedModel:
    """Load a model's weights (:func:`.load_weights`). Raises ModelError if they do not fit in memory."""
    dtype = stored_dtype(storage, choose_dtype(precision, device))
    whole = int(weight_numbers(files) * _LEAST_BYTES.get(storage, dtype.itemsize))
    need = whole // shards
    if shards > 1 and unpacked_whole(files, dtype):
        _check_unpacked(files, whole, dtype)
    there = host_memory().available if shards == 1 else free_bytes(device)  # parts are not shared, mapped files are
    if device.type == "cpu" and need > there:  # an accelerator's driver raises an error instead of killing the process
        raise _too_large(files, dtype, need, device)
    try:
        return load_weights(
            files, tokenizer, precision=precision, storage=storage, device=device, spread=spread, shards=shards
        )
    except ModelError as error:
        if error.__cause__ is not None and is_out_of_memory(error.__cause__):
            raise _too_large(files, dtype, need, device) from error
        raise


def _check_unpacked(files: ModelFiles, whole: int, dtype: torch.dtype) -> None:
    """Raise ModelError if this machine's memory does not hold the ``whole`` weights once for each of its processes."""
    processes, free = local_world_size(), host_memory().available
    if dtype == torch.float32 and not files.gguf and quantization_of(files.folder) is None:  # widened part by part
        stored = dtype_on_disk(read_config(files)) or dtype
        whole = whole * stored.itemsize // dtype.itemsize
    if whole * processes > free:
        raise ModelError(
            "forecast.memory_watch.unpacked_by_each_process",
            folder=files.folder,
            processes=processes,
            need=memory_text(whole * processes),
            free=memory_text(free),
        )


def _too_large(files: ModelFiles, dtype: torch.dtype, need: int, device: torch.device) -> ModelError:
    sizes = {"folder": files.folder, "need": memory_text(need), "free": memory_text(free_bytes(device))}
    if dtype == torch.float32:
        return ModelError("forecast.memory_watch.float32_weights_too_large", **sizes)
    return ModelError("forecast.memory_watch.weights_too_large", **sizes, dtype=str(dtype).removeprefix("torch."))


@dataclass(frozen=True, slots=True)
class PassNeed:
    """Memory that the largest forward and backward pass of a run is expected to take, and what is needed besides."""

    size: PassSize
    bytes: int
    """Of the pass."""
    beside: int
    """Bytes that training will allocate once, besides its passes, and has not allocated yet."""

    @classmethod
    def estimate(cls, shape: ModelShape, config: PassConfig, size: PassSize, beside: int) -> PassNeed:
        return cls(size, sum(pass_bytes(shape, size, config)), beside)

    def values(self) -> dict[str, object]:
        """Return the values that messages about the need have in common."""
        return {"tokens": self.size.tokens, "pass_size": memory_text(self.bytes), "fix": self.fix}

    @property
    def fix(self) -> str:
        """The keys that lower the need; only the first may change when a run is resumed."""
        if self.size.tokens > self.size.least:
            return say("forecast.memory_watch.lower_micro_tokens", tokens=self.size.tokens)
        return say("forecast.memory_watch.lower_max_length", longest=self.size.least)


def peak_line(need: MemoryEstimate, device: torch.device) -> str:
    """Return a line about the memory that a run takes at its peak, by part."""
    parts = {name: size for name, size in need.named_parts().items() if size >= _SHOWN_BYTES}
    shown = ", ".join(f"{name} {memory_text(size)}" for name, size in parts.items())
    return say(
        "forecast.memory_watch.peak", total=memory_text(need.total), parts=shown, free=memory_text(free_bytes(device))
    )


def published_line(files: ModelFiles, need: MemoryEstimate, storage: Storage) -> str:
    """Return a line about the size of a base that was published quantized, in ``storage``; nothing for another one."""
    published = None if files.gguf else quantization_of(files.folder)
    if published is None:
        return ""
    values = {"kind": published.name, "storage": storage, "size": memory_text(need.weights)}
    if not any(files.folder.glob("*.safetensors")):  # for a plan, the weights of a hub's model are not downloaded
        return say("forecast.memory_watch.published", **values)
    disk = memory_text(sum(path.stat().st_size for path in weight_files(files.folder)))
    return say("forecast.memory_watch.published_on_disk", **values, disk=disk)


class MemoryWatch:
    """Warns before the first step and after each step if memory is short."""

    def __init__(self, need: PassNeed, device: torch.device) -> None:
        self._need, self._device, self._warned = need, device, False

    def forecast_warning(self) -> str:
        """Return a warning, before the first step, that a run may not fit in memory; nothing if it fits."""
        free, beside = free_bytes(self._device), self._need.beside
        if self._need.bytes + beside <= free:
            return ""
        values = {**self._need.values(), "free": memory_text(free)}
        if not beside:
            return say("forecast.memory_watch.may_not_fit", **values)
        return say("forecast.memory_watch.may_not_fit_beside_others", **values, beside=memory_text(beside))

    def low_memory(self) -> str:
        """Return a warning that the machine's memory is nearly used up, once; nothing otherwise."""
        if self._warned:
            return ""
        memory = host_memory()
        peak = peak_bytes(torch.device("cpu"))
        left = memory.available - (peak - resident_bytes())  # what was left when the step was at its peak
        if left > _SCARCE * memory.total:
            return ""
        self._warned = True
        values = {**self._need.values(), "left": memory_text(max(left, 0)), "total": memory_text(memory.total)}
        return say("forecast.memory_watch.nearly_used_up", **values)

    @contextmanager
    def explained(self, command: str) -> Iterator[None]:
        """Raise RunError if memory runs out in the block; ``command`` is the one that resumes the run."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(
                "forecast.memory_watch.out_of_memory",
                error=first_line(error),
                free=memory_text(free_bytes(self._device)),
                command=command,
                **self._need.values(),
            ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` is how Python or PyTorch report that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_ALLOCATOR)
