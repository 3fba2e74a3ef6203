"""Real vocabularies, under a tiny model: llama.cpp makes the same tokens of prompts as the run does.

`bench/export_equality.py` has the long form, on every row of a run's data.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.gguf.runs import in_llama_cpp, run_with_vocabulary
from tests.gguf.texts import ODD
from weitune.data.conversation import Conversation, Turn
from weitune.export.verify.outputs_gguf import LlamaCppModel
from weitune.export.verify.prompts import VerificationPrompt

pytest.importorskip("xllamacpp")


def test_tokens_beyond_the_embedding_are_left_out() -> None:
    from gguf import TokenType
    from weitune.gguf.vocabulary import _tokens

    added = [{"id": 1, "content": "<end>", "special": True}, {"id": 4, "content": "<image>", "special": True}]
    texts, types = _tokens({"model": {"vocab": {"a": 0, "z": 3}}, "added_tokens": added}, 3)
    assert texts == ["a", "<end>", "[unused2]"]
    assert types == [TokenType.NORMAL, TokenType.CONTROL, TokenType.UNUSED]


@pytest.mark.parametrize(("name", "family"), [("qwen", "qwen2"), ("smollm2", "llama")])
def test_llama_cpp_tokenizes_as_the_run_does(
    name: str, family: str, shared_data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(f"{name}_tokenizer")
    rows = json.loads((shared_data / "huanhuan.json").read_text(encoding="utf-8"))
    questions = [*ODD, *(row["instruction"] + row["input"] for row in rows[::50])]
    run = run_with_vocabulary(tmp_path, family, tokenizer)
    with in_llama_cpp(run, tmp_path / "tiny.gguf") as (source, llama):
        model = LlamaCppModel(llama, source.framing.end_of_turn, framed=True)
        for question in questions:
            asked = Conversation((Turn("user", question),))
            prompt = tuple(source.framing.prompt(source.with_system(asked)))
            assert model.prompt_tokens(VerificationPrompt(asked, prompt, prompt, ())) == prompt, question
