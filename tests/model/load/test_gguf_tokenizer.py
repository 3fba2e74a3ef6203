"""The tokenizer of a .gguf file is converted once; what the cache has is the same tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gguf import TokenType
from tests.data.frame.families import tokenizer_of as family_tokenizer
from tests.model.load.test_gguf_model import HARD, write_tiny
from tests.tiny import tiny_tokenizer
from weitune.cli.cache.contents import entries
from weitune.errors import ModelError
from weitune.files.cache import cache_folder
from weitune.gguf.metadata import Field, number, text
from weitune.gguf.vocabulary import vocabulary_metadata
from weitune.gguf.writer import write_gguf_file
from weitune.model.load import gguf_tokenizer as module
from weitune.model.load.gguf_tokenizer import TOKENIZER_FILES, gguf_tokenizer, tokenizer_cache
from weitune.model.load.locate import ModelFiles
from weitune.model.load.tokenizer import load_tokenizer


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def files_of(path: Path) -> ModelFiles:
    return ModelFiles(path.parent, gguf=path.name)


def vocabulary_file(path: Path, architecture: str, tokenizer: Any, **also: Field) -> ModelFiles:
    """Write a file that has a vocabulary and nothing else."""
    metadata = vocabulary_metadata(tokenizer, len(tokenizer), [tokenizer.eos_token_id], tokenizer.chat_template)
    keyed = {key.replace("__", "."): value for key, value in also.items()}
    write_gguf_file(path, architecture, {**metadata, **keyed}, [], lambda done, total: None)
    return files_of(path)


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


@pytest.mark.parametrize(
    ("architecture", "family", "also"),
    [
        ("glm4", "qwen3", {}), ("qwen3moe", "qwen2.5", {}), ("gemma3", "gemma", {}),
        ("llama", "mistral-legacy", {"llama__expert_count": number(8)}),
    ],
)  # fmt: skip
def test_architectures_that_weitune_writes_have_a_tokenizer_of_its_own(
    architecture: str, family: str, also: dict[str, Field], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerFast

    expected = family_tokenizer(family)
    files = vocabulary_file(tmp_path / "model.gguf", architecture, expected, **also)
    made = load_tokenizer(files)
    assert type(made) is PreTrainedTokenizerFast
    assert [made.encode(text) for text in HARD] == [expected.encode(text) for text in HARD]
    (folder,) = tokenizer_cache().iterdir()
    monkeypatch.setattr(module, "tokenizer_of", lambda _: pytest.fail("made again"))
    kept = load_tokenizer(files)
    assert module._facts(kept) == module._facts(made)
    assert [kept.encode(text) for text in HARD] == [expected.encode(text) for text in HARD]
    assert [(entry.kind, entry.path) for entry in entries(cache_folder())] == [("tokenizers", folder)]


def test_the_name_of_a_model_tells_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = family_tokenizer("mistral-legacy")
    for name, strips in (("Phi-3", True), ("Mistral", False)):
        files = vocabulary_file(tmp_path / "model.gguf", "phi3", tokenizer, general__name=text(name))
        made = load_tokenizer(files)
        assert any(token.rstrip for token in made.added_tokens_decoder.values()) == strips
    assert len(list(tokenizer_cache().iterdir())) == 2


def test_a_splitting_that_weitune_does_not_know_is_named(tmp_path: Path) -> None:
    also = {"tokenizer__ggml__pre": text("falcon-h1")}
    files = vocabulary_file(tmp_path / "model.gguf", "falcon-h1", tiny_tokenizer(), **also)
    with pytest.raises(ModelError, match="falcon-h1"):
        load_tokenizer(files)


def test_another_vocabulary_or_template_is_another_tokenizer(tmp_path: Path) -> None:
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


def test_a_tokenizer_beside_the_file_is_taken(tmp_path: Path) -> None:
    """Also where the file says nothing that weitune knows about splitting text."""
    own = tiny_tokenizer("chatml")
    also = {"tokenizer__ggml__pre": text("falcon-h1")}
    files = vocabulary_file(tmp_path / "model.gguf", "falcon-h1", own, **also)
    own.save_pretrained(tmp_path)
    for names in ((), TOKENIZER_FILES[1:]):  # the last is then alone
        for name in names:
            (tmp_path / name).unlink(missing_ok=True)
        made = load_tokenizer(files)
        assert [made.encode(each) for each in HARD] == [own.encode(each) for each in HARD]
        assert made.chat_template == own.chat_template
        assert (made.bos_token, made.eos_token) == (own.bos_token, own.eos_token)


@pytest.mark.parametrize(
    ("text", "known", "kind", "same"),
    [
        ("a", "a", TokenType.NORMAL, True), ("a", "b", TokenType.NORMAL, False), ("a", None, TokenType.NORMAL, False),
        ("  ", "▁▁", TokenType.USER_DEFINED, True), (" ", "▁", TokenType.NORMAL, False),
        ("[PAD12]", None, TokenType.NORMAL, True), ("<|im_start|>", None, TokenType.CONTROL, False),
        ("[unused1]", "x", TokenType.UNUSED, True), ("<0x0A>", None, TokenType.BYTE, False),
    ],
)  # fmt: skip
def test_what_converters_change_is_the_same_token(text: str, known: str | None, kind: TokenType, same: bool) -> None:
    assert module._is_same_token(text, known, kind) == same


def test_a_tokenizer_of_another_model_beside_the_file_is_refused(tmp_path: Path) -> None:
    files = vocabulary_file(tmp_path / "model.gguf", "glm4", family_tokenizer("qwen3"))
    tiny_tokenizer("chatml").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"tokenizer\.json beside .*model\.gguf' has other tokens"):
        load_tokenizer(files)
