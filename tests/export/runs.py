"""Runs of tiny models to export, with data of their own and adapters of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.tiny import save_tiny_run
from weitune import Run
from weitune.progress import Progress

SYSTEM = "你是皇帝身边的女人。"
DIALOGUES = [
    ("Who are you?", "I am the assistant, and I am here to help you."),
    ("你是谁？", "我是皇帝身边的女人，我家住在河边。"),
    ("What is the capital of France?", "The capital of France is Paris. 1 + 23 = 24!"),
    ("请告诉我一个故事。", "从前有一个女人，她住在河边的房子里😀。\n\n每天早上都去花园看花。"),
]
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3.0}},
    "dora": {"use_dora": True},
}


def silent(title: str) -> Progress:
    return lambda done, total: None


def save_run(folder: Path, family: str = "qwen2", *, variant: str = "lora", scale: float = 1, **recipe: Any) -> Run:
    """Write a run of a tiny model whose data are DIALOGUES; ``scale`` multiplies the adapter's B matrices."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    data = folder.parent / "dialogues.json"
    rows = [{"instruction": question, "input": "", "output": answer} for question, answer in DIALOGUES]
    data.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    recipe = {"data": [str(data)], "system": SYSTEM, **recipe}
    save_tiny_run(folder, family, **recipe)
    if variant != "lora" or scale != 1:
        save_adapter(folder / "adapter", folder.parent / f"{folder.name}-model", scale=scale, **VARIANTS[variant])
    return Run(folder)


def save_adapter(folder: Path, model: Path, *, scale: float = 1, seed: int = 1, **config: Any) -> None:
    """Write an adapter with random A, B and (for DoRA) magnitudes."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = {"r": 4, "lora_alpha": 16, "target_modules": targets, "init_lora_weights": False, **config}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(model), LoraConfig(task_type="CAUSAL_LM", **settings)
        )
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.data *= scale
            if "magnitude" in name:
                parameter.data *= 1 + 0.2 * torch.rand(parameter.shape)
    model.save_pretrained(folder)


def tuned_model(run: Run) -> Any:
    """Return base + adapter as peft has it, in float32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(run.recipe.model, dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(run.adapter_folder())).eval()


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(ids).logits
    return result
