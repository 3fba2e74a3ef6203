"""A GGUF file that weitune wrote is a base again: its runs are exported and answer as they do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gguf import GGMLQuantizationType
from tests.export.formats.gguf_families import FAMILIES
from tests.export.formats.test_gguf_families import family_run
from tests.export.runs import silent
from weitune import Run
from weitune.errors import ModelError
from weitune.export.formats.gguf_file import write_gguf
from weitune.export.options import ExportOptions, Format
from weitune.export.run import export
from weitune.export.source.export_source import open_export_source
from weitune.gguf.header import read_header
from weitune.gguf.metadata import Field
from weitune.gguf.writer import TensorPlan, write_gguf_file
from weitune.recipe.load import dump_recipe
from weitune.recipe.schema import Lora

pytest.importorskip("xllamacpp")


def run_on_gguf(folder: Path, name: str, lora: Lora | None = None) -> Run:
    """Write a run of a tiny model of the family, and the base as a .gguf file in place of the model's folder."""
    run = family_run(folder, name, FAMILIES[name], lora)
    source, base = open_export_source(run), folder / "base.gguf"
    write_gguf(base, source, source.base, "F32", template=source.template_without_system, progress=silent(""))
    recipe = run.recipe.model_copy(update={"model": str(base), **({} if lora is None else {"lora": lora})})
    (folder / "run/recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    return Run(run.path)


@pytest.mark.parametrize(
    ("name", "also"),
    [
        ("phi3", "merged"), ("lfm2", "merged"), ("qwen3_5_text", "gguf-adapter"), ("minimax_m2", "gguf-adapter"),
        ("gemma2", "gguf-adapter"), ("gemma3", "merged"), ("gemma4_text", "gguf-adapter"), ("gpt_oss", "gguf-adapter"),
        ("deepseek_v3", "merged"), ("qwen3_next", "merged"), ("falcon_h1", "gguf-adapter"), ("glm4", "merged"),
    ],
)  # fmt: skip
def test_a_run_on_a_gguf_file_is_exported(name: str, also: Format, tmp_path: Path) -> None:
    run = run_on_gguf(tmp_path, name)
    for form in ("gguf", also):
        verdict = export(run, tmp_path / form, ExportOptions(form, gguf_type="F32", prompts=2)).verdict
        assert verdict is not None
        assert verdict.passed
        assert "2 of 2 are the same" in {check.found for check in verdict.checks}


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_experts_of_a_gguf_file_are_merged(name: str, tmp_path: Path) -> None:
    run = run_on_gguf(tmp_path, name, Lora(r=2, experts=True))
    for form in ("gguf", "merged"):
        verdict = export(run, tmp_path / form, ExportOptions(form, gguf_type="F32", prompts=2)).verdict
        assert verdict is not None
        assert verdict.passed
        assert "2 of 2 are the same" in {check.found for check in verdict.checks}


def test_a_tensor_without_a_name_in_transformers_keeps_a_run_from_being_merged(tmp_path: Path) -> None:
    run = run_on_gguf(tmp_path, "lfm2")
    header = read_header(tmp_path / "base.gguf")
    tensors = [(each.name, each.shape, each.type, bytes(each.content)) for each in header.tensors.values()]
    tensors.append(("blk.0.nextn.eh_proj.weight", (2, 2), GGMLQuantizationType.F32, bytes(16)))
    plans = [
        TensorPlan(name, shape, kind, lambda content=content: [np.frombuffer(content, np.uint8)])
        for name, shape, kind, content in tensors
    ]
    metadata = {key: Field(each.value, each.type, each.element) for key, each in header.metadata.items()}
    del metadata["general.architecture"]
    write_gguf_file(tmp_path / "base.gguf", header.architecture, metadata, plans, lambda done, total: None)
    with pytest.raises(ModelError, match=r"1 tensors for which transformers has no name.*nextn\.eh_proj") as error:
        export(run, tmp_path / "merged", ExportOptions("merged", prompts=0))
    assert "--format gguf" in error.value.fix
