"""A run from Python: every family, the end of a turn, and a resume to the same bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import TEMPLATE_OF, save_tiny
from weitune import Recipe, Run, train
from weitune.data.frame.choose import framing_for
from weitune.data.prepare.prepare import prepare
from weitune.errors import DataError, Interrupted, RunError
from weitune.model.load.locate import locate
from weitune.model.load.tokenizer import load_tokenizer
from weitune.recipe.schema import Lora, Tokens, Train
from weitune.training.loop import StepRecord
from weitune.training.reporter import Reporter
from weitune.training.run import resume

DIALOGUES = [
    {
        "messages": [
            {"role": "user", "content": f"What is {n} and {n}?"},
            {"role": "assistant", "content": f"It is {2 * n}."},
            {"role": "user", "content": "Thank you!"},
            {"role": "assistant", "content": "You are welcome."},
        ]
    }
    for n in range(12)
]


def recipe_for(folder: Path, family: str = "qwen2", **keys: object) -> Recipe:
    model = save_tiny(folder / "model", family)
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in DIALOGUES))
    fields: dict[str, object] = {
        "model": str(model),
        "data": [str(data)],
        "output": str(folder / "run"),
        "train": Train(batch_size=4, epochs=2, checkpoint_every=2, learning_rate=1e-3),
        **keys,
    }
    return Recipe.model_validate(fields)


@pytest.mark.parametrize("family", TEMPLATE_OF)
def test_every_family_learns_to_end_its_turn_and_stops_there(family: str, tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, family, train=Train(batch_size=4, epochs=1))
    framing = framing_for(load_tokenizer(locate(recipe.model)), recipe.tokens)
    prepared = prepare(recipe, framing)
    assert len(prepared) >= len(DIALOGUES)
    for k in range(len(prepared)):
        example = prepared[k]
        assert all(example.input_ids[span.stop - 1] == framing.end_of_turn for span in example.spans)
    run = train(recipe, device="cpu")
    assert set(framing.stop_tokens) <= set(run.engine("last", device="cpu").stop_tokens)
    assert isinstance(run.chat("Who are you?", device="cpu", max_new_tokens=5), str)


def test_examples_that_never_end_are_refused_before_the_first_step(tmp_path: Path) -> None:
    recipe = recipe_for(tmp_path, tokens=Tokens(max_length=40, truncation="cut"))
    with pytest.raises(DataError, match=r"end its turn|learned|supervised"):
        train(recipe, device="cpu")
    assert not (tmp_path / "run").exists()


def test_tokens_that_the_base_cannot_write_are_told_before_the_first_step(tmp_path: Path) -> None:
    class Listener(Reporter):
        def say(self, line: str) -> None:
            told.append(line)

        def stepped(self, record: StepRecord) -> None:
            told.append("a step")

    told: list[str] = []
    recipe = recipe_for(tmp_path, train=Train(batch_size=4, max_steps=1))
    weights = Path(recipe.model) / "model.safetensors"
    tensors, ids = load_file(weights), load_tokenizer(locate(recipe.model)).get_vocab()
    tensors["lm_head.weight"][ids["<|im_end|>"]] = tensors["lm_head.weight"][ids["<|im_start|>"]]
    save_file(tensors, weights, metadata={"format": "pt"})
    train(recipe, device="cpu", reporter=Listener())
    at = [place for place, line in enumerate(told) if "never trained on <|im_end|>:" in line]
    assert len(at) == 1
    assert at[0] < told.index("a step")


class StopAfter(Reporter):
    """Press Ctrl-C after a step, as a person would."""

    def __init__(self, step: int) -> None:
        self._step = step

    def stepped(self, record: StepRecord) -> None:
        if record.step == self._step:
            import signal

            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_stopped_run_resumes_to_the_same_bits(stop: int, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = train(recipe_for(tmp_path / "a", lora=Lora(dropout=0.2)), device="cpu")
    with pytest.raises(Interrupted, match="--resume"):
        train(recipe_for(tmp_path / "b", lora=Lora(dropout=0.2)), device="cpu", reporter=StopAfter(stop))
    assert Run(tmp_path / "b" / "run").checkpoints()[-1] == stop
    resumed = resume(tmp_path / "b" / "run", device="cpu")
    ours, theirs = (load_file(run.path / "adapter" / "adapter_model.safetensors") for run in (resumed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    losses = [[e["loss"] for e in run.events() if e["event"] == "step"] for run in (resumed, whole)]
    assert losses[0] == losses[1]


def test_a_run_from_before_a_key_existed_resumes_as_it_was(tmp_path: Path) -> None:
    """Version 0.1.0 learned empty thoughts, and did not know the key that asks for it."""
    rows = [{"messages": row["messages"][:2]} for row in DIALOGUES]
    learned: dict[str, Run] = {}
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        recipe = recipe_for(tmp_path / name, "qwen3", tokens=Tokens(learn_empty_reasoning=True))
        Path(recipe.data[0]).write_text("".join(json.dumps(row) + "\n" for row in rows))
        if name == "whole":
            learned[name] = train(recipe, device="cpu")
            continue
        with pytest.raises(Interrupted):
            train(recipe, device="cpu", reporter=StopAfter(1))
        record = tmp_path / name / "run" / "recipe.yaml"
        text = record.read_text()
        assert "  learn_empty_reasoning: true\n" in text
        record.write_text(text.replace("  learn_empty_reasoning: true\n", ""))
        assert Run(record.parent).recipe.tokens.learn_empty_reasoning
        for checkpoint in record.parent.glob("checkpoint-*"):  # they hold the recipe too
            shutil.rmtree(checkpoint)
        learned[name] = resume(record.parent, device="cpu")
    adapters = [(run.path / "adapter" / "adapter_model.safetensors").read_bytes() for run in learned.values()]
    assert adapters[0] == adapters[1]
    with pytest.raises(RunError, match="learn_empty_reasoning: True before, False now"):
        resume(tmp_path / "stopped" / "run", overrides={"tokens.learn_empty_reasoning": False}, device="cpu")


def test_dropout_changes_from_step_to_step_but_not_from_run_to_run(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    runs = [train(recipe_for(tmp_path / name, lora=Lora(dropout=0.2)), device="cpu") for name in ("a", "b")]
    adapters = [(run.path / "adapter" / "adapter_model.safetensors").read_bytes() for run in runs]
    assert adapters[0] == adapters[1]
