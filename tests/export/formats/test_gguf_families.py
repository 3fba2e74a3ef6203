"""Every family that weitune writes to GGUF: llama.cpp answers as transformers does, merged and with an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.data.frame.families import tokenizer_of
from tests.export.formats.gguf_families import FAMILIES, VARIANTS
from tests.export.test_families import trained
from tests.families import family_config, save_family
from weitune import Run
from weitune.errors import ModelError
from weitune.export.options import ExportOptions
from weitune.export.run import Exported, export
from weitune.gguf.families.find import family_of
from weitune.model.file_names import ADAPTER_FILES
from weitune.model.load.config import read_config
from weitune.model.load.locate import ModelFiles
from weitune.model.load.text_model import empty_model
from weitune.model.lora.adapter import attach_adapter
from weitune.model.lora.trainable_state import LoraAdapter
from weitune.recipe.load import build_recipe, dump_recipe
from weitune.recipe.schema import Lora

pytest.importorskip("xllamacpp")

_QUESTIONS = (
    "Who are you?", "What is the capital of France?", "Tell me a story about the sea.", "What can you do?",
    "Thank you for the answer.", "1 + 23 = 24!", "你是谁？", "请告诉我一个故事。",
)  # fmt: skip
_ANSWER = "The river runs past the old house, and the children play in the garden until evening."


def family_run(folder: Path, name: str, overrides: dict[str, Any], lora: Lora | None = None) -> Run:
    """Write a run of a tiny model with a random adapter: on all its linear layers, or as ``lora`` says."""
    save_family(folder / "model", name, **overrides)
    rows = [{"instruction": question, "input": "", "output": _ANSWER} for question in _QUESTIONS]
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    tree = {
        "model": str(folder / "model"),
        "data": [str(folder / "rows.json")],
        "output": str(folder / "run"),
        "train": {"precision": "fp32"},
    }
    (folder / "run").mkdir()
    (folder / "run/recipe.yaml").write_text(dump_recipe(build_recipe(tree)), encoding="utf-8")
    model = empty_model(read_config(ModelFiles(folder / "model"))).to_empty(device="cpu")
    adapted = attach_adapter(model, lora or Lora(r=2), seed=1, base=str(folder / "model"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name:
                parameter.data.normal_(std=0.1)
    saved = LoraAdapter(adapted)
    (folder / "run/adapter").mkdir()
    (folder / "run/adapter" / ADAPTER_FILES[0]).write_bytes(saved.config())
    save_file(saved.tensors(), folder / "run/adapter" / ADAPTER_FILES[1])
    return Run(folder / "run")


def answers(exported: Exported, name: str) -> str:
    assert exported.verdict is not None
    assert exported.verdict.passed
    assert exported.verdict.bounds.mean_difference == (0.02 if name.startswith("gemma") else 1e-3)
    return next(check.found for check in exported.verdict.checks if check.name == "answers")


@pytest.mark.parametrize(("name", "overrides"), [*FAMILIES.items(), *VARIANTS.values()], ids=[*FAMILIES, *VARIANTS])
def test_llama_cpp_answers_as_transformers_does(name: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    run = family_run(tmp_path, name, overrides)
    merged = export(run, tmp_path / "gguf", ExportOptions("gguf", gguf_type="F32"))
    assert answers(merged, name) == "8 of 8 are the same"
    if name == "deepseek_v3":
        with pytest.raises(ModelError, match="kv_b_proj"):
            export(run, tmp_path / "adapter", ExportOptions("gguf-adapter"))
        return
    adapter = export(run, tmp_path / "adapter", ExportOptions("gguf-adapter"))
    assert answers(adapter, name) == answers(merged, name)


def test_queries_of_deepseek_need_not_be_compressed(tmp_path: Path) -> None:
    overrides = {"q_lora_rank": None, "num_hidden_layers": 27}
    exported = export(
        family_run(tmp_path, "deepseek_v3", overrides),
        tmp_path / "gguf",
        ExportOptions("gguf", gguf_type="F32", prompts=2),
    )
    assert answers(exported, "deepseek_v3") == "2 of 2 are the same"


@pytest.mark.parametrize("truncate", [True, False])
def test_a_verdict_says_where_llama_cpp_rounds_the_bounds_of_yarn(tmp_path: Path, truncate: bool) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 10765.0, "factor": 4.0, "original_max_position_embeddings": 64}
    # The bounds are 0 and 1.99999: rounding them changes next to nothing, and the file passes.
    run = family_run(tmp_path, "gpt_oss", {"rope_parameters": {**rope, "truncate": truncate}})
    exported = export(run, tmp_path / "gguf", ExportOptions("gguf", gguf_type="F32", prompts=2))
    assert exported.verdict is not None
    assert any("rounds the bounds of YaRN" in note for note in exported.verdict.notes) is not truncate


def test_adapted_experts_are_merged(tmp_path: Path) -> None:
    run = trained(tmp_path, "mixtral", experts=True)
    assert "experts" in " ".join(run_tensors(run))
    exported = export(run, tmp_path / "gguf", ExportOptions("gguf", gguf_type="F32"))
    assert exported.verdict is not None
    assert exported.verdict.passed
    with pytest.raises(ModelError, match="experts"):
        export(run, tmp_path / "adapter", ExportOptions("gguf-adapter"))


def run_tensors(run: Run) -> list[str]:
    with safe_open(run.path / "adapter/adapter_model.safetensors", framework="pt") as tensors:
        return list(tensors.keys())


@pytest.mark.parametrize(
    ("name", "overrides", "what"),
    [
        ("gemma2", {"query_pre_attn_scalar": 32}, "query_pre_attn_scalar 32"),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("smollm3", {}, "no_rope_layers"),
        ("qwen3_moe", {"mlp_only_layers": []}, "norm_topk_prob False"),
        ("deepseek_v3", {"q_lora_rank": None}, "q_lora_rank null with 2 layers"),
        ("qwen3_5_text", {"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
        ("gemma4_text", {"num_kv_shared_layers": 1}, "num_kv_shared_layers 1"),
        ("gemma4_text", {"vocab_size_per_layer_input": 256}, "vocab_size_per_layer_input 256"),
        ("gemma4_text", {"per_layer_config": {"01": {"head_dim": 32}}}, r"head_dim \[16, 32\]"),
        ("exaone4", {}, "sliding_window 32"),
        ("olmoe", {}, "num_key_value_heads 2"),
        ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob True"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv 8.0"),
        ("falcon_h1", {"attention_bias": True}, "attention_bias True"),
        ("falcon_h1", {"mamba_rms_norm": True}, "mamba_norm_before_gate True"),
        ("falcon_h1", {"time_step_limit": (0.0, 1.0)}, r"time_step_limit \(0.0, 1.0\)"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(name: str, overrides: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelError, match=what):
        family_of(family_config(name, **overrides))


def test_a_vocabulary_of_characters_gives_the_same_tokens(tmp_path: Path) -> None:
    run = family_run(tmp_path, "gemma3_text", {})
    tokenizer_of("gemma").save_pretrained(tmp_path / "model")
    merged = export(run, tmp_path / "gguf", ExportOptions("gguf", gguf_type="F32"))
    assert answers(merged, "gemma3_text") == "8 of 8 are the same"
    assert merged.verdict is not None
    assert merged.verdict.checks[0].passed
