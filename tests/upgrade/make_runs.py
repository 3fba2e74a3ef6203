"""Make the runs in ``made_by_0.1.0``, with weitune 0.1.0: python -m tests.upgrade.make_runs FOLDER

The folder gets a tiny model, its data, and three runs: ``finished``, ``stopped`` (a stop came after step 5 of 12) with
``undisturbed`` (what it would have become), and ``dora``. ``expected.json`` has what they answered.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

QUESTIONS = ("Who are you?", "你是谁？", "What is the capital of France?")
ROWS = [
    ("Who are you?", "I am the assistant."),
    ("你是谁？", "我是皇帝身边的女人。"),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Tell me a story.", "Once there was a fisherman."),
    ("今天天气怎么样？", "今天天气很好。"),
    ("What can you do?", "I can answer what you ask me."),
]
KEYS: dict[str, Any] = {
    "model": "model", "data": ["dialogues.json"], "validation": ["held.json"], "system": "You are Tiny.",
    "lora.r": 2, "lora.alpha": 8, "lora.target_modules": ["v_proj", "o_proj", "down_proj"],
    "train.batch_size": 2, "train.epochs": 4, "train.learning_rate": 0.02, "train.precision": "fp32",
    "train.checkpoint_every": 4, "train.keep_checkpoints": 1, "train.evaluate_every": 4, "train.sample_tokens": 6,
}  # fmt: skip
"""Of every run: 12 steps, an evaluation every 4."""
RUNS: dict[str, dict[str, Any]] = {
    "finished": {"train.patience": 9},
    "undisturbed": {"validation": None, "lora.dropout": 0.25},
    "stopped": {"validation": None, "lora.dropout": 0.25},
    "dora": {"validation": None, "lora.dora": True, "train.epochs": 1},
}
STOP_AFTER = 5


def write_inputs(folder: Path) -> None:
    """Write a model of one layer, its tokenizer and the data."""
    from tests.tiny import tiny_model, tiny_tokenizer

    tiny_model(
        "qwen2", hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=256, tie_word_embeddings=False,
    ).save_pretrained(folder / "model")  # fmt: skip
    tiny_tokenizer("chatml-default").save_pretrained(folder / "model")
    for name, rows in (("dialogues.json", ROWS), ("held.json", ROWS[:2])):
        tree = [{"instruction": question, "input": "", "output": answer} for question, answer in rows]
        (folder / name).write_text(json.dumps(tree, ensure_ascii=False, indent=1), encoding="utf-8")


def train_one(name: str, output: str) -> None:
    """Train the run ``name`` in the working directory; ``stopped`` ends after :data:`STOP_AFTER` steps."""
    from weitune.errors import Interrupted
    from weitune.recipe.load import build_recipe
    from weitune.training.loop import StepRecord
    from weitune.training.reporter import Reporter
    from weitune.training.run import train
    from weitune.training.signals import StopRequest

    stop = StopRequest()

    class Stopping(Reporter):
        def stepped(self, record: StepRecord) -> None:
            if name == "stopped" and record.step == STOP_AFTER:
                stop.stop()

    recipe = build_recipe({}, {**KEYS, **RUNS[name], "output": output})
    try:
        train(recipe, device="cpu", reporter=Stopping(), stop=stop)
    except Interrupted:
        if name != "stopped":
            raise


def main() -> None:
    """Make everything in the folder that the command line names."""
    import torch

    from weitune import Run

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    write_inputs(folder)
    os.chdir(folder)
    for name in RUNS:
        train_one(name, name)
        (Path(name) / "report.html").unlink()
    answers = {
        name: [Run(name).chat(question, max_new_tokens=12, device="cpu") for question in QUESTIONS] for name in RUNS
    }
    expected = json.dumps({"answers": answers}, ensure_ascii=False, indent=1) + "\n"
    Path("expected.json").write_text(expected, encoding="utf-8")
    for left in ("undisturbed/checkpoint-12", "undisturbed/data.json"):  # its adapter and events are enough
        path = Path(left)
        shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main()
