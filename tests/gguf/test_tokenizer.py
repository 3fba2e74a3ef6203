"""A tokenizer that is written as GGUF metadata and read again is the same tokenizer, in all that a file can say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from gguf import GGUFValueType, TokenType
from tests.conftest import tokenizer_of_test_model
from tests.data.frame import families
from tests.gguf.test_splitting import (
    BYTES,
    DEEPSEEK,
    DIGITS,
    GPT2,
    LLAMA3,
    O200K,
    QWEN2,
    QWEN35,
    SEED,
    TEKKEN,
    core_of,
    phi3_tokenizer,
    split,
    splitting_tokenizer,
    steps,
)
from tests.gguf.texts import CHARACTERS, mixed_texts
from tests.model.load.test_gguf_model import HARD
from tests.tiny import TEMPLATES, tiny_tokenizer
from weitune.errors import ModelError
from weitune.gguf.header import read_header
from weitune.gguf.metadata import Field, array, boolean, number, text
from weitune.gguf.splitting import splitting_name, splitting_of
from weitune.gguf.tokenizer import merges_of, tokenizer_of
from weitune.gguf.vocabulary import name_in_file, vocabulary_metadata
from weitune.gguf.writer import write_gguf_file

NFC = {"type": "NFC"}
SPLITS = {
    "gpt-2": (GPT2, False, False),
    "smollm": (steps(DIGITS, GPT2), False, False),
    "qwen2": (steps(split(QWEN2), BYTES), False, True),
    "qwen35": (steps(split(QWEN35), BYTES), False, True),
    "llama-bpe": (steps(split(LLAMA3), BYTES), True, False),
    "dbrx": (steps(split(LLAMA3), BYTES), False, False),
    "seed-coder": (steps(split(SEED), BYTES), False, False),
    "deepseek-v3": (steps(*(split(pattern) for pattern in DEEPSEEK), BYTES), False, False),
    "gpt-4o": (steps(split(O200K), BYTES), False, False),
    "tekken": (steps(split(TEKKEN), BYTES), True, False),
}
"""The pre-tokenizers of published tokenizers, whether they ignore merges, and whether they compose text."""
BYTE_FAMILIES = [name for name, family in families.FAMILIES.items() if family.style == "bytes"]
SMALL = (
    *(f"tiny {name}" for name in TEMPLATES),
    *(f"family {name}" for name in BYTE_FAMILIES),
    "family mistral-legacy", "family gemma", "phi3",
    *(f"split {name}" for name in SPLITS),
)  # fmt: skip
REAL = ("real smollm2-135m", "real qwen2.5-0.5b", "real gemma3-270m")


def original(name: str) -> Any:
    """Return a tokenizer, which composes text where a file's name for its splitting says so."""
    kind, _, which = name.partition(" ")
    if kind == "split":
        step, ignores, composes = SPLITS[which]
        tokenizer = splitting_tokenizer(step, ignore_merges=ignores)
        return composing(tokenizer) if composes else tokenizer
    if kind == "real":
        tokenizer = tokenizer_of_test_model(which)
        return composing(tokenizer) if which.startswith("qwen") else tokenizer
    if kind == "phi3":
        return phi3_tokenizer()
    return tiny_tokenizer(which) if kind == "tiny" else families.tokenizer_of(which)


def composing(tokenizer: Any) -> Any:
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def written(tokenizer: Any, *, unused: int = 0, **also: Field) -> Any:
    """Return what is read from a file with ``tokenizer``, ``unused`` tokens more, and the metadata ``also``."""
    return tokenizer_of(header_of(metadata_of(tokenizer, unused=unused), **also))


def metadata_of(tokenizer: Any, *, unused: int = 0) -> dict[str, Field]:
    template = tokenizer.chat_template or ""
    vocabulary = vocabulary_metadata(tokenizer, len(tokenizer) + unused, [tokenizer.eos_token_id], template)
    return {"general.name": text(name_in_file(tokenizer, "Some")), **vocabulary}


def header_of(metadata: dict[str, Field], **also: Field) -> Any:
    keyed = {key.replace("__", "."): value for key, value in also.items()}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        write_gguf_file(path, "gemma2", {**metadata, **keyed}, [], lambda done, total: None)
        return read_header(path)


@cache
def both(name: str) -> tuple[Any, Any]:
    tokenizer = original(name)
    return tokenizer, written(tokenizer, unused=3)


def assert_same_tokens(first: Any, second: Any, texts: Sequence[str]) -> None:
    for string in texts:
        ids = first.encode(string)
        assert second.encode(string) == ids, string
        plain = first.encode(string, add_special_tokens=False)
        assert second.encode(string, add_special_tokens=False) == plain, string
        for skip in (False, True):
            assert second.decode(ids, skip_special_tokens=skip) == first.decode(ids, skip_special_tokens=skip), string


def around_tokens(tokenizer: Any) -> list[str]:
    """Return texts with every added token in them, with and without space around it."""
    contents = [token.content for token in tokenizer.added_tokens_decoder.values()][:60]
    return [
        *(f"a{content}b" for content in contents),
        *(f"a {content} \n b" for content in contents),
        "".join(contents),
    ]


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in REAL)])
def test_a_tokenizer_comes_back_from_a_file(name: str) -> None:
    first, second = both(name)
    assert len(second) == len(first)
    assert second.get_vocab() == first.get_vocab()
    assert merges(second) == merges(first)
    assert special_tokens(second) == special_tokens(first)
    assert second.all_special_ids == [i for i in first.all_special_ids if i != first.mask_token_id]
    assert second.chat_template == first.chat_template
    assert added(second) == added(first)
    assert_same_tokens(first, second, [*HARD, *mixed_texts(), *around_tokens(first)])


def merges(tokenizer: Any) -> Any:
    return core_of(tokenizer)["model"]["merges"]


def special_tokens(tokenizer: Any) -> list[Any]:
    return [tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token]


def added(tokenizer: Any) -> Any:
    return {i: (token.content, token.special, token.rstrip) for i, token in tokenizer.added_tokens_decoder.items()}


@given(
    st.sampled_from([name for name in SMALL if not name.startswith("tiny")]),
    st.lists(st.one_of(st.sampled_from(CHARACTERS), st.text(max_size=8)), max_size=16),
    st.data(),
)
def test_any_text_becomes_the_same_tokens(name: str, parts: list[str], data: st.DataObject) -> None:
    first, second = both(name)
    contents = sorted(token.content for token in first.added_tokens_decoder.values())
    parts = [*parts, *data.draw(st.lists(st.sampled_from(contents), max_size=3))]
    assert_same_tokens(first, second, ["".join(data.draw(st.permutations(parts)))])


@pytest.mark.parametrize(
    ("name", "as_if"),
    [
        ("smaug-bpe", "llama-bpe"), ("lfm2", "llama-bpe"), ("glm4", "dbrx"), ("starcoder", "smollm"),
        ("refact", "smollm"), ("hunyuan-dense", "deepseek-v3"),
    ],
)  # fmt: skip
def test_names_of_llama_cpps_converter_are_known(name: str, as_if: str) -> None:
    assert splitting_of(name)._replace(opens=False) == splitting_of(as_if)._replace(opens=False)


def test_olmo_composes_text_and_splits_as_gpt_2_does() -> None:
    assert splitting_of("olmo") == splitting_of("gpt-2")._replace(composes=True)


@pytest.mark.parametrize("name", list(SPLITS))
def test_every_name_that_weitune_writes_is_read(name: str) -> None:
    step, ignores, composes = SPLITS[name]
    splitting = splitting_of(name)
    assert (splitting.ignores_merges, splitting.composes) == (ignores, composes)
    isolated = steps(*(split(pattern) for pattern in splitting.patterns), BYTES)
    for pre_tokenizer in (step, isolated):
        core = {"pre_tokenizer": pre_tokenizer, "normalizer": NFC, "model": {"ignore_merges": ignores}}
        assert splitting_name(core) == name


@pytest.mark.parametrize(("name", "whole"), [("llama-bpe", True), ("lfm2", True), ("tekken", True), ("dbrx", False)])
def test_a_word_that_no_merge_makes_is_a_token_where_merges_are_ignored(name: str, whole: bool) -> None:
    metadata = metadata_of(original("split llama-bpe"))
    merges = metadata["tokenizer.ggml.merges"].value
    word = "and"
    assert word in {pair.replace(" ", "") for pair in merges}
    merges[:] = [pair for pair in merges if pair.replace(" ", "") != word]
    read = tokenizer_of(header_of(metadata, tokenizer__ggml__pre=text(name)))
    assert (read.tokenize(word) == [word]) == whole


@pytest.mark.parametrize("name", ["", "default", "falcon-h1", "deepseek-llm", "an-own"])
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"calls '{name}'") as refused:
        written(tiny_tokenizer(), tokenizer__ggml__pre=text(name))
    assert "tokenizer.json" in refused.value.fix


@pytest.mark.parametrize("kind", ["bert", "t5", "gemma4", ""])
def test_another_kind_is_refused(kind: str) -> None:
    with pytest.raises(ModelError, match=f"calls '{kind}'") as refused:
        written(tiny_tokenizer(), tokenizer__ggml__model=text(kind))
    assert "tokenizer.json" in refused.value.fix


def test_a_space_before_text_alone_is_left_out() -> None:
    """Prompts of such a tokenizer begin with a control token, so a space at the very beginning never comes."""
    first, second = families.tokenizer_of("mistral"), written(families.tokenizer_of("mistral"))
    for string in HARD:
        opened = first.encode("<s>" + string)
        assert second.encode("<s>" + string) == opened
        assert second.decode(opened) == first.decode(opened)


@pytest.mark.parametrize("kind", ["chatml", "llama3"])
def test_control_tokens_come_first_and_last_where_the_file_says_so(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    plain = tokenizer.encode("a b", add_special_tokens=False)
    eos = [tokenizer.eos_token_id]
    bos = [tokenizer.bos_token_id] if tokenizer.bos_token else []
    for first in (False, True):
        for last in (False, True):
            flags = {"tokenizer__ggml__add_bos_token": boolean(first), "tokenizer__ggml__add_eos_token": boolean(last)}
            assert written(tokenizer, **flags).encode("a b") == bos * first + plain + eos * last


def test_unused_tokens_keep_the_ids_of_others_and_text_never_becomes_them() -> None:
    tokenizer = families.tokenizer_of("gemma")
    metadata = metadata_of(tokenizer, unused=5)
    tokens, types = metadata["tokenizer.ggml.tokens"].value, metadata["tokenizer.ggml.token_type"].value
    i = tokens.index("▁the")
    types[i] = int(TokenType.UNUSED)
    read = tokenizer_of(header_of(metadata))
    assert len(read) == len(tokenizer)
    assert read.convert_ids_to_tokens(i) == "▁the"
    assert read.get_vocab() == tokenizer.get_vocab()
    assert i in tokenizer.encode("of the a")
    assert i not in read.encode("of the a")
    assert read.decode(read.encode("of the a")) == "of the a"


def test_an_id_beyond_the_vocabulary_is_no_token() -> None:
    read = written(tiny_tokenizer(), tokenizer__ggml__padding_token_id=number(10**6))
    assert read.pad_token is None


def test_control_tokens_of_phi3_alone_swallow_space() -> None:
    tokenizer = phi3_tokenizer()
    metadata = metadata_of(tokenizer)
    as_phi3, otherwise = (tokenizer_of(header_of(metadata, general__name=text(name))) for name in ("My Phi3", "My Phi"))
    string = "<|user|>\n  a<s> b</s> c"
    assert as_phi3.encode(string) == tokenizer.encode(string)
    assert otherwise.encode(string) != tokenizer.encode(string)
    assert not any(token.rstrip for token in otherwise.added_tokens_decoder.values())


def test_pairs_are_merged_by_the_score_of_their_token() -> None:
    tokens = ["<unk>", "<0x0A>", "a", "b", "ab", "aba", "ba", "abab", "[unused]"]
    types = [2, 6, 1, 1, 1, 1, 1, 4, 5]
    scores = [-9.0, -9, -9, -9, -1, -2, -2, -3, -9]
    assert merges_of(tokens, types, scores) == [
        ("a", "b"), ("ab", "a"), ("a", "ba"), ("b", "a"), ("aba", "b"), ("ab", "ab"),
    ]  # fmt: skip


def test_bpe_of_characters_without_a_flag_opens_text_as_llama_cpp_does() -> None:
    """Where a file says nothing, llama.cpp puts BOS first, and a space before text."""
    metadata = metadata_of(families.tokenizer_of("mistral-legacy"))
    for key in ("add_bos_token", "add_space_prefix"):
        del metadata[f"tokenizer.ggml.{key}"]
    read = tokenizer_of(header_of(metadata))
    legacy = families.tokenizer_of("mistral-legacy")
    assert read.encode("the a") == [legacy.bos_token_id, *legacy.encode("the a", add_special_tokens=False)]


def test_bytes_of_unknown_characters_are_decoded_together() -> None:
    first, second = both("family gemma")
    ids = first.encode("😀", add_special_tokens=False)
    assert len(ids) == 4
    assert second.decode(ids) == "😀"


def test_it_is_saved_and_loaded_as_any_other(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    _, read = both("family gemma")
    read.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is type(read)
    assert json.loads(again.backend_tokenizer.to_str()) == json.loads(read.backend_tokenizer.to_str())
    assert isinstance(read.backend_tokenizer, Tokenizer)


def test_scores_may_be_whole_numbers() -> None:
    metadata = metadata_of(families.tokenizer_of("gemma"))
    scores = [int(score) for score in metadata["tokenizer.ggml.scores"].value]
    read = tokenizer_of(header_of(metadata, tokenizer__ggml__scores=array(scores, GGUFValueType.INT32)))
    assert merges(read) == merges(both("family gemma")[1])


def test_tokens_with_one_score_are_merged_in_the_order_of_their_ids() -> None:
    tokens = ["<unk>", "l", "o", "w", "lo", "ow", "low"]
    types = [int(TokenType.UNKNOWN), *[int(TokenType.NORMAL)] * 6]
    assert merges_of(tokens, types, [-1000.0] * 7) == [("l", "o"), ("o", "w"), ("lo", "w"), ("l", "ow")]


@pytest.mark.parametrize(("name", "opens"), [("llama-bpe", True), ("tekken", True), ("qwen2", False), ("dbrx", False)])
def test_some_names_say_that_a_prompt_opens_with_bos(name: str, opens: bool) -> None:
    assert splitting_of(name).opens == opens


def test_only_files_with_phi_3s_tokens_have_it_in_their_name() -> None:
    """llama.cpp goes by the name: control tokens of others would swallow the white space after them."""
    assert name_in_file(families.tokenizer_of("qwen2.5"), "qwen beside Phi-3 and phi3") == "qwen beside phi and phi"
