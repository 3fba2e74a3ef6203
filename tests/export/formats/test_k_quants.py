"""Files of llama.cpp's own formats: what they hold, what they were weighed with, and that llama.cpp runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.export.runs import save_run, silent
from tests.tiny import save_tiny_adapter, tiny_model
from weitune import Run
from weitune.export.fit import fitted
from weitune.export.options import ExportOptions
from weitune.export.run import export
from weitune.export.source.export_source import open_export_source
from weitune.export.verify import verification
from weitune.export.verify.compare import Bounds

pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run on a model whose rows are as long as a block of llama.cpp's formats, except those of `down_proj`."""
    run = save_run(tmp_path_factory.mktemp("k") / "run", "llama")
    tiny_model("llama", hidden_size=256, intermediate_size=288).save_pretrained(run.recipe.model)
    save_tiny_adapter(run.path / "adapter", run.recipe.model)
    return run


def test_the_file_is_fitted_to_the_data_and_the_same_twice(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(run, tmp_path / name, ExportOptions("gguf", gguf_type="Q4_K_M", prompts=0))
    files = [(tmp_path / name / "run-Q4_K_M.gguf").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]
    about = json.loads((tmp_path / "a/weitune.json").read_text())
    assert about["weighed"]
    assert about["smoothed"]
    assert about["formats"]["attn_q"] == {"Q4_K": 2}
    assert about["formats"]["output"] == {"Q6_K": 1}
    assert about["formats"]["ffn_down"] == {"Q5_0": 1, "Q8_0": 1}  # the second layer gets more bits; blocks of 32


def test_llama_cpp_runs_it_and_the_verdict_says_what_was_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(verification.BOUNDS, "Q5_K_M", Bounds(5.0, 50.0))  # random weights have no certain answers
    exported = export(run, tmp_path / "gguf", ExportOptions("gguf", gguf_type="Q5_K_M", prompts=2))
    assert exported.verdict is not None
    assert "Q5_K" in exported.verdict.notes[-1]


def test_a_smoothed_column_is_as_important_as_its_inputs_are_then(run: Run) -> None:
    """The importance of a product's error is the same, whether it is written in the weights or in what they meet."""
    source = open_export_source(run)
    plain, smoothed = (fitted(source, "Q4_K_M", silent, smooth=smooth) for smooth in (False, True))
    assert smoothed.smoothed and not plain.smoothed  # noqa: PT018
    for name, importance in smoothed.importance.items():
        if "up_proj" not in name:  # whose rows are divided where those of down_proj's columns are multiplied
            before, after = (fit.weights.read(name, torch.float32) for fit in (plain, smoothed))
            assert torch.allclose(after.square() * importance, before.square() * plain.importance[name], rtol=1e-4)


def test_a_column_is_as_important_as_its_inputs_are_large(run: Run) -> None:
    source = open_export_source(run)
    importance = fitted(source, "Q6_K", silent, smooth=False).importance
    modules = {name.removesuffix(".weight") for name in importance}
    assert {name.split(".")[-1] for name in modules} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    at = "model.layers.0.self_attn"
    assert torch.equal(importance[f"{at}.q_proj.weight"], importance[f"{at}.v_proj.weight"])
    assert all(values.shape == (source.merged.slots[name].shape[1],) for name, values in importance.items())
    assert all(float(values.min()) >= 0 for values in importance.values())
