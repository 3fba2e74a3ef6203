"""Files of llama.cpp's own formats: what they hold, what they were weighed with, and that llama.cpp runs them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gguf import GGUFReader
from tests.export.formats.test_gguf_bases import run_on_gguf
from tests.export.formats.test_gguf_families import family_run
from tests.export.runs import save_run, silent
from tests.tiny import save_tiny_adapter, tiny_model
from weitune import Run
from weitune.errors import MissingExtraError
from weitune.export import run as export_module
from weitune.export.fit import fitted
from weitune.export.formats.gguf_file import write_gguf
from weitune.export.options import ExportOptions
from weitune.export.run import export
from weitune.export.source.export_source import open_export_source
from weitune.export.verify import verification
from weitune.export.verify.compare import Bounds
from weitune.gguf import quantize

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


def test_a_missing_quantizer_is_told_before_anything_is_measured(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*args: Any, **options: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(export_module, "fitted", measured)
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    quantize._quantizer.cache_clear()
    with pytest.raises(MissingExtraError, match="xllamacpp"):
        export(run, tmp_path / "gguf", ExportOptions("gguf", gguf_type="Q4_K_M", prompts=0))


def test_llama_cpp_runs_it_and_the_verdict_says_what_was_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        verification.BOUNDS, "Q5_K_M", Bounds(5.0, 50.0, 100.0)
    )  # random weights have no certain answers
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


def weighed(run: Run, path: Path, importance: Mapping[str, Tensor], *, merged: bool = True) -> dict[str, Any]:
    """Write a Q4_K_M file of ``run``, or of its base; return the bytes of its tensors."""
    source = open_export_source(run)
    weights = source.merged if merged else source.base
    write_gguf(
        path, source, weights, "Q4_K_M", template=source.template, progress=silent(""), importance=importance
    )  # fmt: skip
    return {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}


def test_outputs_that_become_columns_are_not_weighed_as_inputs(tmp_path: Path) -> None:
    """DeepSeek's keys are transposed. Here both sides are equally long, so that the shape does not tell them apart."""
    run = family_run(tmp_path, "deepseek_v3", {"qk_nope_head_dim": 32, "kv_lora_rank": 32, "v_head_dim": 32})
    importance = {"model.layers.1.self_attn.kv_b_proj.weight": torch.rand(32).square()}
    plain, other = weighed(run, tmp_path / "plain.gguf", {}), weighed(run, tmp_path / "other.gguf", importance)
    changed = [name for name in plain if not np.array_equal(plain[name], other[name])]
    assert changed == ["blk.1.attn_v_b.weight"]


@pytest.mark.parametrize("merged", [True, False])
def test_columns_in_another_order_keep_their_importance(merged: bool, tmp_path: Path) -> None:
    """Whether the base is a folder, whose columns are put into llama.cpp's order, or a file that has them so."""
    importance = {"model.layers.0.linear_attn.out_proj.weight": torch.rand(64).square()}
    for name in ("folder", "file"):
        (tmp_path / name).mkdir()
    runs = {
        "folder": family_run(tmp_path / "folder", "qwen3_5_text", {"head_dim": 256}),
        "file": run_on_gguf(tmp_path / "file", "qwen3_5_text"),
    }
    folder, file = (weighed(run, tmp_path / f"{name}.gguf", importance, merged=merged) for name, run in runs.items())
    plain = weighed(runs["file"], tmp_path / "plain.gguf", {}, merged=merged)
    name = "blk.0.ssm_out.weight"
    assert np.array_equal(folder[name], file[name])
    assert not np.array_equal(plain[name], file[name])
