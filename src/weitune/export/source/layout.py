"""Where the parameters of a model lie in its files.

transformers has other names for some parameters than the files, and stacks, splits or transposes others while it loads:

    model.layers.0.mlp.experts.0.gate_proj.weight  (I, C)  ─┐
    model.layers.0.mlp.experts.0.up_proj.weight    (I, C)  ─┼─▶  model.layers.0.mlp.experts.gate_up_proj  (E, 2I, C)
    model.layers.0.mlp.experts.1.gate_proj.weight  (I, C)  ─┤
    …                                                      ─┘

It keeps its rules as lists of renamings and of reversible operations, one list for each family. A :class:`Place` is
what these rules convert together: one tensor as a rule; where experts are stacked, the matrices of a single expert, so
that no more than these are in memory. Parameters have the names of the text model. Tensors of a tower, and those that
transformers does not load, belong to none.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from weitune.errors import ModelError, first_line
from weitune.model.load.config import read_config
from weitune.model.load.locate import ModelFiles
from weitune.model.load.names import ModelNames, model_names
from weitune.model.load.text_model import empty_model
from weitune.model.lora.experts import ExpertParameter, expert_parameters

if TYPE_CHECKING:
    from transformers.core_model_loading import WeightConverter


@dataclass(frozen=True, slots=True)
class Place:
    """Tensors of the files that are converted together, and the parameters that they become."""

    files: tuple[str, ...]
    """Names of the tensors in the files."""
    parameters: tuple[str, ...]
    expert: int | None = None
    """The index along the first dimension of the parameter, if the tensors are those of a single expert."""
    conversion: Conversion | None = None
    """None if the one tensor is the one parameter."""

    def to_model(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the parameters that ``tensors``, in the order of :attr:`files`, become; of an expert, shape (1, …)."""
        if self.conversion is None:
            return {self.parameters[0]: tensors[0]}
        return self.conversion.forward(dict(zip(self.files, tensors, strict=True)))

    def to_files(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors by their names in the files: the inverse of :meth:`to_model`."""
        if self.conversion is None:
            return {self.files[0]: parameters[self.parameters[0]]}
        return self.conversion.backward(parameters)


@dataclass(frozen=True, slots=True)
class Conversion:
    """One of transformers' conversions, for the tensors of one place."""

    converter: WeightConverter
    model: Any
    parameter: str
    """The first parameter that it makes."""
    patterns: Mapping[str, str]
    """The converter's pattern that each tensor of the files matches."""
    renamed: Mapping[str, str]
    """The name of each tensor between renaming and conversion; for any expert, that of the first expert's."""

    def forward(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        converter = copy.deepcopy(self.converter)
        for name, tensor in tensors.items():
            converter.collected_tensors[self.patterns[name]].append(tensor)
        return _single(converter.convert(self.parameter, model=self.model, config=self.model.config))

    def backward(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        reverse = self.converter.reverse_transform()
        first = ""
        for name, tensor in parameters.items():
            first, pattern = reverse.rename_source_key(name)
            reverse.collected_tensors[pattern].append(tensor)
        tensors = _single(reverse.convert(first, model=self.model, config=self.model.config))
        return {name: tensors[renamed] for name, renamed in self.renamed.items()}


def _single(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in tensors.items()}


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of all tensors of a model's files, and what an adapter's names mean in the model."""

    places: Mapping[str, Place]
    """By the names of the tensors in the files."""
    experts: tuple[ExpertParameter, ...] = ()
    names: ModelNames = field(default_factory=ModelNames)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of the text model's parameters; empty for a base that is a ``.gguf`` file."""

    def in_model(self, module: str) -> str:
        """Return the text model's name of an adapted ``module``, which may have the wrapper's name."""
        return self.names.taken_as_text(module) or module


def layout_of(files: ModelFiles, tensors: Iterable[str]) -> Layout:
    """Return the layout of a model whose files have ``tensors``. Raises ModelError if transformers does not know it."""
    if files.gguf:  # renamed when they are read
        places = {name: Place((name,), (name,)) for name in tensors}
        has_experts = any(".experts." in name for name in places)
        return Layout(places, tuple(expert_parameters(_empty(files))) if has_experts else ())
    model = _empty(files)
    names = model_names(files)
    named = names.in_files(tensors)
    text = {name: text for name, text in named.items() if text is not None}
    towers = {name: Place((name,), ()) for name, text in named.items() if text is None}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.state_dict().items()}
    return Layout({**towers, **_places_of(model, text)}, tuple(expert_parameters(model)), names, shapes)


def _empty(files: ModelFiles) -> Any:
    try:
        return empty_model(copy.deepcopy(read_config(files)))
    except Exception as error:
        raise ModelError("export.layout.no_model", folder=files.folder, reason=first_line(error)) from error


class _Named(NamedTuple):
    """A tensor of the files, its name after the renamings, and the pattern of the conversion that takes it."""

    file: str
    renamed: str
    pattern: str | None


def _places_of(model: Any, names: Mapping[str, str]) -> dict[str, Place]:
    """Return the place of each tensor of the files; ``names`` has those that files of the text ``model`` alone have."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        apply_renamings,
        dot_natural_key,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix, parameters = model.base_model_prefix, model.state_dict()
    places: list[Place] = []
    becoming: dict[str, list[_Named]] = {}
    for file, name in sorted(names.items(), key=lambda item: dot_natural_key(item[1])):  # as transformers stacks them
        parameter, pattern = rename_source_key(name, renamings, converters, prefix, parameters)
        if parameter not in parameters and name in parameters:  # a name that no rule should have changed
            parameter, pattern = name, None
        if parameter not in parameters:  # of a layer that transformers leaves out, as those that predict more tokens
            places.append(Place((file,), ()))
            continue
        becoming.setdefault(parameter, []).append(_Named(file, apply_renamings(name, renamings), pattern))
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    for parameter, tensors in becoming.items():
        places += _places(model, parameter, tensors, by_pattern.get(tensors[0].pattern or ""))
    return {name: place for place in places for name in place.files}


def _places(
    model: Any, parameter: str, tensors: Sequence[_Named], converter: WeightConverter | None
) -> Iterable[Place]:
    if converter is None:
        return [Place((tensor.file,), (parameter,)) for tensor in tensors]
    patterns = {tensor.file: str(tensor.pattern) for tensor in tensors}
    made = tuple(parameter.replace(converter.target_patterns[0], each) for each in converter.target_patterns)
    columns = [[each for each in tensors if each.pattern == pattern] for pattern in converter.source_patterns]
    experts = list(zip(*columns, strict=False))
    if not _stacks_experts(converter) or len(experts) * len(columns) != len(tensors):
        renamed = {tensor.file: tensor.renamed for tensor in tensors}
        return [Place(tuple(renamed), made, None, Conversion(converter, model, parameter, patterns, renamed))]
    first = {each.pattern: each.renamed for each in experts[0]}
    return [
        Place(
            tuple(each.file for each in expert),
            made,
            index,
            Conversion(converter, model, parameter, patterns, {each.file: first[each.pattern] for each in expert}),
        )
        for index, expert in enumerate(experts)
    ]


def _stacks_experts(converter: WeightConverter) -> bool:
    """Return whether ``converter`` stacks the matrices of experts, each of which can be converted alone."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    first, *others = converter.operations
    stacked = isinstance(first, MergeModulelist) and first.dim == 0 and len(converter.target_patterns) == 1
    return stacked and all(isinstance(each, Concatenate) and each.dim > 0 for each in others)
