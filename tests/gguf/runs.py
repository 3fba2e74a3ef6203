"""Runs of tiny models that have a given vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.export.runs import silent
from tests.tiny import save_tiny_adapter, tiny_model
from weitune import Run
from weitune.export.formats.gguf_file import write_gguf
from weitune.export.source.export_source import ExportSource, open_export_source
from weitune.generate.llama_cpp import LlamaCpp


def run_with_vocabulary(folder: Path, family: str, tokenizer: Any) -> Run:
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


@contextmanager
def in_llama_cpp(run: Run, path: Path) -> Iterator[tuple[ExportSource, LlamaCpp]]:
    """Write the base of ``run`` to ``path``, and open it."""
    source = open_export_source(run)
    write_gguf(path, source, source.base, "F16", template=source.template, progress=silent(""))
    with LlamaCpp(path, context_tokens=64, threads=1) as llama:
        yield source, llama
