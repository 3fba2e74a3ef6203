"""Real runs of a tiny model: 14 steps of 3 examples, a checkpoint every 4."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.tiny import save_tiny
from weitune.recipe.load import build_recipe
from weitune.recipe.schema import Recipe
from weitune.run.events import read_events
from weitune.training.loop import StepRecord
from weitune.training.reporter import Reporter

STEPS, EVERY = 14, 4
_QUESTIONS = ("你是谁？", "What can you do?", "今天天气怎么样？", "Tell me a story about the sea.")
_ANSWERS = (
    "I am the assistant.",
    "我是皇帝身边的女人。",
    "今天天气很好，我们可以去花园走走。",
    "Once there was a fisherman.",
)


@dataclass(frozen=True)
class Inputs:
    """A model and data on disk."""

    folder: Path
    model: Path
    data: Path

    def tree(self, output: Path, **overrides: Any) -> dict[str, Any]:
        """Return a recipe as a flat mapping of dotted names."""
        return {
            "model": str(self.model), "data": [str(self.data)], "output": str(output), "system": "You are Tiny.",
            "train.batch_size": 3, "train.epochs": 2, "train.checkpoint_every": EVERY, "train.keep_checkpoints": 2,
            "train.learning_rate": 1e-2, "train.precision": "fp32", **overrides,
        }  # fmt: skip

    def recipe(self, output: Path, **overrides: Any) -> Recipe:
        return build_recipe({}, self.tree(output, **overrides))

    @cached_property
    def undisturbed(self) -> Path:
        """The folder of a run that nothing disturbed."""
        from weitune.training.run import train

        return train(self.recipe(self.folder / "undisturbed"), device="cpu").path


def make_inputs(folder: Path) -> Inputs:
    """Write a tiny model and 20 rows that share beginnings."""
    folder.mkdir()
    draw = random.Random(7)
    rows = [
        {"instruction": f"{draw.choice(_QUESTIONS)} {n}", "input": "", "output": draw.choice(_ANSWERS)}
        for n in range(20)
    ]
    (folder / "data.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return Inputs(folder, save_tiny(folder / "model"), folder / "data.json")


@dataclass
class Listener(Reporter):
    """Keeps what is said, and does something after a step."""

    after: dict[int, Callable[[], object]] = field(default_factory=dict)
    on_line: Callable[[str], object] = lambda line: None
    lines: list[str] = field(default_factory=list)
    records: list[StepRecord] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)
        self.on_line(line)

    def stepped(self, record: StepRecord) -> None:
        self.records.append(record)
        self.after.get(record.step, lambda: None)()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def digest(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below ``folder``, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_same_result(run: Path, expected: Path) -> None:
    """The final adapter and the last checkpoint are the same bits, and no step is missing or there twice."""
    assert digest(run / "adapter") == digest(expected / "adapter")
    steps = [event["step"] for event in read_events(run) if event["event"] == "step"]
    assert steps == list(range(1, STEPS + 1))
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        last = f"checkpoint-{STEPS}"
        assert (run / last / name).read_bytes() == (expected / last / name).read_bytes()
    mine, theirs = (
        [(e["step"], e["loss"], e["grad_norm"], e["learning_rate"]) for e in read_events(r) if e["event"] == "step"]
        for r in (run, expected)
    )
    assert mine == theirs
    times = [event["time"] for event in read_events(run)]
    assert times == sorted(times)
