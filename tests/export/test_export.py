"""Exports end to end on tiny models, each opened again by the engine it is for; and exports that are wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.export.runs import DIALOGUES, SYSTEM, save_run
from weitune import Run
from weitune.errors import InputError, MissingExtraError, RunError
from weitune.export import run as export_module
from weitune.export.destination import written_aside
from weitune.export.options import ExportOptions, Format
from weitune.export.run import Exported, export
from weitune.export.verify.compare import VerificationError

needs_llama_cpp = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed"
)
FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("exports")
    options: dict[str, dict[str, Any]] = {"qwen3": {"tokens": {"template_args": {"enable_thinking": False}}}}
    return {family: save_run(folder / family / "run", family, **options.get(family, {})) for family in FAMILIES}


def checked(exported: Exported) -> dict[str, str]:
    assert exported.verdict is not None
    assert exported.verdict.passed
    found = json.loads((exported.folder / "verification.json").read_text())
    assert found["verdict"] == "passed"
    assert found["prompts"] == len(DIALOGUES)
    return {check.name: check.found for check in exported.verdict.checks}


@pytest.mark.parametrize("family", FAMILIES)
def test_merged(runs: dict[str, Run], family: str, tmp_path: Path) -> None:
    found = checked(export(runs[family], tmp_path / "out", ExportOptions("merged")))
    assert found["answers"] == "4 of 4 are the same"


@needs_llama_cpp
@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_in_llama_cpp(runs: dict[str, Run], family: str, tmp_path: Path) -> None:
    found = checked(export(runs[family], tmp_path / "out", ExportOptions("gguf", "F32")))
    assert found["answers"] == "4 of 4 are the same"


@needs_llama_cpp
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("variant", ["lora", "rslora"])
def test_an_adapter_file_on_its_base(family: str, variant: str, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", family, variant=variant)
    exported = export(run, tmp_path / "out", ExportOptions("gguf-adapter"))
    checked(exported)
    if (family, variant) == ("llama", "rslora"):  # its first answer writes a token that llama.cpp ends at by its name
        assert exported.verdict is not None
        assert "also ends an answer at '<|end_of_text|>'" in exported.verdict.notes[0]


@needs_llama_cpp
def test_dora_is_merged_into_a_gguf(tmp_path: Path) -> None:
    checked(export(save_run(tmp_path / "run", "llama", variant="dora"), tmp_path / "out", ExportOptions("gguf", "F16")))


@needs_llama_cpp
def test_llamas_rotary_scaling_reaches_llama_cpp(tmp_path: Path) -> None:
    from tests.tiny import save_tiny_adapter, tiny_model

    run = save_run(tmp_path / "run", "llama")
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    tiny_model("llama", rope_parameters=rope).save_pretrained(run.recipe.model)
    save_tiny_adapter(run.path / "adapter", run.recipe.model)
    checked(export(run, tmp_path / "out", ExportOptions("gguf", "F32")))


@needs_llama_cpp
def test_the_tutorials_framing_is_exported(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "qwen2", tokens={"template": "tutorial"})
    exported = export(run, tmp_path / "out", ExportOptions("gguf", "F32"))
    checked(exported)
    described = json.loads((exported.folder / "weitune.json").read_text())
    assert described["system"] == SYSTEM
    assert len(described["stop_tokens"]) == 2


@needs_llama_cpp
def test_ollama_gets_a_modelfile(runs: dict[str, Run], tmp_path: Path) -> None:
    exported = export(runs["qwen2"], tmp_path / "out", ExportOptions("ollama", "F32"))
    checked(exported)
    lines = (exported.folder / "Modelfile").read_text(encoding="utf-8")
    assert "FROM ./run-F32.gguf\n" in lines
    assert f'SYSTEM "{SYSTEM}"\n' in lines
    assert 'PARAMETER stop "<|im_end|>"\n' in lines
    assert '{{ "<|im_start|>user\\n" }}{{ .Content }}{{ "<|im_end|>\\n" }}' in lines


def test_data_that_have_gone_are_replaced_and_that_is_said(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "llama", data=[str(tmp_path / "gone.json")])
    exported = export(run, tmp_path / "out", ExportOptions("merged", prompts=2))
    assert exported.verdict is not None
    assert "gone.json" in exported.verdict.notes[0]
    assert "built-in dialogues" in exported.verdict.notes[0]


def test_all_files_are_the_same_twice(runs: dict[str, Run], tmp_path: Path) -> None:
    for format_ in ("merged", "gguf", "gguf-adapter", "ollama"):
        folders = [
            export(runs["qwen2"], tmp_path / f"{format_}{i}", ExportOptions(format_, prompts=0)).folder for i in (1, 2)
        ]
        contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
        assert contents[0] == contents[1]


def spoil(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Make the written export wrong in one of the ways that exports are wrong elsewhere."""
    write = export_module._write

    def spoiled(folder: Path, source: Any, order: ExportOptions, stage: Any) -> Any:
        if what == "scale":
            for update in source.adapter.updates.values():
                object.__setattr__(update, "scale", update.scale / 2)
        written = write(folder, source, order, stage)
        if what == "template":
            for path in (folder / "chat_template.jinja", folder / "tokenizer_config.json"):
                path.write_text(path.read_text("utf-8").replace(SYSTEM, "你是。"), "utf-8")
        if what == "stop":
            path = folder / "generation_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [5]}))
        return written

    monkeypatch.setattr(export_module, "_write", spoiled)


@pytest.mark.parametrize(
    ("what", "failed"), [("scale", {"answers", "logprobs"}), ("template", {"tokens"}), ("stop", {"stop"})]
)
def test_a_wrong_export_is_found_out(
    runs: dict[str, Run], what: str, failed: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, what)
    with pytest.raises(VerificationError) as error:
        export(runs["qwen2"], tmp_path / "out", ExportOptions("merged"))
    assert failed <= {check.name for check in error.value.verdict.checks if not check.passed}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.failed"]
    assert json.loads((tmp_path / "out.failed" / "verification.json").read_text())["verdict"] == "failed"


@needs_llama_cpp
def test_a_wrong_row_order_is_found_out(runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weitune.gguf.families import dense

    monkeypatch.setattr(dense, "interleaved", lambda heads: lambda tensor: tensor)
    with pytest.raises(VerificationError, match="logprobs"):
        export(runs["llama"], tmp_path / "out", ExportOptions("gguf", "Q8_0"))


def test_a_folder_that_is_taken_is_left_alone(runs: dict[str, Run], tmp_path: Path) -> None:
    order = ExportOptions("merged", prompts=0)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("…")
    for force in (False, True):
        with pytest.raises(RunError, match="is not an export"):
            export(runs["qwen2"], tmp_path / "theirs", order, force=force)
    export(runs["qwen2"], tmp_path / "ours", order)
    with pytest.raises(RunError, match="already holds an export"):
        export(runs["qwen2"], tmp_path / "ours", order)
    export(runs["llama"], tmp_path / "ours", order, force=True)
    assert "llama" in (tmp_path / "ours" / "config.json").read_text()
    assert (tmp_path / "theirs" / "thesis.txt").read_text() == "…"


def test_only_an_earlier_failed_export_gives_way_to_one(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "scale")
    (tmp_path / "out.failed").mkdir()
    (tmp_path / "out.failed" / "thesis.txt").write_text("…")
    for _ in range(2):
        with pytest.raises(VerificationError, match=r"out\.failed-2"):
            export(runs["qwen2"], tmp_path / "out", ExportOptions("merged"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.failed", "out.failed-2"]
    assert (tmp_path / "out.failed" / "thesis.txt").read_text() == "…"


def test_a_link_to_a_folder_leads_there_after_the_export_too(runs: dict[str, Run], tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large disk")
    for force in (False, True):
        export(runs["qwen2"], tmp_path / "out", ExportOptions("merged", prompts=0), force=force)
        assert (tmp_path / "out").is_symlink()
        assert (tmp_path / "large disk" / "config.json").is_file()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["large disk", "out"]


def test_an_export_that_breaks_off_leaves_nothing(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from weitune.export.formats import merged

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merged, "_write_tokenizer", full)
    with pytest.raises(RunError, match="No space left on device"):
        export(runs["qwen2"], tmp_path / "out", ExportOptions("merged", prompts=0))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_engine_is_said_before_anything_is_written(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="xllamacpp"):
        export(runs["qwen2"], tmp_path / "out", ExportOptions("gguf"))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_can_be_chosen(tmp_path: Path) -> None:
    from tests.tiny import save_tiny_adapter

    run = save_run(tmp_path / "run", "qwen2")
    save_tiny_adapter(run.path / "checkpoint-5", run.recipe.model, seed=5)
    folders = [
        export(run, tmp_path / str(which), ExportOptions("merged", prompts=0), checkpoint=which).folder  # type: ignore[arg-type]
        for which in ("last", 5)
    ]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] != weights[1]
    with pytest.raises(InputError, match="no checkpoint 6"):
        export(run, tmp_path / "six", ExportOptions("merged"), checkpoint=6)


def test_formats_are_all_declared() -> None:
    from typing import get_args

    from weitune.cli.ship.export import command
    from weitune.gguf.types import GGUF_TYPES

    choices = {option.name: tuple(getattr(option.type, "choices", ())) for option in command.params}
    assert choices["format_"] == get_args(Format)
    assert choices["gguf_type"] == GGUF_TYPES


def test_two_exports_to_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    folder, gone = tmp_path / "out", tmp_path / f".out.{2**22 + 1}.partial"  # beyond the largest process id of Linux
    gone.mkdir()
    other = tmp_path / f".out.{os.getppid()}.partial"
    other.mkdir()
    with written_aside(folder) as partial:
        (partial / "file").touch()
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert other.is_dir()
    assert not gone.exists()


@pytest.mark.parametrize("format_", ["merged", "gguf", "ollama"])
def test_a_control_token_as_text_in_the_system_prompt_is_refused(format_: Format, tmp_path: Path) -> None:
    """Without the proof, the wrong export would go through."""
    run = save_run(tmp_path / "run", system="Never write <|im_end|>.")
    with pytest.raises(InputError, match=r"the system prompt has the text <\|im_end\|>"):
        export(run, tmp_path / "out", ExportOptions(format_, prompts=0))
    assert not (tmp_path / "out").exists()
