"""What an export tells other engines about decoding: greedy in every engine's words, and where to stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.export.runs import save_run
from tests.tiny import save_tiny
from weitune.export.options import ExportOptions
from weitune.export.run import export
from weitune.export.source.generation_config import write_generation_config
from weitune.model.load.locate import ModelFiles


def test_greedy_in_the_words_of_every_engine(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "qwen2")  # ships do_sample, temperature 0.7, top_p, top_k, a penalty
    write_generation_config(tmp_path, ModelFiles(base), [492, 490], 490)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {
        "do_sample": False, "temperature": 0.0, "eos_token_id": [492, 490], "pad_token_id": 490,
    }  # fmt: skip


def test_a_merged_export_is_greedy_for_transformers_too_and_can_be_saved_again(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, pipeline
    from transformers.generation.configuration_utils import GenerationMode

    folder = export(save_run(tmp_path / "run"), tmp_path / "merged", ExportOptions("merged", prompts=0)).folder
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.get_generation_mode() is GenerationMode.GREEDY_SEARCH
    ids = torch.tensor([[40, 60, 80]])
    first, second = (model.generate(ids, max_new_tokens=16).tolist() for _ in range(2))
    assert first == second
    logits = model(torch.tensor([first[0][:-1]])).logits[0, 2:]
    assert first[0][3:] == logits.argmax(-1).tolist()
    sampled = model.generate(ids, max_new_tokens=16, do_sample=True, temperature=5.0)
    assert sampled.shape[1] > 3  # a caller's own temperature replaces the file's
    answer = pipeline("text-generation", model=model, tokenizer=str(folder))
    assert answer("river", max_new_tokens=8) == answer("river", max_new_tokens=8)
    model.generation_config.temperature = None  # as docs/export.md says
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["do_sample"] is False
