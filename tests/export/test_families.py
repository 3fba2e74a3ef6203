"""Runs of families whose files are laid out otherwise than their models, from training to a merged export, proved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from tests.export.runs import DIALOGUES
from tests.families import save_family
from tests.published import FP8, MXFP4, quantize
from weitune import Recipe, Run, train
from weitune.export.options import ExportOptions
from weitune.export.run import export


def trained(folder: Path, family: str, settings: dict[str, Any] | None = None, **lora: Any) -> Run:
    """Train ``family`` for two steps; ``settings`` are those of the quantization that its base is published in."""
    save_family(folder / "model", family)
    if settings:
        quantize(folder / "model", settings)
    rows = [{"instruction": question, "input": "", "output": answer} for question, answer in DIALOGUES]
    (folder / "dialogues.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return train(
        Recipe(
            model=str(folder / "model"),
            data=[str(folder / "dialogues.json")],
            output=str(folder / "run"),
            lora=lora,
            train={"max_steps": 2, "learning_rate": 1e-2, "precision": "fp32"},
        )
    )


def names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        return set(tensors.keys())


@pytest.mark.parametrize("family", ["mixtral", "gemma3", "llama4", "nemotron_h"])
def test_the_files_keep_their_names_and_what_is_not_text(family: str, tmp_path: Path) -> None:
    run = trained(tmp_path, family, experts=family != "gemma3")
    exported = export(run, tmp_path / "merged", ExportOptions("merged"))
    assert exported.verdict is not None
    assert exported.verdict.bounds.mean_difference == 1e-4
    assert names(exported.folder) == names(tmp_path / "model")
    before, after = load_file(tmp_path / "model/model.safetensors"), load_file(tmp_path / "merged/model.safetensors")
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert not any("vision" in name or "router" in name for name in changed)
    assert any("experts" in name for name in changed) == (family != "gemma3")


@pytest.mark.parametrize(("family", "settings"), [("gpt_oss", MXFP4), ("deepseek_v3", FP8)])
def test_a_quantized_base_is_written_dense(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    run = trained(tmp_path, family, settings, experts=True)
    exported = export(run, tmp_path / "merged", ExportOptions("merged"))
    assert exported.verdict is not None
    config = json.loads((exported.folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    assert not any("scale" in name or "blocks" in name for name in names(exported.folder))
    assert "rounding weights to bfloat16" in exported.verdict.notes[-1]
