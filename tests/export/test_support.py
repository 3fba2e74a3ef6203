"""What a run can be exported as is told before training by the functions that refuse the exports themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.export.runs import save_run
from tests.families import save_family
from tests.tiny import save_tiny
from weitune import Recipe, Run
from weitune.cli.shared.export_support import export_support
from weitune.errors import InputError
from weitune.export.options import FORMATS, ExportOptions
from weitune.export.run import export
from weitune.export.support import ExportSupport
from weitune.model.load.locate import locate_base


def support_of(model: Path, **recipe: Any) -> ExportSupport:
    built = Recipe(model=str(model), data=["rows.json"], **recipe)
    return export_support(built, locate_base(built, weights=False))


def impossible(support: ExportSupport) -> set[str]:
    return {name for name, why in support.why_not.items() if why is not None}


@pytest.mark.parametrize("family", ["gemma3", "mistral3", "internvl", "phi3", "qwen3_5_text"])
def test_language_models_inside_others_become_gguf_files_too(family: str, tmp_path: Path) -> None:
    assert not impossible(support_of(save_family(tmp_path / "model", family))) & {"gguf", "gguf-adapter"}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_family_that_gguf_knows_becomes_everything(family: str, tmp_path: Path) -> None:
    support = support_of(save_tiny(tmp_path / "model", family))
    assert impossible(support) == set()
    assert support.lines() == ["can be exported as: merged, gguf, gguf-adapter, ollama, vLLM"]


@pytest.mark.parametrize("family", ["gemma3n_text", "qwen3_vl", "stablelm"])
def test_other_families_become_merged_models(family: str, tmp_path: Path) -> None:
    support = support_of(save_family(tmp_path / "model", family))
    assert impossible(support) == {"gguf", "gguf-adapter", "ollama"}
    assert len(support.lines()) == 2
    assert "does not write GGUF files of the family" in support.lines()[1]


@pytest.mark.parametrize(
    ("lora", "refused"),
    [
        ({"dora": True}, {"gguf-adapter", "vLLM"}),
        ({"modules_to_save": ["lm_head"]}, {*FORMATS, "vLLM"}),
        ({"train_tokens": ["<|im_end|>"]}, {*FORMATS, "vLLM"}),
        ({"init": "pissa", "r": 300}, {"vLLM"}),
        ("none", {*FORMATS, "vLLM"}),
    ],
)
def test_what_is_trained_decides_too(lora: Any, refused: set[str], tmp_path: Path) -> None:
    support = support_of(save_tiny(tmp_path / "model", "qwen2"), lora=lora)
    assert impossible(support) == refused
    assert support.to_json()["merged"]["possible"] == ("merged" not in refused)
    assert 1 <= len(support.lines()) <= 3


def test_adapted_experts_are_merged_but_not_served_beside_the_base(tmp_path: Path) -> None:
    support = support_of(save_family(tmp_path / "model", "mixtral"), lora={"experts": True})
    assert support.why_not["merged"] is None
    assert "would leave out" in str(support.why_not["vLLM"])


def test_a_model_that_cannot_be_read_is_a_reason_and_no_error(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", "qwen2")
    (model / "tokenizer.json").write_text("{")
    assert impossible(support_of(model)) == {*FORMATS, "vLLM"}


def test_the_export_refuses_what_was_said_to_be_impossible(tmp_path: Path) -> None:
    run: Run = save_run(tmp_path / "run", "mistral")
    (config := Path(run.recipe.model) / "config.json").write_text(
        config.read_text().replace('"sliding_window": null', '"sliding_window": 64')
    )
    support = export_support(run.recipe, run.base_files())
    assert impossible(support) == {"gguf", "gguf-adapter", "ollama"}
    for name in impossible(support):
        with pytest.raises(InputError) as refused:
            export(run, tmp_path / name, ExportOptions(name, prompts=0))  # type: ignore[arg-type]
        assert refused.value.message == support.why_not[name]


@pytest.mark.parametrize("family", ["qwen2", "gemma3", "mixtral"])
def test_the_weights_need_not_be_here_yet(family: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model") if family == "qwen2" else save_family(tmp_path / "model", family)
    expected = support_of(folder).lines()
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert support_of(folder).lines() == expected
