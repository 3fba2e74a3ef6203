"""An export is judged by what its file says, not by what a number format must cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export.runs import save_run
from tests.tiny import tiny_model
from weitune import Run
from weitune.export import run as export_module
from weitune.export.options import ExportOptions
from weitune.export.run import export
from weitune.export.source.export_source import open_export_source
from weitune.export.verify import rounding
from weitune.export.verify.compare import VerificationError
from weitune.export.verify.rounding import choose_computing, narrower_formats


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run in bfloat16 whose adapter changes weights by about as much as bfloat16 rounds them."""
    run = save_run(tmp_path / "run", "llama", scale=0.01, train={"precision": "bf16"})
    tiny_model("llama").to(torch.bfloat16).save_pretrained(run.recipe.model)
    return run


def test_a_small_update_of_a_bfloat16_base_is_proved(run: Run, tmp_path: Path) -> None:
    verdict = export(run, tmp_path / "out", ExportOptions("merged")).verdict
    assert verdict is not None
    assert verdict.passed
    assert verdict.bounds.mean_difference < 1e-3
    assert "rounding weights to bfloat16 alone moves" in verdict.notes[-1]
    wide = export(run, tmp_path / "wide", ExportOptions("merged", dtype=torch.float32)).verdict
    assert wide is not None
    assert wide.passed
    assert not wide.notes
    assert wide.bounds.mean_difference == 1e-4


def test_half_of_a_small_update_is_found_out(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = export_module._write

    def halved(folder: Path, source: Any, *rest: Any) -> Any:
        for update in source.adapter.updates.values():
            object.__setattr__(update, "scale", update.scale / 2)
        return write(folder, source, *rest)

    monkeypatch.setattr(export_module, "_write", halved)
    with pytest.raises(VerificationError, match="logprobs"):
        export(run, tmp_path / "out", ExportOptions("merged"))


def test_without_memory_for_float32_the_runs_format_is_used(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_export_source(run)
    assert choose_computing(source).precision == "fp32"
    monkeypatch.setattr(rounding, "free_bytes", lambda device: 1000)
    assert choose_computing(source).precision == "bf16"


def test_formats_are_those_that_are_written(run: Run) -> None:
    source = open_export_source(run)
    formats = narrower_formats(source, None)
    assert formats["model.layers.0.self_attn.q_proj.weight"] == torch.bfloat16
    assert set(narrower_formats(source, torch.float16).values()) == {torch.float16}
    assert narrower_formats(source, torch.float32) == {}


def test_what_a_base_keeps_in_float32_is_not_rounded(run: Run) -> None:
    source = open_export_source(run)
    name = "model.norm.weight"
    source.base.slots[name] = source.base.slots[name]._replace(dtype=torch.float32)  # type: ignore[index]
    formats = narrower_formats(source, torch.float16)
    assert name not in formats
    assert formats["model.embed_tokens.weight"] == torch.float16
