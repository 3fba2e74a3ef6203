"""Experts are written to GGUF one at a time: the file is that of the whole parameters, the memory that of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gguf import GGMLQuantizationType, GGUFReader
from tests.export.formats.gguf_families import FAMILIES, VARIANTS
from tests.export.formats.test_gguf_families import family_run
from tests.export.runs import silent
from weitune import Run
from weitune.export.formats.gguf_file import base_family, write_gguf
from weitune.export.source.base_weights import Weights
from weitune.export.source.export_source import ExportSource, open_export_source
from weitune.export.source.parameters import Parameters
from weitune.forecast.live_memory import LiveBytes
from weitune.gguf.quantize import quantized
from weitune.gguf.types import GgufType
from weitune.recipe.load import dump_recipe
from weitune.recipe.schema import Lora

pytest.importorskip("xllamacpp")

MIXTURES = (
    "qwen2_moe", "qwen3_moe", "mixtral", "olmoe", "granitemoe", "gpt_oss", "deepseek_v3", "minimax_m2", "glm4_moe",
    "qwen3_next", "lfm2_moe", "qwen3_5_moe_text", "gemma4_text_26b",
)  # fmt: skip
EXPERTS = Lora(r=2, experts=True)


def write(source: ExportSource, weights: Weights, path: Path, gguf_type: GgufType) -> dict[str, Any]:
    """Write ``weights`` as a GGUF file and return its tensors."""
    write_gguf(path, source, weights, gguf_type, template=source.template, progress=silent(""))
    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def whole(source: ExportSource, weights: Weights, name: str) -> Tensor:
    """Return a parameter with the matrices of all its experts, in float32."""
    places = {id(place): place for place in source.layout.places.values() if name in place.parameters}.values()
    read = [place.to_model([weights.read(file, torch.float32) for file in place.files])[name] for place in places]
    if all(place.expert is None for place in places):
        [parameter] = read
        return parameter
    stacked = torch.empty(source.layout.shapes[name])
    for place, (matrix,) in zip(places, read, strict=True):
        assert place.expert is not None
        stacked[place.expert] = matrix
    return stacked


def written_whole(source: ExportSource, weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the tensor that a part of each parameter of experts becomes, all experts together."""
    family = base_family(source)
    for parameter in source.layout.experts:
        for part in family.parts(parameter.full_name) or ():
            yield part.name, part.of(whole(source, weights, parameter.full_name))


@pytest.mark.parametrize("lora", [Lora(r=2), EXPERTS], ids=["attention", "experts"])
@pytest.mark.parametrize("name", MIXTURES)
def test_the_file_is_that_of_the_whole_parameters(name: str, lora: Lora, tmp_path: Path) -> None:
    overrides = FAMILIES[name] if name in FAMILIES else VARIANTS[name][1]
    source = open_export_source(family_run(tmp_path, name, overrides, lora))
    for gguf_type in ("F32", "F16", "BF16", "Q8_0", "Q4_0"):
        tensors = write(source, source.merged, tmp_path / f"{gguf_type}.gguf", gguf_type)
        expected = dict(written_whole(source, source.merged))
        assert len(expected) >= 2
        for tensor_name, values in expected.items():
            stored = tensors[tensor_name]
            assert np.array_equal(stored.data.view(np.uint8), quantized(values, stored.tensor_type).view(np.uint8))
            assert tuple(reversed(stored.shape.tolist())) == values.shape


class AllocatedBytes(LiveBytes):
    """Leaves out tensors without numbers, which tell shapes."""

    def _count(self, storage: Any) -> None:
        if storage.device.type != "meta":
            super()._count(storage)


def wide_run(folder: Path, name: str, lora: Lora = EXPERTS, **more: Any) -> Run:
    """Write a run of a mixture whose rows are as long as a block of llama.cpp's own formats."""
    sizes = {"num_local_experts": 16, "hidden_size": 256, "head_dim": 32, "intermediate_size": 256}
    return family_run(folder, name, {"num_hidden_layers": 1, **sizes, **more}, lora)


def test_llama_cpp_quantizes_each_expert_as_all_of_them(tmp_path: Path) -> None:
    source = open_export_source(wide_run(tmp_path, "mixtral"))
    tensors = write(source, source.merged, tmp_path / "x.gguf", "Q4_K_M")
    for name, values in written_whole(source, source.merged):
        stored = tensors[name]
        assert stored.tensor_type in {GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K}
        assert np.array_equal(stored.data, quantized(values, stored.tensor_type))


@pytest.mark.parametrize("lora", [Lora(r=2), EXPERTS], ids=["attention", "experts"])
def test_memory_holds_a_few_copies_of_one_experts_matrices(lora: Lora, tmp_path: Path) -> None:
    source = open_export_source(wide_run(tmp_path, "mixtral", lora))
    _ = source.merged.updates  # the adapter, which is in memory anyway
    [gate_and_up] = (each for each in source.layout.experts if each.name == "gate_up_proj")
    of_one = 4 * gate_and_up.inputs * gate_and_up.outputs
    with AllocatedBytes() as live:
        write(source, source.merged, tmp_path / "x.gguf", "F32")
    assert of_one < live.peak() < 6 * of_one


def test_an_expert_is_a_piece_and_every_other_parameter_is_one(tmp_path: Path) -> None:
    source = open_export_source(wide_run(tmp_path, "mixtral"))
    parameters = Parameters(source.merged, source.layout)
    experts = {parameter.full_name for parameter in source.layout.experts}
    for name, shape in parameters.shapes.items():
        pieces = [tuple(piece.shape) for piece in parameters.pieces(name)]
        assert pieces == ([(1, *shape[1:])] * 16 if name in experts else [shape])


def test_experts_of_a_gguf_file_are_requantized_one_at_a_time(tmp_path: Path) -> None:
    run = wide_run(tmp_path, "minimax_m2", Lora(r=2), num_hidden_layers=2)
    source = open_export_source(run)
    stored = write(source, source.base, tmp_path / "base.gguf", "F32")
    recipe = run.recipe.model_copy(update={"model": str(tmp_path / "base.gguf")})
    (run.path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    on_file = open_export_source(Run(run.path))
    with AllocatedBytes() as live:
        tensors = write(on_file, on_file.merged, tmp_path / "x.gguf", "Q8_0")
    experts = [name for name in tensors if "_exps.weight" in name]
    assert len(experts) == 2 * 3
    for name in experts:
        values = torch.from_numpy(stored[name].data.copy())
        assert np.array_equal(tensors[name].data, quantized(values, GGMLQuantizationType.Q8_0))
    assert live.peak() < values.numel() * 2  # half of one layer's matrices in float32
