"""``gguf``: one file for llama.cpp and the programs built on it.

:mod:`weitune.gguf.mixture` says which number format each tensor gets. Tensors are read (and merged), reordered,
quantized and written one at a time, those of experts one expert at a time. From a base that is itself a ``.gguf`` file,
the metadata is kept, tensors that neither the adapter nor the type changes are copied, and adapted experts are merged
together, which takes the memory of all experts of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gguf import GGMLQuantizationType, LlamaFileType
from weitune.errors import ModelError
from weitune.export.source.base_weights import GgufWeights, MergedWeights, Weights
from weitune.export.source.export_source import ExportSource
from weitune.export.source.parameters import Parameters
from weitune.gguf.families.family import Family, Part
from weitune.gguf.families.find import family_of
from weitune.gguf.header import GgufHeader, StoredTensor, read_header
from weitune.gguf.metadata import Field, number, text
from weitune.gguf.mixture import Mixture
from weitune.gguf.quantize import quantized, require_quantizer
from weitune.gguf.types import MIXTURES, GgufType
from weitune.gguf.vocabulary import end_metadata, name_in_file, vocabulary_metadata
from weitune.gguf.writer import TensorPlan, write_gguf_file
from weitune.model.load.weight_files import counted
from weitune.progress import Progress

_FILE_TYPE = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q6_K": LlamaFileType.MOSTLY_Q6_K,
    "Q5_K_M": LlamaFileType.MOSTLY_Q5_K_M,
    "Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
}
_OF_70B = ("llama", "qwen2")
"""Families of which llama.cpp knows a model of 70B parameters."""
_REPLACED_KEYS = ("general.alignment", "general.file_type", "tokenizer.chat_template", "tokenizer.ggml.eo")
_Pieces = Iterable[np.ndarray[Any, Any]]


def base_family(source: ExportSource) -> Family:
    """Return the family of the base of ``source``. Raises ModelError if weitune does not write it."""
    if source.files.gguf and isinstance(source.base, GgufWeights):  # other weights may not be here yet
        return source.base.architecture.family
    return family_of(source.config)


def check_gguf(source: ExportSource) -> None:
    """Raise ModelError if :func:`write_gguf` would, before the long work begins."""
    family = check_description(source)
    if not source.files.gguf:
        _plan(source, family, source.merged, _mixture(source, family, "F32"), {})


def check_description(source: ExportSource) -> Family:
    """Return the family of ``source``. Raises ModelError if GGUF cannot describe its model or tokenizer."""
    family, _ = _described(source, source.template)
    return family


def planned_bytes(source: ExportSource, weights: Weights, gguf_type: GgufType) -> int:
    """Return the size of the tensors that :func:`write_gguf` would write, for a base that is not a ``.gguf`` file."""
    family = family_of(source.config)
    plans = _plan(source, family, weights, _mixture(source, family, gguf_type), {})
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
    importance: Mapping[str, Tensor] | None = None,
) -> None:
    """Write ``weights`` (the base's, or merged) with the tokenizer of ``source`` and the chat ``template``.

    ``head`` is the type of the output head in a Q8_0 or Q4_0 file, and of the embedding if that is the head.
    ``importance`` weighs the columns of matrices, by their names in transformers (:mod:`weitune.gguf.quantize`).

    Raises ModelError if a part of this model cannot be written to GGUF, and MissingExtraError if llama.cpp must
    quantize and is not installed.
    """
    if gguf_type in MIXTURES:
        require_quantizer()
    family, metadata = _described(source, template)
    mixture = _mixture(source, family, gguf_type, head)
    if source.files.gguf:
        plans = _plan_from_gguf(weights, mixture, importance or {})
    else:
        plans = _plan(source, family, weights, mixture, importance or {})
    write_gguf_file(
        path, family.name, {**metadata, "general.file_type": number(_FILE_TYPE[gguf_type])}, plans, progress
    )


def _mixture(source: ExportSource, family: Family, gguf_type: GgufType, head: GgufType = "Q8_0") -> Mixture:
    config = source.config
    maybe_70b = family.name in _OF_70B and config.num_hidden_layers == 80
    experts = family.fields.get("expert_count")
    return Mixture(
        gguf_type,
        config.num_hidden_layers,
        "token_embd.weight" if source.head_is_tied else "output.weight",
        head,
        experts.value if experts else 0,
        is_70b=maybe_70b and config.num_key_value_heads != config.num_attention_heads,
    )


def _described(source: ExportSource, template: str) -> tuple[Family, dict[str, Field]]:
    if "\0" in template:
        raise ModelError("export.gguf_file.null_character")
    family = base_family(source)
    if source.files.gguf:
        return family, {
            **_kept_metadata(read_header(source.files.path)),
            **end_metadata(source.stop_tokens),
            "tokenizer.chat_template": text(template),
        }
    return family, {
        "general.type": text("model"),
        "general.name": text(name_in_file(source.tokenizer, source.name)),
        **family.metadata(),
        "general.quantization_version": number(2),
        **vocabulary_metadata(source.tokenizer, source.config.vocab_size, source.stop_tokens, template),
    }


def _kept_metadata(header: GgufHeader) -> dict[str, Field]:
    return {
        key: Field(entry.value, entry.type, entry.element)
        for key, entry in header.metadata.items()
        if not key.startswith(_REPLACED_KEYS) and key != "general.architecture" and entry.count
    }


def _plan(
    source: ExportSource, family: Family, weights: Weights, mixture: Mixture, importance: Mapping[str, Tensor]
) -> list[TensorPlan]:
    parameters = Parameters(weights, source.layout)
    head_is_tied = source.head_is_tied
    names = [
        name
        for name in parameters.shapes
        if not name.endswith(".inv_freq") and not (head_is_tied and name == "lm_head.weight")
    ]
    parts = {name: family.parts(name) for name in names}
    if unknown := [name for name in names if parts[name] is None]:
        raise ModelError("export.gguf_file.no_place_for_weights", architecture=family.name, **counted(unknown))
    placed = [(name, part) for name in names for part in parts[name] or ()]
    mixture = mixture.over(part.name for _, part in placed)
    plans = []
    for name, part in placed:
        becomes = tuple(part.of(torch.empty(parameters.shapes[name], device="meta")).shape)
        form = mixture.format_of(part.name, becomes)
        plans.append(TensorPlan(part.name, becomes, form, _reading(parameters, name, part, form, importance.get(name))))
    for name, factors in family.computed.items():
        plans.append(TensorPlan(name, tuple(factors.shape), GGMLQuantizationType.F32, _constant(factors.numpy())))
    return plans


def _reading(
    parameters: Parameters, name: str, part: Part, form: GGMLQuantizationType, importance: Tensor | None
) -> Callable[[], _Pieces]:
    moved = None if importance is None else part.of_importance(importance)
    return lambda: (quantized(part.of(piece), form, moved) for piece in parameters.pieces(name))


def _constant(values: np.ndarray[Any, Any]) -> Callable[[], _Pieces]:
    return lambda: [values]


def _plan_from_gguf(weights: Weights, mixture: Mixture, importance: Mapping[str, Tensor]) -> list[TensorPlan]:
    """Plan the tensors of a base file, in its order; those that transformers does not know are copied."""
    base, updates = (weights.base, weights.updates) if isinstance(weights, MergedWeights) else (weights, {})
    assert isinstance(base, GgufWeights)  # noqa: S101  (the callers check that the base is a .gguf file)
    mixture = mixture.over(tensor.name for tensor in base.tensors)
    plans = []
    for tensor in base.tensors:
        name = base.architecture.parameter_of(tensor.name)
        form = mixture.format_of(tensor.name, tensor.shape)
        moved = _moved(base, importance, name, tensor.name)
        if name is not None and name in updates:
            read = _rereading(base, weights, name, tensor.name, form, moved)
        elif form == tensor.type or (name is None and len(tensor.shape) == 1):
            form, read = tensor.type, _copying(tensor)
        else:
            read = _requantizing(tensor, form, moved)
        plans.append(TensorPlan(tensor.name, tensor.shape, form, read))
    return plans


def _moved(base: GgufWeights, importance: Mapping[str, Tensor], name: str | None, tensor: str) -> Tensor | None:
    """Return the importance of the columns of the parameter ``name`` in the order of ``tensor`` in the base file."""
    if name is None or name not in importance:
        return None
    return base.architecture.importance_to_gguf(name, importance[name], tensor)


def _rereading(
    base: GgufWeights, weights: Weights, name: str, tensor: str, form: GGMLQuantizationType, importance: Tensor | None
) -> Callable[[], _Pieces]:
    def pieces() -> _Pieces:
        return [quantized(base.architecture.to_gguf(name, weights.read(name, torch.float32), tensor), form, importance)]

    return pieces


def _requantizing(tensor: StoredTensor, form: GGMLQuantizationType, importance: Tensor | None) -> Callable[[], _Pieces]:
    return lambda: (quantized(piece, form, importance) for piece in tensor.pieces())


def _copying(tensor: StoredTensor) -> Callable[[], _Pieces]:
    return lambda: [np.frombuffer(tensor.content, np.uint8)]
