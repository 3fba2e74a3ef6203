"""What is uploaded: an adapter that loads, a card of what the run recorded, and no path of this machine."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.export.runs import SYSTEM, logits, save_run, tuned_model
from weitune import Run
from weitune.cli import main
from weitune.data.conversation import Conversation, Turn
from weitune.errors import InputError, MissingExtraError, RunError
from weitune.export.hub.model_card import without_paths
from weitune.export.hub.push import base_licence, upload, write_repository
from weitune.export.source.export_source import open_export_source
from weitune.model.load.locate import is_hub_id
from weitune.recipe.load import build_recipe, dump_recipe
from weitune.recipe.schema import Recipe

DATA = {
    "rows": {"read": 10, "trained": 8, "set_aside": {"answer is empty": 2}},
    "tokens": {"all": 1234, "supervised": 567},
    "found": {"exact_duplicates": 3},
    "kept": {"examples": 40, "learned_tokens": 63, "share": 0.1, "target": "rows"},
    "sources": [{"name": "/home/me/secret/dialogues.json", "format": "alpaca", "rows": 10}],
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = save_run(tmp_path / "mine" / "run", "qwen2")
    (run.path / "data.json").write_text(json.dumps(DATA), encoding="utf-8")
    (run.path / "environment.json").write_text(json.dumps({"precision": "fp32", "packages": {"torch": "2.13.0"}}))
    steps = [{"event": "step", "step": step, "loss": loss, "tokens": 50} for step, loss in ((1, 3.25), (2, 1.5))]
    judged = [{"event": "validation", "step": step, "loss": loss} for step, loss in ((0, 4.0), (2, 2.25))]
    events = [*steps, *judged, {"event": "end", "step": 2, "adapter_step": 2}]
    (run.path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (Path(run.recipe.model) / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
    return run


def head_of(card: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert match
    head: dict[str, Any] = yaml.safe_load(match[1])
    return head


def test_the_card_says_what_the_run_recorded(run: Run, tmp_path: Path) -> None:
    write_repository(run, tmp_path / "out", "me/zhenhuan")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert head_of(card) == {
        "license": "apache-2.0", "library_name": "peft", "pipeline_tag": "text-generation", "tags": ["lora", "weitune"],
    }  # fmt: skip
    for told in (
        "# zhenhuan\n", f"> {SYSTEM}", "10 rows were read and 8 trained.", "2 rows were set aside (answer is empty)",
        "1,234 tokens, of which 567 were learned", "3 rows repeat",
        "40 examples that keep what the base knew (`keep`, target `rows`) are 10.0% of",
        "| dialogues.json | alpaca | 10 |",
        "2 optimizer steps over 100 tokens", "from 3.250 to 1.500",
        "validation data is 2.2500; that of the base was 4.0000",
        "Trained in fp32, with torch 2.13.0",
        "its licence is `apache-2.0`",
    ):  # fmt: skip
        assert told in card


def test_the_card_holds_the_evaluation_of_this_adapter_and_no_other(run: Run, tmp_path: Path) -> None:
    def judged(which: str, step: int | None, loss: float) -> dict[str, Any]:
        scores = {"chrf": 10 * loss, "tokens": 5.0}
        return {"which": which, "step": step, "loss": loss, "perplexity": 9.0, "scores": scores, "general": None}

    models = [judged("base", None, 4.5), judged("step 1", 1, 3.25), judged("last", run.adapter_step("last"), 2.125)]
    rows = {"name": "/home/me/secret/validation.json", "examples": 12, "questions": 7}
    (run.path / "evaluation.json").write_text(json.dumps({"rows": rows, "models": models}))
    write_repository(run, tmp_path / "out", "me/zhenhuan")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "on validation.json: 12 examples, 7 questions" in card
    assert "| | base | this adapter |\n| --- | ---: | ---: |\n| loss | 4.500 | 2.125 |" in card
    assert "| chrF | 45.000 | 21.250 |" in card

    (run.path / "evaluation.json").write_text(json.dumps({"rows": rows, "models": models[:2]}))
    write_repository(run, tmp_path / "other", "me/zhenhuan")
    assert "## Evaluation" not in (tmp_path / "other" / "README.md").read_text(encoding="utf-8")


def test_the_card_names_the_method_of_preferences(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "qwen2", preference="dpo")
    write_repository(run, tmp_path / "out", "me/captain")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert head_of(card)["tags"] == ["lora", "dpo", "weitune"]
    assert "by the method `dpo`" in card


def test_the_card_of_a_bare_run_claims_nothing(tmp_path: Path) -> None:
    write_repository(save_run(tmp_path / "run", "llama"), tmp_path / "out", "me/bare")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "license" not in head_of(card)
    assert "## Data" not in card
    assert "## Training" not in card
    assert "see there for its licence" in card


def test_no_path_of_this_machine_is_in_it(run: Run, tmp_path: Path) -> None:
    write_repository(run, tmp_path / "out", "me/zhenhuan")
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
                     "recipe.yaml", "weitune.json"]  # fmt: skip
    for name in files:
        content = (tmp_path / "out" / name).read_bytes()
        assert str(tmp_path).encode() not in content, name
        assert b"/home/me" not in content, name
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "run-model"


def test_the_adapter_loads_and_the_template_frames_as_the_run(run: Run, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    write_repository(run, tmp_path / "out", "me/zhenhuan")
    base = AutoModelForCausalLM.from_pretrained(run.recipe.model, dtype=torch.float32)
    ids = torch.arange(20)[None]
    uploaded = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    assert torch.equal(logits(uploaded, ids), logits(tuned_model(run), ids))
    assert (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8") == open_export_source(run).template


def test_no_key_of_the_card_names_a_folder(tmp_path: Path) -> None:
    tree = {"model": "/secret/model", "data": ["/secret/a.json"], "validation": ["/secret/b.json"]}
    keys = {"keep.data": ["/secret/c.json"], "keep.run": "/secret/run", "lora.init_from": "/secret/start"}
    named = without_paths(build_recipe(tree, keys))
    assert "secret" not in dump_recipe(named)
    assert named.keep is not None
    assert (named.validation_files, named.keep.data, named.keep.run) == (["b.json"], ["c.json"], "run")
    plain = without_paths(build_recipe({"model": "m", "data": ["d.json"]}, {"keep": 0.1}))
    assert plain.keep is not None
    assert (plain.keep.data, plain.keep.run) == (None, None)


def test_models_of_hubs_keep_their_names(tmp_path: Path) -> None:
    recipe = save_run(tmp_path / "run", "qwen2").recipe
    named = recipe.model_copy(
        update={"model": "Qwen/Qwen2.5-0.5B-Instruct", "data": ["builtin:captain-en", "a/b.json"]}
    )
    assert is_hub_id(named.model)
    assert without_paths(named).model == "Qwen/Qwen2.5-0.5B-Instruct"
    assert without_paths(named).data == ["builtin:captain-en", "b.json"]
    for local in ("builtin:smollm2-135m", "./model", "~/model", str(tmp_path)):
        assert not is_hub_id(local)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("teknium/OpenHermes-2.5", "teknium/OpenHermes-2.5"),
        ("owner/name/config:train", "owner/name/config:train"),
        ("builtin:captain-en", "builtin:captain-en"),
        ("secret/rows.jsonl.gz", "rows.jsonl.gz"),
        ("secret/rows.json:train", "rows.json:train"),
        ("/secret/folder", "folder"),
        ("./rows", "rows"),
        ("secret\\rows.csv", "rows.csv"),
    ],
)
def test_files_lose_their_folders_and_data_of_hubs_keep_their_owner(name: str, shown: str) -> None:
    named = without_paths(Recipe(model="Qwen/Qwen2.5-0.5B-Instruct", data=[name]))
    assert named.data == [shown]


@pytest.mark.parametrize(
    ("tokens", "system"),
    [({}, None), ({}, SYSTEM), ({"template": "tutorial"}, None)],
    ids=["own default", "system", "tutorial"],
)
def test_the_cards_code_frames_as_the_run(tokens: dict[str, Any], system: str | None, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "qwen2", tokens=tokens, system=system)
    write_repository(run, tmp_path / "out", "me/zhenhuan")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    base = Path(run.recipe.model).name
    code = code.replace(repr(base), repr(run.recipe.model)).replace("'me/zhenhuan'", repr(str(tmp_path / "out")))
    names: dict[str, Any] = {}
    exec(code.replace("max_new_tokens=512", "max_new_tokens=2"), names)  # noqa: S102
    asked = run.engine(device="cpu").prompt(Conversation((Turn("user", "…"),)).with_system(system))
    assert names["prompt"]["input_ids"].tolist() == [asked]


def test_the_licence_comes_from_the_bases_files_or_its_page(run: Run) -> None:
    source = open_export_source(run)
    assert base_licence(source, lambda name: "never asked") == "apache-2.0"
    (Path(run.recipe.model) / "README.md").unlink()
    assert base_licence(source, lambda name: "never asked") is None  # a folder has no page


@pytest.mark.parametrize("name", ["zhenhuan", "me/zhen/huan", "me/", "me/zhen huan"])
def test_what_is_no_repository_is_refused(run: Run, name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the name of a repository"):
        write_repository(run, tmp_path / "out", name)


def test_a_folder_of_somebody_elses_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("…")
    with pytest.raises(RunError, match="is not an export"):
        write_repository(run, tmp_path / "out", "me/zhenhuan")


def test_a_whole_model_is_refused(run: Run, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (run.path / "adapter" / "config.json").write_text("{}")
    save_file({}, run.path / "adapter" / "model.safetensors")
    with pytest.raises(RunError, match="holds a whole model"):
        write_repository(run, tmp_path / "out", "me/zhenhuan")


class Hub:
    """Takes the place of a hub's client, and remembers what it was asked for."""

    calls: list[tuple[str, dict[str, Any]]]
    fails = False
    is_public = False

    def __init__(self) -> None:
        type(self).calls = []

    def create_repo(self, repository: str, **options: Any) -> str:
        self.calls.append((repository, options))
        return f"https://hub.example/{repository}"

    def get_model(self, repository: str, revision: str | None) -> dict[str, Any]:
        return {"Visibility": 5 if self.is_public else 1}

    def model_info(self, repository: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(private=not self.is_public)

    def upload_folder(self, **options: Any) -> None:
        if self.fails:
            raise ConnectionError("no route to the hub\nand more")
        self.calls.append(("upload", options))


def test_huggingface_gets_the_folder_without_our_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert upload(tmp_path, "me/zhenhuan") == "https://hub.example/me/zhenhuan"
    (name, created), (_, uploaded) = Hub.calls
    assert (name, created) == ("me/zhenhuan", {"private": True, "exist_ok": True})
    assert (uploaded["folder_path"], uploaded["ignore_patterns"]) == (tmp_path, ["weitune.json"])


def test_a_public_repository_that_is_there_needs_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "is_public", True)
    with pytest.raises(InputError, match="is public"):
        upload(tmp_path, "me/zhenhuan")
    assert [name for name, _ in Hub.calls] == ["me/zhenhuan"]
    upload(tmp_path, "me/zhenhuan", private=False)
    assert [name for name, _ in Hub.calls] == ["me/zhenhuan", "upload"]


def test_another_export_is_not_replaced(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weitune.json").write_text('{"format": "merged"}')
    with pytest.raises(RunError):
        write_repository(run, tmp_path / "out", "me/zhenhuan")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["weitune.json"]


def test_modelscope_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope.hub.api", types.SimpleNamespace(HubApi=Hub))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "modelscope.hub", types.ModuleType("modelscope.hub"))
    monkeypatch.setitem(sys.modules, "modelscope", types.ModuleType("modelscope"))
    assert upload(tmp_path, "me/zhenhuan", hub="modelscope", private=False).endswith("/models/me/zhenhuan")
    assert Hub.calls[0] == ("me/zhenhuan", {"visibility": "public", "exist_ok": True})
    (tmp_path / "README.md").write_text("---\nlicense: other\nlanguage: zh\n---\n\n# A run\n")
    upload(tmp_path, "me/zhenhuan", hub="modelscope")
    assert Hub.calls[0] == ("me/zhenhuan", {"visibility": "private", "exist_ok": True, "license": "other"})
    monkeypatch.setattr(Hub, "is_public", True)
    with pytest.raises(InputError, match="is public"):
        upload(tmp_path, "me/zhenhuan", hub="modelscope")
    assert [name for name, _ in Hub.calls] == ["me/zhenhuan"]
    monkeypatch.setitem(sys.modules, "modelscope.hub.api", None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError, match="modelscope"):
        upload(tmp_path, "me/zhenhuan", hub="modelscope")


def test_the_command_writes_then_uploads_and_tells_what_failed(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    Hub.calls = []
    folder = run.path / "export" / "repository"
    assert main(["push", str(run.path), "--to", "me/zhenhuan", "--dry-run"]) == 0
    assert (folder / "README.md").is_file()
    assert Hub.calls == []
    assert main(["push", str(run.path), "--to", "me/zhenhuan"]) == 0
    assert "done: https://hub.example/me/zhenhuan" in capsys.readouterr().err
    monkeypatch.setattr(Hub, "fails", True)
    assert main(["push", str(run.path), "--to", "me/zhenhuan"]) == 2
    shown = capsys.readouterr().err
    assert "could not be uploaded to me/zhenhuan: no route to the hub\n" in shown
    assert "hf auth login" in shown
    assert main(["push", str(run.path), "--to", "me/zhenhuan", "--checkpoint", "base"]) == 2
