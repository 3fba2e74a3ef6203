"""``gguf``: one file for llama.cpp and the programs built on it.

    matrices            in the requested type
    norms and biases    always F32, as llama.cpp requires
    embedding, head     at least Q8_0, because their error affects every token; the head F16 on request
    rows that are no multiple of 32 values cannot be quantized, and are F16

Tensors are read (and merged), reordered, quantized and written one at a time. From a base that is itself a ``.gguf``
file, the metadata is kept, and tensors that neither the adapter nor the type changes are copied.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.quants import quantize

from gguf import GGMLQuantizationType, LlamaFileType
from weitune.errors import ModelError
from weitune.export.source.base_weights import GgufWeights, MergedWeights, Weights
from weitune.export.source.export_source import ExportSource
from weitune.gguf.architecture import Architecture, architecture_of, architecture_of_gguf
from weitune.gguf.header import GgufHeader, StoredTensor, read_header
from weitune.gguf.metadata import Field, number, rope_factors, shape_metadata, text
from weitune.gguf.types import BLOCK, GgufType
from weitune.gguf.vocabulary import end_metadata, vocabulary_metadata
from weitune.gguf.writer import TensorPlan, write_gguf_file
from weitune.model.load.weight_files import counted
from weitune.progress import Progress

_FILE_TYPE = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
}
_REPLACED_KEYS = ("general.file_type", "tokenizer.chat_template", "tokenizer.ggml.eo")


def base_architecture(source: ExportSource) -> Architecture:
    """Return the architecture of the base of ``source``. Raises ModelError if weitune does not write it."""
    if source.files.gguf:
        return architecture_of_gguf(read_header(source.files.path))
    if source.whole_config.get_text_config() is not source.whole_config:
        wrapper = (source.whole_config.architectures or [type(source.whole_config).__name__])[0]
        raise ModelError("export.gguf_file.wrapped", wrapper=wrapper)
    return architecture_of(source.config)


def check_gguf(source: ExportSource) -> None:
    """Raise ModelError if :func:`write_gguf` would, before the long work begins."""
    architecture = check_description(source)
    if not source.files.gguf:
        _plan(source, architecture, source.merged, "F32", "F32")


def check_description(source: ExportSource) -> Architecture:
    """Return the architecture of ``source``. Raises ModelError if GGUF cannot describe its model or tokenizer."""
    architecture, _ = _described(source, source.template)
    return architecture


def planned_bytes(source: ExportSource, weights: Weights, gguf_type: GgufType) -> int:
    """Return the size of the tensors that :func:`write_gguf` would write, for a base that is not a ``.gguf`` file."""
    plans = _plan(source, architecture_of(source.config), weights, gguf_type, "Q8_0")
    return sum(plan.bytes for plan in plans)


def write_gguf(
    path: Path,
    source: ExportSource,
    weights: Weights,
    gguf_type: GgufType,
    *,
    template: str,
    progress: Progress,
    head: GgufType = "Q8_0",
) -> None:
    """Write ``weights`` (the base's, or merged) with the tokenizer of ``source`` and the chat ``template``.

    ``head`` is the type of the output head in a quantized file, and of the embedding if that is the head.

    Raises ModelError if a part of this model cannot be written to GGUF.
    """
    architecture, metadata = _described(source, template)
    if source.files.gguf:
        plans = _plan_from_gguf(weights, gguf_type)
    else:
        plans = _plan(source, architecture, weights, gguf_type, head)
    write_gguf_file(
        path, architecture.name, {**metadata, "general.file_type": number(_FILE_TYPE[gguf_type])}, plans, progress
    )


def _described(source: ExportSource, template: str) -> tuple[Architecture, dict[str, Field]]:
    if "\0" in template:
        raise ModelError("export.gguf_file.null_character")
    architecture = base_architecture(source)
    if source.files.gguf:
        return architecture, {
            **_kept_metadata(read_header(source.files.path)),
            **end_metadata(source.stop_tokens),
            "tokenizer.chat_template": text(template),
        }
    return architecture, {
        "general.type": text("model"),
        "general.name": text(source.name),
        **shape_metadata(architecture.name, source.config),
        "general.quantization_version": number(2),
        **vocabulary_metadata(source.tokenizer, source.config.vocab_size, source.stop_tokens, template),
    }


def _kept_metadata(header: GgufHeader) -> dict[str, Field]:
    return {
        key: Field(entry.value, entry.type, entry.element)
        for key, entry in header.metadata.items()
        if not key.startswith(_REPLACED_KEYS) and key != "general.architecture"
    }


def _plan(
    source: ExportSource, architecture: Architecture, weights: Weights, gguf_type: GgufType, head: GgufType
) -> list[TensorPlan]:
    tied = source.config.tie_word_embeddings
    head_stem = "token_embd" if tied else "output"
    plans = []
    unknown = []
    for name, slot in weights.slots.items():
        module, _, kind = name.rpartition(".")
        if (name == "lm_head.weight" and tied) or kind == "inv_freq":
            continue
        stem = architecture.gguf_name(module)
        if stem is None:
            unknown.append(name)
            continue
        stored = _stored_type(stem, slot.shape, gguf_type, head if stem == head_stem else "Q8_0")
        plans.append(TensorPlan(f"{stem}.{kind}", slot.shape, stored, _reading(architecture, weights, name, stored)))
    if unknown:
        raise ModelError("export.gguf_file.no_place_for_weights", architecture=architecture.name, **counted(unknown))
    factors = rope_factors(source.config)
    if factors is not None:
        values = factors.numpy()
        plans.append(TensorPlan("rope_freqs.weight", values.shape, GGMLQuantizationType.F32, lambda: values))
    return plans


def _reading(
    architecture: Architecture, weights: Weights, name: str, stored: GGMLQuantizationType
) -> Callable[[], np.ndarray[Any, Any]]:
    def read() -> np.ndarray[Any, Any]:
        tensor = weights.read(name, torch.float32)
        values: np.ndarray[Any, Any] = quantize(architecture.to_gguf(name, tensor).numpy(), stored)
        return values

    return read


def _plan_from_gguf(weights: Weights, gguf_type: GgufType) -> list[TensorPlan]:
    """Plan the tensors of a base file, in its order; those that transformers does not know are copied."""
    base, updates = (weights.base, weights.updates) if isinstance(weights, MergedWeights) else (weights, {})
    assert isinstance(base, GgufWeights)  # noqa: S101  (the callers check that the base is a .gguf file)
    plans = []
    for tensor in base.tensors:
        name = base.architecture.huggingface_name(tensor.name)
        stored = _stored_type(tensor.name.removesuffix(".weight"), tensor.shape, gguf_type)
        if name is None or (name not in updates and stored == tensor.type):
            plans.append(TensorPlan(tensor.name, tensor.shape, tensor.type, _copying(tensor)))
        else:
            plans.append(
                TensorPlan(tensor.name, tensor.shape, stored, _reading(base.architecture, weights, name, stored))
            )
    return plans


def _copying(tensor: StoredTensor) -> Callable[[], np.ndarray[Any, Any]]:
    return lambda: np.frombuffer(tensor.content, np.uint8)


def _stored_type(stem: str, shape: tuple[int, ...], wanted: GgufType, outer: GgufType = "Q8_0") -> GGMLQuantizationType:
    """Return the type of a tensor in a file of type ``wanted``; ``outer`` is that of the embedding and the head."""
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if not wanted.startswith("Q"):
        return GGMLQuantizationType[wanted]
    if shape[-1] % BLOCK:
        return GGMLQuantizationType.F16
    if stem in {"token_embd", "output"}:
        return GGMLQuantizationType[outer]
    return GGMLQuantizationType[wanted]
