"""Models come from a hub and adapters go there, through the hub's own client and a server on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.hub import TOKEN, LocalHub, local_hub
from tests.limits import HANG_SECONDS
from tests.tiny import save_tiny
from weitune import Run
from weitune.cli import main
from weitune.errors import ModelError, RunError
from weitune.model.load.locate import locate

AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4}}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """Return a hub with one small model, which the client in this process takes for the hub."""
    with local_hub() as hub:
        hub.add("someone/tiny", save_tiny(tmp_path / "model"))
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


def test_a_model_comes_through_a_mirror_and_its_adapter_goes_back(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "dialogues.json", tmp_path / "run"
    data.write_text(json.dumps([{"instruction": f"Question {i}?", "output": f"Answer {i}."} for i in range(4)]))
    train = [
        sys.executable, "-m", "weitune", "train", "--model", "someone/tiny", "--data", str(data), "--output", str(run),
        "--train.max-steps", "1", "--train.precision", "fp32",
    ]  # fmt: skip
    others = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    mirror = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    trained = subprocess.run(
        train, env=others | mirror, capture_output=True, text=True, check=False, timeout=HANG_SECONDS
    )
    assert trained.returncode == 0, trained.stderr

    push = ["push", str(run), "--to", "me/zhenhuan"]
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # mirrors know git's large files, and so does this hub
    monkeypatch.setenv("HF_TOKEN", "of_somebody_else")
    assert main(push) == 2
    assert "hf auth login" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(push) == 0
    assert f"done: {hub.url}/me/zhenhuan" in capsys.readouterr().err
    assert [(made["name"], made["visibility"]) for made in hub.created] == [("zhenhuan", "private")]
    files = hub.repositories["me/zhenhuan"]
    assert files["adapter_model.safetensors"] == (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "someone/tiny"
    assert b"license: apache-2.0" in files["README.md"]
    assert "weitune.json" not in files


def test_what_nobody_reads_is_not_downloaded(hub: LocalHub) -> None:
    files = hub.repositories["someone/tiny"]
    extra = ("consolidated.safetensors", "original/params.json", "onnx/model.safetensors", "pytorch_model.bin")
    files.update(dict.fromkeys(extra, b"{}"))
    without = locate("someone/tiny", weights=False)
    assert not list(without.folder.rglob("*.safetensors"))
    assert (without.folder / "tokenizer.json").is_file()
    found = locate("someone/tiny")
    assert (found.folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert not set(extra) & set(hub.downloaded)
    before = list(hub.downloaded)
    locate("someone/tiny")
    assert hub.downloaded == before


def test_a_quantized_model_is_refused_before_its_weights_are_downloaded(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, data = hub.repositories["someone/tiny"], tmp_path / "rows.json"
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | AWQ).encode()
    data.write_text(json.dumps([{"instruction": "Question?", "output": "Answer."}]))
    assert main(["train", "--model", "someone/tiny", "--data", str(data), "--output", str(tmp_path / "run")]) == 2
    assert "quantized with AWQ" in capsys.readouterr().err
    assert "model.safetensors" not in hub.downloaded


def test_a_revision_is_followed(hub: LocalHub) -> None:
    commit = locate("someone/tiny", weights=False).folder.name
    assert locate("someone/tiny", revision=commit, weights=False).folder.name == commit
    with pytest.raises(ModelError, match="'someone/tiny' has no revision 'nowhere'"):
        locate("someone/tiny", revision="nowhere")


def test_what_is_not_there_is_said(hub: LocalHub) -> None:
    with pytest.raises(ModelError, match="no model 'someone/else' on Hugging Face"):
        locate("someone/else")


def test_a_download_that_breaks_off_is_said_and_can_be_begun_again(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.breaks_off = {"model.safetensors"}
    with pytest.raises(ModelError, match="could not be downloaded"):
        locate("someone/tiny")
    hub.breaks_off = set()
    found = locate("someone/tiny")
    assert (found.folder / "model.safetensors").read_bytes() == hub.repositories["someone/tiny"]["model.safetensors"]


def test_a_hub_out_of_reach_is_said(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="could not be downloaded") as error:
        locate("someone/tiny")
    assert "HF_ENDPOINT" in error.value.fix


def _trained(hub: LocalHub, tmp_path: Path, **keys: object) -> Path:
    from weitune.recipe.load import build_recipe
    from weitune.training.run import train

    data = tmp_path / "dialogues.json"
    data.write_text(json.dumps([{"instruction": f"Question {i}?", "output": f"Answer {i}."} for i in range(4)]))
    recipe = {"model": "someone/tiny", "data": [str(data)], "output": str(tmp_path / "run"), "train.max_steps": 1,
              "train.precision": "fp32", "train.checkpoint_every": 1, **keys}  # fmt: skip
    return train(build_recipe({}, recipe), device="cpu").path


def test_a_run_keeps_the_commit_that_a_name_stood_for(hub: LocalHub, tmp_path: Path) -> None:
    run = _trained(hub, tmp_path)
    before = Run(run).chat("Who are you?", max_new_tokens=8, device="cpu")
    commit = Run(run).recipe.revision
    assert commit == locate("someone/tiny").commit
    hub.add("someone/tiny", save_tiny(tmp_path / "model", seed=9))
    assert locate("someone/tiny").commit != commit
    assert Run(run).base_files().commit == commit
    assert Run(run).chat("Who are you?", max_new_tokens=8, device="cpu") == before


def test_a_run_that_recorded_no_commit_gets_the_one_it_was_trained_on(
    hub: LocalHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.faults.runs import Listener
    from weitune.training.run import resume

    run = _trained(hub, tmp_path)
    recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
    commit = Run(run).recipe.revision
    (run / "recipe.yaml").write_text(recipe.replace(f"revision: {commit}", "revision: null"), encoding="utf-8")
    hub.add("someone/tiny", save_tiny(tmp_path / "model", seed=9))
    assert Run(run).recipe.revision is None
    assert Run(run).base_files().commit == commit
    (line,) = [entry.getMessage() for entry in caplog.records if entry.name == "weitune"]
    assert f"the commit {commit}" in line
    going_on = Listener()
    resume(run, overrides={"train.max_steps": 2}, device="cpu", reporter=going_on)
    assert f"the commit {commit}" in going_on.text
    assert Run(run).recipe.revision == commit
    (run / "recipe.yaml").write_text(recipe.replace(f"revision: {commit}", "revision: null"), encoding="utf-8")
    shutil.rmtree(Run(run).base_files().folder)
    with pytest.raises(RunError, match="is not the one that it was trained on") as refused:
        Run(run).base_files()
    assert f"`revision` in {run / 'recipe.yaml'}" in refused.value.fix


def test_an_adapter_beside_a_model_is_not_downloaded(hub: LocalHub) -> None:
    files = hub.repositories["someone/tiny"]
    files.update({"adapter_config.json": b"{}", "adapter_model.safetensors": b"{}"})
    found = locate("someone/tiny")
    assert not list(found.folder.glob("adapter_*"))
    hub.repositories["someone/adapter"] = {"adapter_config.json": b"{}", "README.md": b"x"}
    with pytest.raises(ModelError, match=r"has no config\.json"):
        locate("someone/adapter")
