"""A GGUF file that weitune wrote is a base again, of families that weitune and that transformers reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.formats.gguf_families import FAMILIES
from tests.export.formats.test_gguf_families import family_run
from tests.export.runs import silent
from weitune import Run
from weitune.errors import ModelError
from weitune.export.formats.gguf_file import write_gguf
from weitune.export.options import ExportOptions, Format
from weitune.export.run import export
from weitune.export.source.export_source import open_export_source
from weitune.recipe.load import dump_recipe

pytest.importorskip("xllamacpp")


def run_on_gguf(folder: Path, name: str) -> Run:
    """Write a run of a tiny model of the family, and the base as a .gguf file in place of the model's folder."""
    run = family_run(folder, name, FAMILIES[name])
    source, base = open_export_source(run), folder / "base.gguf"
    write_gguf(base, source, source.base, "F32", template=source.template_without_system, progress=silent(""))
    recipe = run.recipe.model_copy(update={"model": str(base)})
    (folder / "run/recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    return Run(run.path)


@pytest.mark.parametrize(
    ("name", "also"),
    [
        ("phi3", "merged"), ("lfm2", "gguf-adapter"), ("qwen3_5_text", "gguf-adapter"),
        ("minimax_m2", "gguf-adapter"),
    ],
)  # fmt: skip
def test_a_run_on_a_gguf_file_is_exported(name: str, also: Format, tmp_path: Path) -> None:
    run = run_on_gguf(tmp_path, name)
    for form in ("gguf", also):
        verdict = export(run, tmp_path / form, ExportOptions(form, gguf_type="F32", prompts=2)).verdict
        assert verdict is not None
        assert verdict.passed
        assert verdict.checks[1].found == "2 of 2 are the same"


def test_a_weight_that_cannot_be_given_back_keeps_a_run_from_being_merged(tmp_path: Path) -> None:
    run = run_on_gguf(tmp_path, "lfm2")
    with pytest.raises(
        ModelError, match=r"1 tensors that are only a part of a weight.*blk\.0\.shortconv\.conv"
    ) as error:
        export(run, tmp_path / "merged", ExportOptions("merged", prompts=0))
    assert "--format gguf" in error.value.fix
