"""Real vocabularies, under a tiny model: llama.cpp makes the same tokens of prompts as the run does.

`bench/export_equality.py` has the long form, on every row of a run's data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.export.runs import silent
from tests.tiny import save_tiny_adapter, tiny_model
from weitune import Run
from weitune.data.conversation import Conversation, Turn
from weitune.export.formats.gguf_file import write_gguf
from weitune.export.source.export_source import open_export_source
from weitune.export.verify.outputs_gguf import LlamaCppModel
from weitune.export.verify.prompts import VerificationPrompt
from weitune.generate.llama_cpp import LlamaCpp

pytest.importorskip("xllamacpp")
ODD = [
    "", " ", "  two  spaces  and\ttabs\t\t", "\n\n\nlines\r\n\r\nand more\n", "1234567890 3.14 ½ ²", "don't I'LL we'Ve",
    "naïve café ŒUVRE", "😀👩\u200d👩\u200d👧 \u200d\ufeff", "ภาษาไทย हिन्दी العربية",
    "def f(x):\n    return x**2  # ok", "“臣妾”——做不到啊！……（跪）", "<p>&amp;</p> {{ x }} {% y %}", "｜ ▁ Ġ ĉ",
]  # fmt: skip
"""All of it composed (NFC): llama.cpp does not compose, as Qwen's tokenizer does (docs/export.md)."""


@pytest.mark.parametrize(("name", "family"), [("qwen", "qwen2"), ("smollm2", "llama")])
def test_llama_cpp_tokenizes_as_the_run_does(
    name: str, family: str, shared_data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(f"{name}_tokenizer")
    run = _run(tmp_path, family, tokenizer)
    source = open_export_source(run)
    path = tmp_path / "tiny.gguf"
    write_gguf(path, source, source.base, "F16", template=source.template, progress=silent(""))
    rows = json.loads((shared_data / "huanhuan.json").read_text(encoding="utf-8"))
    questions = [*ODD, *(row["instruction"] + row["input"] for row in rows[::50])]
    with LlamaCpp(path, context_tokens=64, threads=1) as llama:
        model = LlamaCppModel(llama, source.framing.end_of_turn, framed=True)
        for question in questions:
            asked = Conversation((Turn("user", question),))
            prompt = tuple(source.framing.prompt(source.with_system(asked)))
            assert model.prompt_tokens(VerificationPrompt(asked, prompt, prompt, ())) == prompt, question


def _run(folder: Path, family: str, tokenizer: Any) -> Run:
    """Write a run of a tiny model that has the vocabulary of ``tokenizer``."""
    from weitune.recipe.load import build_recipe, dump_recipe

    model = tiny_model(
        family, vocab_size=len(tokenizer), tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    save_tiny_adapter(folder / "run" / "adapter", folder / "model")
    tree = {"model": str(folder / "model"), "data": ["x.json"], "system": "现在你要扮演皇帝身边的女人--甄嬛"}
    (folder / "run" / "recipe.yaml").write_text(dump_recipe(build_recipe(tree)), encoding="utf-8")
    return Run(folder / "run")
