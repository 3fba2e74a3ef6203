"""A model with a vision tower through the commands: trained, resumed, talked to, and loaded by PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.train.test_train import ROWS, train, write_rows
from tests.families import save_family
from weitune import Run, cli
from weitune.model.load.locate import ModelFiles
from weitune.model.load.weights import load_weights
from weitune.run.manifest import sha256_of

IDS = torch.arange(5, 30)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("gemma3"), "gemma3")


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with a checkpoint at each."""
    folder = tmp_path_factory.mktemp("runs")
    options = ("--train.max_steps", "2", "--train.checkpoint_every", "1", "--train.precision", "fp32")
    assert train(base, write_rows(folder, ROWS), folder / "run", *options) == 0
    return folder / "run"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_peft_puts_the_adapter_on_the_wrapper(base: Path, run: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    wrapper = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()
    before = logits(wrapper)
    tuned = PeftModel.from_pretrained(wrapper, run / "adapter").eval()
    assert not torch.equal(logits(tuned), before)
    assert torch.allclose(logits(tuned), logits(Run(run).engine().model), rtol=0, atol=1e-5)
    assert not any("lora_" in name for name, _ in wrapper.model.vision_tower.named_parameters())


def test_what_it_says_and_counts(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_rows(tmp_path, ROWS)
    assert cli.main(["plan", "--model", str(base), "--data", rows, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    text = load_weights(ModelFiles(base), None, precision="fp32", device="cpu").model
    trained = planned["model"]["trainable"]
    assert planned["model"]["parameters"] == sum(each.numel() for each in text.parameters()) + trained
    assert any("Gemma3ForConditionalGeneration" in note for note in planned["notes"])
    assert train(base, rows, tmp_path / "run", "--train.max_steps", "1") == 0
    told = capsys.readouterr().err
    assert "only the text model of Gemma3ForConditionalGeneration is loaded" in told
    assert f"trainable parameters: {trained:,} of {planned['model']['parameters']:,}" in told


def test_a_resumed_run_ends_in_the_same_bits(run: Path, tmp_path: Path) -> None:
    again = stopped_after_one_step(run, tmp_path)
    assert cli.main(["train", "--resume", str(again), "--device", "cpu"]) == 0
    assert_same_tensors(again, run)


def test_a_run_with_the_text_models_names_is_resumed(run: Path, tmp_path: Path) -> None:
    """weitune 0.1.0 wrote these for a wrapper whose text model it loaded by itself, such as Qwen3.5."""
    again = stopped_after_one_step(run, tmp_path)
    path = again / "checkpoint-1" / "adapter_model.safetensors"
    renamed = {name.replace(".language_model.", "."): tensor for name, tensor in load_file(path).items()}
    assert renamed.keys() != load_file(path).keys()
    rewrite(path, renamed)
    assert cli.main(["train", "--resume", str(again), "--device", "cpu"]) == 0
    assert_same_tensors(again, run)


def test_a_run_with_adapters_in_the_tower_is_resumed_without_them(run: Path, tmp_path: Path) -> None:
    """weitune 0.1.0 put some on Gemma 3's, and knew the moments of the text model's by the wrapper's names."""
    again = stopped_after_one_step(run, tmp_path)
    path, moments = (again / "checkpoint-1" / f"{name}.safetensors" for name in ("adapter_model", "optimizer"))
    tower = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj"
    still = {f"{tower}.lora_A.weight": torch.ones(8, 32), f"{tower}.lora_B.weight": torch.zeros(32, 8)}
    rewrite(path, {**load_file(path), **still})
    text = "base_model.model.model.layers."
    older = {
        name.replace(text, "base_model.model.model.language_model.layers."): t for name, t in load_file(moments).items()
    }
    assert older.keys() != load_file(moments).keys()
    rewrite(moments, {**older, f"{tower}.lora_B.default.weight.exp_avg": torch.zeros(32, 8)})
    assert cli.main(["train", "--resume", str(again), "--device", "cpu"]) == 0
    assert_same_tensors(again, run)


def rewrite(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write other tensors into a file of a checkpoint, and what its manifest says of the file."""
    save_file(tensors, path, metadata={"format": "pt"})
    manifest = path.parent / "manifest.json"
    listed = json.loads(manifest.read_text())
    listed["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest.write_text(json.dumps(listed))


def stopped_after_one_step(run: Path, folder: Path) -> Path:
    again = folder / "run"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoint-2")
    shutil.rmtree(again / "adapter")
    return again


def assert_same_tensors(one: Path, other: Path) -> None:
    for folder in ("adapter", "checkpoint-2"):
        ours, theirs = (load_file(run / folder / "adapter_model.safetensors") for run in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_chat_answers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", str(run), "--prompt", "Who are you?", "--max-new-tokens", "4", "--device", "cpu"]) == 0
    capsys.readouterr()


def test_a_whole_text_model_is_a_model_of_its_own(base: Path, tmp_path: Path) -> None:
    """Trained without an adapter, it is saved as the text model that it is."""
    from transformers import AutoModelForCausalLM

    options = ("--train.max_steps", "1", "--lora", "none", "--train.precision", "fp32")
    assert train(base, write_rows(tmp_path, ROWS), tmp_path / "run", *options) == 0
    expected = logits(Run(tmp_path / "run").engine().model)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "adapter", dtype=torch.float32).eval()
    assert type(saved).__name__ == "Gemma3ForCausalLM"
    assert torch.allclose(logits(saved), expected, rtol=0, atol=1e-4)
    assert not torch.equal(
        logits(saved), logits(load_weights(ModelFiles(base), None, precision="fp32", device="cpu").model)
    )
