"""A base that is no longer the run's is refused wherever the run's model is opened, or used and said if accepted."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import save_tiny, save_tiny_adapter, save_tiny_run
from weitune import Run
from weitune.cli import main
from weitune.errors import RunError
from weitune.model.load import locate as locate_module
from weitune.model.load.fingerprint import base_fingerprints, differences, model_fingerprint, weights_fingerprint
from weitune.model.load.locate import ModelFiles, locate
from weitune.recipe.load import dump_recipe
from weitune.run.base_check import place_of_base, recorded_basis

OPTION = "--accept-changed-base"


def record(run: Path, *names: str) -> None:
    """Write down what the base is now, as training does; only the fingerprints of ``names`` if there are any."""
    found = base_fingerprints(locate(Run(run).recipe.model))
    basis = {name: value for name, value in found.items() if not names or name in names}
    (run / "environment.json").write_text(json.dumps({"basis": {**basis, "data": {"examples": 4}}}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a record, data and validation rows, whose base a test may change."""
    rows = [{"instruction": f"Who are you, {name}?", "output": "I am the assistant."} for name in "abcd"]
    (tmp_path / "dialogues.json").write_text(json.dumps(rows))
    data = str(tmp_path / "dialogues.json")
    folder = save_tiny_run(tmp_path / "run", checkpoints=(5,), data=[data], validation=[data])
    record(folder)
    return folder


def said(log: pytest.LogCaptureFixture) -> list[str]:
    return [entry.getMessage() for entry in log.records if entry.name == "weitune"]


def model_of(run: Path) -> Path:
    return Path(Run(run).recipe.model)


def replace_weights(model: Path) -> None:
    save_tiny(model, seed=9)


def change_a_weight_in_the_middle(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] += 0.01
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def edit(name: str, before: str, after: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        text = (model / name).read_text(encoding="utf-8")
        assert before in text
        (model / name).write_text(text.replace(before, after, 1), encoding="utf-8")

    return change


CHANGES = {
    "weights": (replace_weights, "model weights: "),
    "a weight": (change_a_weight_in_the_middle, "model weights: "),
    "config": (edit("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'), "model: "),
    "tokenizer": (edit("tokenizer.json", '"content": "<|im_end|>"', '"content": "<|im_stop|>"'), "tokenizer: "),
    "template": (edit("chat_template.jinja", "You are Tiny.", "You are tiny."), "tokenizer: "),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_has_changed_is_named(name: str, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    change, named = CHANGES[name]
    assert Run(run).base_files() == ModelFiles(model_of(run))
    before = recorded_basis(run)
    change(model_of(run))
    with pytest.raises(RunError, match="is not the one that it was trained on") as refused:
        Run(run).chat("Who are you?", max_new_tokens=1)
    line = next(line for line in refused.value.message.splitlines() if line.startswith(f"  {named}"))
    now = base_fingerprints(ModelFiles(model_of(run)))
    key = named.removesuffix(": ")
    assert line == f"  {key}: {before[key][:12]}… recorded, {now[key][:12]}… now"
    assert str(model_of(run)) in refused.value.fix
    assert OPTION in refused.value.fix
    with caplog.at_level(logging.WARNING):
        assert Run(run, accept_changed_base=True).base_files() == ModelFiles(model_of(run))
    (told,) = said(caplog)
    assert "but was accepted" in told
    assert line in told


def test_one_line_for_a_run_without_a_record(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run / "environment.json").unlink()
    opened = Run(run)
    assert {opened.base_files() for _ in range(3)} == {ModelFiles(model_of(run))}
    assert said(caplog) == [f"'{run}' has no fingerprint of its base model: {model_of(run)} is used unchecked"]


def test_the_record_of_a_checkpoint_counts_if_the_runs_own_is_lost(run: Path) -> None:
    (run / "environment.json").rename(run / "checkpoint-5" / "state.json")
    replace_weights(model_of(run))
    with pytest.raises(RunError, match="is not the one"):
        Run(run).base_files()


COMMANDS: dict[str, list[str]] = {
    "chat": ["chat", "{run}", "--prompt", "x", "--max-new-tokens", "1"],
    "chat with the base": ["chat", "{run}", "--prompt", "x", "--max-new-tokens", "1", "--checkpoint", "base"],
    "chat in llama.cpp": ["chat", "{run}", "--prompt", "x", "--max-new-tokens", "1", "--engine", "llama.cpp"],
    "eval": ["eval", "{run}", "--no-general", "--limit", "1", "--max-new-tokens", "1"],
    "compare": ["compare", "{run}", "{run}", "--output", "{out}"],
    "merged": ["export", "{run}", "--format", "merged", "--no-verify", "--output", "{out}"],
    "gguf": ["export", "{run}", "--format", "gguf", "--no-verify", "--type", "F32", "--output", "{out}"],
    "gguf-adapter": ["export", "{run}", "--format", "gguf-adapter", "--no-verify", "--output", "{out}"],
    "ollama": ["export", "{run}", "--format", "ollama", "--no-verify", "--type", "F32", "--output", "{out}"],
    "serve": ["serve", "{run}", "--dry-run", "--port", "0", "--type", "F32"],
    "serve by vllm": ["serve", "{run}", "--dry-run", "--engine", "vllm"],
    "push": ["push", "{run}", "--to", "me/mine", "--dry-run", "--output", "{out}"],
    "merge-adapters": ["merge-adapters", "{run}", "{run}", "--output", "{out}"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_opens_a_run_refuses_and_accepts(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if "llama.cpp" in COMMANDS[name] or name == "serve":
        pytest.importorskip("xllamacpp")
        pytest.importorskip("uvicorn")
    arguments = [part.format(run=run, out=tmp_path / "out") for part in COMMANDS[name]]
    replace_weights(model_of(run))
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "is not the one that it was trained on" in shown.err
    assert OPTION in shown.err
    assert "Traceback" not in shown.err
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == files
    assert main([*arguments, OPTION]) == 0
    shown = capsys.readouterr()
    assert "but was accepted" in shown.err


def test_a_merged_run_knows_its_base(run: Path, tmp_path: Path) -> None:
    assert main(["merge-adapters", str(run), str(run), "--output", str(tmp_path / "both")]) == 0
    assert recorded_basis(tmp_path / "both") == recorded_basis(run)
    replace_weights(model_of(run))
    with pytest.raises(RunError, match="is not the one"):
        Run(tmp_path / "both").base_files()
    assert main(["train", "--resume", str(tmp_path / "both")]) == 2


def test_adapters_of_different_bases_are_not_merged_whatever_they_are_called(run: Path, tmp_path: Path) -> None:
    """One base at two places is one base; another base at the same place is not."""
    moved = Path(shutil.copytree(model_of(run), tmp_path / "elsewhere"))
    second = Path(shutil.copytree(run, tmp_path / "second"))
    recipe = (second / "recipe.yaml").read_text(encoding="utf-8")
    (second / "recipe.yaml").write_text(recipe.replace(str(model_of(run)), str(moved)), encoding="utf-8")
    assert main(["merge-adapters", str(run), str(second), "--output", str(tmp_path / "both")]) == 0
    save_tiny(moved, seed=9)
    record(second)
    assert main(["merge-adapters", str(run), str(second), "--output", str(tmp_path / "again")]) == 2
    assert not (tmp_path / "again").exists()


def large_model(folder: Path, middle: float) -> ModelFiles:
    """Write a file of 6 MiB whose first and last MiB do not hold the tensor in the middle."""
    folder.mkdir()
    tensors = {name: torch.full((1 << 19,), value) for name, value in (("a", 1.0), ("b", middle), ("c", 3.0))}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return ModelFiles(folder)


def test_a_tensor_in_the_middle_of_a_large_file_is_looked_at(tmp_path: Path) -> None:
    first, second = large_model(tmp_path / "first", 2.0), large_model(tmp_path / "second", 2.5)
    assert model_fingerprint(first) == model_fingerprint(second)
    assert weights_fingerprint(first) != weights_fingerprint(second)
    (changed,) = differences(base_fingerprints(first), second)
    assert changed.startswith("model weights: ")


def test_other_files_beside_the_weights_change_nothing(run: Path) -> None:
    model = model_of(run)
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    assert Run(run).base_files() == ModelFiles(model)


def test_the_record_of_an_older_version_counts_such_files(run: Path) -> None:
    """Version 0.1.0 took every *.safetensors into the fingerprint, and knew only two of them."""
    model = model_of(run)
    record(run, "model", "tokenizer")
    assert Run(run).base_files() == ModelFiles(model)
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    old = json.loads((run / "environment.json").read_text())
    old["basis"]["model"] = "fa0fd0a0"
    (run / "environment.json").write_text(json.dumps(old))
    with pytest.raises(RunError, match="model: fa0fd0a0… recorded"):
        Run(run).base_files()
    old["basis"]["model"] = as_in_0_1_0(model)
    (run / "environment.json").write_text(json.dumps(old))
    assert Run(run).base_files() == ModelFiles(model)


def as_in_0_1_0(model: Path) -> str:
    """The fingerprint of a small model, as version 0.1.0 defined it."""
    import hashlib

    digest = hashlib.sha256()
    for path in [*sorted(model.glob("*.safetensors")), model / "config.json"]:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def test_the_two_runs_of_a_comparison_may_have_bases_that_are_gone(run: Path) -> None:
    shutil.rmtree(model_of(run))
    assert main(["compare", str(run), str(run)]) == 0


def test_an_adapter_of_another_base_as_the_start_is_said(run: Path, tmp_path: Path) -> None:
    from tests.faults.runs import Listener
    from weitune.recipe.load import build_recipe
    from weitune.training.run import train

    other = save_tiny(tmp_path / "other", seed=9)
    save_tiny_adapter(run / "adapter", model_of(run))
    keys = {"data": Run(run).recipe.data, "lora.init_from": str(run), "lora.r": 4, "lora.alpha": 16,
            "train.max_steps": 1, "train.precision": "fp32"}  # fmt: skip
    for model, said in ((model_of(run), 0), (other, 1)):
        listener = Listener()
        output = str(tmp_path / f"from-{model.name}")
        train(build_recipe({}, {**keys, "model": str(model), "output": output}), device="cpu", reporter=listener)
        assert sum("was trained on another base" in line for line in listener.lines) == said


def started_in(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the record of ``run`` as if it had been started in ``folder``, with the base by a relative path."""
    model = model_of(run)
    monkeypatch.chdir(folder)
    recipe = Run(run).recipe.model_copy(update={"model": str(model.relative_to(folder))})
    (run / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    environment = {"basis": base_fingerprints(ModelFiles(model)), **place_of_base(recipe)}
    (run / "environment.json").write_text(json.dumps(environment))


def test_a_relative_path_of_a_base_is_found_from_elsewhere(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(run)
    started_in(run, tmp_path, monkeypatch)
    assert Run(run).recipe.model == "run-model"
    assert Run(run).base_files().folder.absolute() == model
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert Run(run).base_files() == ModelFiles(model)
    save_tiny(elsewhere / "run-model", seed=9)  # another model of that name is not taken for it
    with pytest.raises(RunError, match="is not the one that it was trained on"):
        Run(run).base_files()


@pytest.mark.parametrize("option", [[], [OPTION]])
def test_a_base_that_is_gone_is_not_looked_up_on_a_hub(
    option: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``models/base`` has the form of a hub id, and is none of one."""
    model = tmp_path / "models" / "base"
    model.parent.mkdir()
    model_of(run).rename(model)
    recipe = Run(run).recipe.model_copy(update={"model": str(model)})
    (run / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    started_in(run, tmp_path, monkeypatch)
    monkeypatch.setattr(locate_module, "_from_huggingface", lambda *found: pytest.fail("the hub was asked"))
    shutil.rmtree(model)
    assert main(["chat", str(run), "--prompt", "x", *option]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert f"the base of '{run}' is no longer at {model}" in shown
    assert "or set `model` in" in shown


def test_other_stop_tokens_are_noticed(run: Path) -> None:
    path = model_of(run) / "generation_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "temperature": 0.1}))  # no run heeds that
    Run(run).base_files()
    path.write_text(json.dumps({**config, "eos_token_id": [5, 6]}))
    with pytest.raises(RunError, match=r"\n  stop tokens: \w{12}… recorded, \w{12}… now"):
        Run(run).base_files()
    record(run, "model", "tokenizer", "model weights", "tokenizer text")  # by a version that did not record them
    Run(run).base_files()
