"""The tokenizer of a .gguf file is converted once; what the cache has is the same tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.load.test_gguf_model import HARD, write_tiny
from weitune.cli.cache.contents import entries
from weitune.files.cache import cache_folder
from weitune.model.load import gguf_tokenizer as module
from weitune.model.load.gguf_tokenizer import gguf_tokenizer, tokenizer_cache
from weitune.model.load.locate import ModelFiles


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def files_of(path: Path) -> ModelFiles:
    return ModelFiles(path.parent, gguf=path.name)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_it_is_converted_once_and_the_same_again(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(write_tiny(tmp_path / "model.gguf", family))
    converted = gguf_tokenizer(files)
    (folder,) = tokenizer_cache().iterdir()
    monkeypatch.setattr(module, "_keep", lambda *_: pytest.fail("converted again"))
    kept = gguf_tokenizer(files)
    assert module._facts(kept) == module._facts(converted)
    assert kept.name_or_path == converted.name_or_path == str(files.folder)
    assert [kept(text)["input_ids"] for text in HARD] == [converted(text)["input_ids"] for text in HARD]
    assert [(entry.kind, entry.path) for entry in entries(cache_folder())] == [("tokenizers", folder)]


def test_another_vocabulary_or_template_is_another_tokenizer(tmp_path: Path) -> None:
    from weitune.gguf.metadata import text

    gguf_tokenizer(files_of(write_tiny(tmp_path / "model.gguf", "qwen2")))
    other = write_tiny(tmp_path / "other.gguf", "qwen2", also={"tokenizer.chat_template": text("{{ messages }}")})
    assert gguf_tokenizer(files_of(other)).chat_template == "{{ messages }}"
    assert len(list(tokenizer_cache().iterdir())) == 2


def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    files = files_of(write_tiny(tmp_path / "model.gguf", "qwen2"))
    expected = module._facts(gguf_tokenizer(files))
    (folder,) = tokenizer_cache().iterdir()
    (folder / "tokenizer.json").write_text("{")
    assert module._facts(gguf_tokenizer(files)) == expected
    assert module._facts(gguf_tokenizer(files)) == expected


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(write_tiny(tmp_path / "model.gguf", "qwen2"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert gguf_tokenizer(files).chat_template


def test_a_tokenizer_that_is_read_differently_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(write_tiny(tmp_path / "model.gguf", "qwen2"))
    monkeypatch.setattr(module, "_facts", lambda _: object())
    gguf_tokenizer(files)
    assert list(tokenizer_cache().iterdir()) == []
