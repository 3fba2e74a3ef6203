"""Real runs of a tiny model on pairs: 14 steps of 3 groups, a checkpoint every 4, and held-out pairs."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.faults.runs import STEPS, Inputs, digest
from tests.tiny import save_tiny
from weitune.run.events import read_events

_QUESTIONS = ("你是谁？", "What can you do?", "今天天气怎么样？", "Tell me a story about the sea.")
_ANSWERS = (
    "I am the assistant.",
    "我是皇帝身边的女人。",
    "今天天气很好，我们可以去花园走走。",
    "Once there was a fisherman.",
    "The capital of France is Paris.",
)
REFERENCE = "reference.safetensors"


def pair_rows(count: int, seed: int = 3) -> list[dict[str, Any]]:
    """Return ``count`` pairs whose prompts have a common beginning now and then."""
    draw = random.Random(seed)
    made = []
    for n in range(count):
        chosen, rejected = draw.sample(_ANSWERS, 2)
        made.append({"prompt": f"{draw.choice(_QUESTIONS)} {n}", "chosen": chosen, "rejected": rejected})
    return made


def make_pairs(folder: Path) -> Inputs:
    """Write a tiny model, 20 pairs to learn and 4 to validate with."""
    folder.mkdir()
    for name, count, seed in (("pairs.jsonl", 20, 3), ("held.jsonl", 4, 4)):
        lines = [json.dumps(row, ensure_ascii=False) for row in pair_rows(count, seed)]
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return Inputs(folder, save_tiny(folder / "model"), folder / "pairs.jsonl")


def keys(inputs: Inputs, method: str) -> dict[str, Any]:
    """Return the keys of a recipe that learns the pairs; KTO makes two groups of each."""
    return {
        "preference.method": method, "train.batch_size": 6 if method == "kto" else 3, "train.learning_rate": 3e-3,
        "validation": str(inputs.folder / "held.jsonl"), "train.evaluate_every": 5, "train.sample_prompts": "",
    }  # fmt: skip


def arguments(pairs: Inputs, run: Path, method: str) -> list[str]:
    """Return the command line that begins the run, or goes on with it if its folder is there."""
    if (run / "recipe.yaml").exists():
        return ["train", "--resume", str(run), "--device", "cpu"]
    tree = {key: value[0] if isinstance(value, list) else value for key, value in pairs.tree(run).items()}
    return ["train", *(f"--{key}={value}" for key, value in {**tree, **keys(pairs, method)}.items()), "--device", "cpu"]


def told(run: Path, kind: str = "step") -> list[dict[str, Any]]:
    """Return what the events of a kind say of the numbers."""
    names = ("step", "loss", "grad_norm", "rewards/chosen", "rewards/margins", "logps/chosen", "logps/rejected", "kl")
    return [
        {name: event[name] for name in names if name in event} for event in read_events(run) if event["event"] == kind
    ]


def assert_same_run(run: Path, expected: Path) -> None:
    """The adapter, the last checkpoint, the reference and every number told are the same bits."""
    assert digest(run / "adapter") == digest(expected / "adapter")
    for file in (f"checkpoint-{STEPS}/optimizer.safetensors", REFERENCE):
        assert (run / file).read_bytes() == (expected / file).read_bytes()
    assert [event["step"] for event in told(run)] == list(range(1, STEPS + 1))
    assert told(run) == told(expected)
    held = [{event["step"]: event for event in told(each, "validation")} for each in (run, expected)]
    assert held[0] == held[1]  # the model before the first step may be judged twice
