"""llama.cpp splits text, under the names that weitune writes, as the tokenizers library does by the expressions.

The pre-tokenizers are those of published tokenizer.json files. The vocabularies are trained on the very texts and
without splitting, so that merges join all that is not kept apart: another split gives other tokens.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.data.frame.families import tokenizer_of
from tests.families import family_config
from tests.gguf.runs import in_llama_cpp, run_with_vocabulary
from tests.gguf.texts import mixed_texts
from tests.tiny import TEMPLATES
from weitune.data.conversation import Conversation, Turn
from weitune.errors import ModelError
from weitune.export.verify.outputs_gguf import LlamaCppModel
from weitune.export.verify.prompts import VerificationPrompt
from weitune.export.verify.verification import _differences
from weitune.generate.llama_cpp import LlamaCpp
from weitune.gguf.splitting import space_before_text, splits_otherwise, splitting_name

Step = dict[str, Any]
_CONTRACTED = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN2 = _CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
QWEN35 = _CONTRACTED + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Seed-Coder, with line ends as characters, as llama.cpp's source quotes its tokenizer.json.
SEED = (
    _CONTRACTED
    + "|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)  # fmt: skip
# DeepSeek V3, R1 and V4 and Hunyuan dense, with line ends as characters.
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
_WORD = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_NAME = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_LINES = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = rf"{_WORD}{_CONTRACTED}?|{_NAME}{_CONTRACTED}?|\p{{N}}{{1,3}}{_LINES}"
TEKKEN = rf"{_WORD}|{_NAME}|\p{{N}}{_LINES}"

END, OPENING, BOS, UNKNOWN = "<|im_end|>", "<|endoftext|>", "<s>", "<unk>"
ASCII_BLANKS = " \t\n\r\v\f"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {**BYTES, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def split(pattern: str, behavior: str = "Isolated", *, invert: bool = False) -> Step:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def steps(*parts: Step) -> Step:
    return {"type": "Sequence", "pretokenizers": list(parts)}


PUBLISHED = [
    ("gpt-2", GPT2, False),  # GPT-2, Phi-2, OLMo
    ("smollm", steps(DIGITS, GPT2), False),  # SmolLM2, StarCoder, Granite 3
    ("qwen2", steps(split(QWEN2), BYTES), False),
    ("qwen35", steps(split(QWEN35), BYTES), False),
    ("llama-bpe", steps(split(LLAMA3), BYTES), True),
    ("llama-bpe", steps(split(LLAMA3, "Removed", invert=True), BYTES), True),  # Midm 2.0
    ("dbrx", steps(split(LLAMA3), BYTES), False),  # OLMo 2, GLM-4
    ("seed-coder", steps(split(SEED), BYTES), False),
    ("deepseek-v3", steps(*(split(pattern) for pattern in DEEPSEEK), BYTES), False),
]


@cache
def unsplit() -> str:
    """Return tokenizer.json of a vocabulary that has learned the texts as a whole."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(
        mixed_texts(), trainers.BpeTrainer(vocab_size=6000, initial_alphabet=alphabet, show_progress=False)
    )
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in TEMPLATES["chatml"].special])
    return core.to_str()


def splitting_tokenizer(pre_tokenizer: Step, *, ignore_merges: bool = False) -> Any:
    from transformers import PreTrainedTokenizerFast

    core = json.loads(unsplit())
    core["pre_tokenizer"] = pre_tokenizer
    core["normalizer"] = {"type": "Sequence", "normalizers": []}  # as DeepSeek has it
    core["model"]["ignore_merges"] = ignore_merges
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(core)), eos_token=END, pad_token=OPENING,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATES["chatml"].template
    return tokenizer


def core_of(tokenizer: Any) -> Step:
    core: Step = json.loads(tokenizer.backend_tokenizer.to_str())
    return core


def other_tokens(tokenizer: Any, llama: LlamaCpp, of: list[str]) -> list[str]:
    """Return the texts of which llama.cpp makes other tokens than ``tokenizer``."""
    asked = {"add_special": False, "parse_special": False}
    return [
        text
        for text in of
        if llama.request("/tokenize", {"content": text, **asked})["tokens"]
        != tokenizer.encode(text, add_special_tokens=False)
    ]


@pytest.mark.parametrize(("name", "pre_tokenizer", "ignore_merges"), PUBLISHED)
def test_llama_cpp_splits_as_the_expressions_do(
    name: str, pre_tokenizer: Step, ignore_merges: bool, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    tokenizer = splitting_tokenizer(pre_tokenizer, ignore_merges=ignore_merges)
    assert splitting_name(core_of(tokenizer)) == name
    with in_llama_cpp(run_with_vocabulary(tmp_path, "llama", tokenizer), tmp_path / "tiny.gguf") as (_, llama):
        assert other_tokens(tokenizer, llama, mixed_texts()) == []


@pytest.mark.parametrize(("name", "pattern"), [("gpt-4o", O200K), ("tekken", TEKKEN)])
def test_names_under_which_llama_cpp_splits_otherwise_are_known(name: str, pattern: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    tokenizer = splitting_tokenizer(steps(split(pattern), BYTES))
    assert splitting_name(core_of(tokenizer)) == name
    assert splits_otherwise(core_of(tokenizer))
    config = family_config("qwen3")
    (note,) = _differences(SimpleNamespace(tokenizer=tokenizer, config=config))  # type: ignore[arg-type]
    assert "combining marks" in note
    plain = splitting_tokenizer(steps(split(r"\p{N}"), BYTES))
    assert not _differences(SimpleNamespace(tokenizer=plain, config=config))  # type: ignore[arg-type]
    with in_llama_cpp(run_with_vocabulary(tmp_path, "llama", tokenizer), tmp_path / "tiny.gguf") as (_, llama):
        different = set(other_tokens(tokenizer, llama, mixed_texts()))
    assert any("\u0915\u093f" in text for text in different)
    assert any("éÉ" in text for text in different)


@pytest.mark.parametrize(
    ("pre_tokenizer", "said"),
    [
        (split(LLAMA3, "MergedWithPrevious"), "MergedWithPrevious"),
        (steps(*(split(pattern, "Removed", invert=True) for pattern in DEEPSEEK), BYTES), "Removed, inverted"),
        ({**GPT2, "add_prefix_space": True}, "add_prefix_space"),
        (steps(GPT2, DIGITS), "does not know"),
    ],
)
def test_other_ways_to_split_are_refused(pre_tokenizer: Step, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        splitting_name({"pre_tokenizer": pre_tokenizer, "normalizer": None, "model": {}})


def test_only_composing_may_come_before_splitting() -> None:
    core: Step = {"pre_tokenizer": GPT2, "normalizer": {"type": "NFC"}, "model": {}}
    assert splitting_name(core) == "gpt-2"
    core["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKC"}]}
    with pytest.raises(ModelError, match="by NFKC"):
        splitting_name(core)


SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREFIX = {"type": "Prepend", "prepend": "▁"}


def characters(normalizer: Step | None, splitter: Step | None = None, *, normalized: bool = False) -> Step:
    return {"normalizer": normalizer, "pre_tokenizer": splitter, "added_tokens": [{"normalized": normalized}]}


def metaspace(scheme: str, *, split: bool = False) -> Step:
    return characters(None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split})


def test_a_space_before_text_is_recognised() -> None:
    both = {"type": "Sequence", "normalizers": [PREFIX, SPACE]}
    assert space_before_text(characters(both), opened=False)
    assert not space_before_text(characters(SPACE), opened=False)
    assert not space_before_text(metaspace("never"), opened=False)
    assert not space_before_text(metaspace("first"), opened=True)


@pytest.mark.parametrize(
    ("core", "said"),
    [
        (metaspace("first"), "beginning of a prompt alone"),
        (metaspace("always"), "unless there is one"),
        (metaspace("never", split=True), "Metaspace"),
        (characters(PREFIX), "by Prepend"),
        (characters(None), "by none"),
        (characters({"type": "Sequence", "normalizers": [{"type": "NFKC"}, SPACE]}), "by NFKC"),
        (characters({"type": "Sequence", "normalizers": [PREFIX, SPACE]}, normalized=True), "added tokens after"),
        (characters(SPACE, DIGITS), "Digits"),
    ],
)
def test_other_spaces_before_text_are_refused(core: Step, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        space_before_text(core, opened=False)


def phi3_tokenizer() -> Any:
    """Return a tokenizer whose control tokens swallow the white space after them, as those of Phi-3."""
    from transformers import PreTrainedTokenizerFast

    core = core_of(tokenizer_of("mistral-legacy"))
    core["added_tokens"] = []
    backend = Tokenizer.from_str(json.dumps(core))
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in (UNKNOWN, BOS, OPENING)])
    stripping = ("</s>", "<|user|>", "<|end|>")
    backend.add_special_tokens([AddedToken(text, rstrip=True, normalized=False) for text in stripping])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=OPENING, pad_token=OPENING, unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<|user|>\\n' + message.content + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|endoftext|> ' }}{% endif %}"
    )
    return tokenizer


@pytest.mark.parametrize("name", ["mistral", "mistral-legacy", "phi3"])
def test_characters_and_spaces_before_them_are_the_same(name: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    tokenizer = phi3_tokenizer() if name == "phi3" else tokenizer_of(name)
    run = run_with_vocabulary(tmp_path, "llama", tokenizer)
    with in_llama_cpp(run, tmp_path / "tiny.gguf") as (source, llama):
        model = LlamaCppModel(llama, source.framing.end_of_turn, framed=True)
        for question in mixed_texts()[:150]:
            if name == "phi3" and question.lstrip() != question.lstrip(ASCII_BLANKS):
                continue  # llama.cpp swallows the blanks of ASCII only
            asked = Conversation((Turn("user", question),))
            prompt = tuple(source.framing.prompt(source.with_system(asked)))
            assert model.prompt_tokens(VerificationPrompt(asked, prompt, prompt, ())) == prompt, question
