"""Every family trains as transformers.Trainer and PEFT train it, resumes to the same bits, and PEFT loads the adapter.

One run of ten steps in float32 without dropout is made for each family, in the class and with the names that are
published. The oracle starts from the adapter that a step of no size leaves, loaded by PEFT.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.reference import in_plan_order, losses, make_trainer, rows_of
from tests.families import FAMILIES, WRAPPED, save_family
from weitune import Recipe, Run, train
from weitune.generate.open_model import attach_saved_adapter
from weitune.model.file_names import ADAPTER_FILES
from weitune.model.load.weights import load_model
from weitune.recipe.schema import Lora, Train
from weitune.training.inputs import RunInputs, collect_inputs
from weitune.training.reporter import Reporter
from weitune.training.run import resume

QUICK = ("phi3", "gpt_oss", "glm4_moe", "qwen3_5_text", "gemma3")
"""One family of each kind: the others are tested with the slow tests."""
STEPS, BATCH = 10, 4
IMAGE_ARGUMENTS = ("token_type_ids", "mm_token_type_ids")
"""What models that see images want to know of every token in training: that it is none of an image."""


def dialogues() -> Iterator[dict[str, Any]]:
    """Yield dialogues of different lengths that share beginnings."""
    questions = "Who are you?", "What can you do for me, and for the children in the garden?", "你是谁？"
    answers = "I am here to help.", "Ask me about the old house, the river and the sea.", "No.", "我是你的助手。"
    for question in questions:
        for answer in answers:
            for more in ("", "Thank you!"):
                turns = [("user", question), ("assistant", answer), ("user", more), ("assistant", "You are welcome.")]
                yield {"messages": [{"role": role, "content": text} for role, text in turns[: 4 if more else 2]]}


@dataclass
class Case:
    """A family's tiny model with what is trained of it, each made when it is first asked for."""

    family: str
    folder: Path

    @cached_property
    def recipe(self) -> Recipe:
        rows = self.folder / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in dialogues()))
        settings = {"precision": "fp32", "batch_size": BATCH, "max_steps": STEPS, "checkpoint_every": STEPS // 2}
        return Recipe(
            model=str(save_family(self.folder / "model", self.family)),
            data=[str(rows)],
            output=str(self.folder / "run"),
            lora=Lora(dropout=0.0),
            train=Train(learning_rate=1e-3, **settings),  # type: ignore[arg-type]
        )

    @cached_property
    def inputs(self) -> RunInputs:
        return collect_inputs(self.recipe, Reporter())

    @cached_property
    def run(self) -> Run:
        return train(self.recipe, device="cpu")

    @cached_property
    def start(self) -> Path:
        """The adapter before the first step, as nearly as float32 can tell."""
        still = self.recipe.train.model_copy(update={"learning_rate": 1e-30, "max_steps": 1})
        output = str(self.folder / "start")
        return train(self.recipe.model_copy(update={"train": still, "output": output}), device="cpu").path / "adapter"

    def published(self) -> Any:
        """Load the model as its users do, with no dropout of its own."""
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

        config = AutoConfig.from_pretrained(self.recipe.model)
        for key in [key for key in config.get_text_config().to_dict() if "dropout" in key]:
            setattr(config.get_text_config(), key, 0.0)
        loader = AutoModelForImageTextToText if self.family in WRAPPED else AutoModelForCausalLM
        return loader.from_pretrained(self.recipe.model, config=config, dtype=torch.float32)

    def with_adapter(self, folder: Path, *, trained: bool = False) -> Any:
        from peft import PeftModel

        return PeftModel.from_pretrained(self.published(), str(folder), is_trainable=trained)


TRAINED = [name for name in FAMILIES if name not in WRAPPED or name == "gemma3"]


@pytest.fixture(
    scope="module", params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TRAINED]
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def test_losses_equal_those_of_trainer_and_peft(case: Case) -> None:
    theirs, inputs = case.with_adapter(case.start, trained=True), case.inputs
    examples = [inputs.examples[k] for k in range(len(inputs.examples))]
    trainer = make_trainer(
        theirs, inputs.tokenizer, rows_of(in_plan_order(examples, inputs.plan)), batch_size=BATCH, learning_rate=1e-3
    )
    trainer.data_collator = _naming_no_image(trainer.data_collator, theirs)
    trainer.train()
    expected = losses(trainer)
    assert len(expected) == STEPS
    ours = [event["loss"] for event in case.run.events() if event["event"] == "step"]
    assert ours == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < expected[0]


def test_a_run_that_ended_after_step_five_resumes_to_the_same_bits(case: Case) -> None:
    whole, torn = case.run.path, case.folder / "torn"
    shutil.copytree(whole, torn)
    for name in (f"checkpoint-{STEPS}", "adapter"):
        shutil.rmtree(torn / name)
    resumed = resume(torn, device="cpu").path
    for name in ADAPTER_FILES:
        assert (resumed / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes()


def test_peft_loads_the_adapter_and_gives_our_logits(case: Case) -> None:
    example = max((case.inputs.examples[k] for k in range(8)), key=lambda each: len(each.input_ids))
    ids = torch.tensor([example.input_ids])
    ours = load_model(case.recipe.model, precision="fp32", device="cpu").model
    base = _logits(ours, ids)
    tuned = _logits(attach_saved_adapter(ours, case.run.path / "adapter"), ids)
    theirs = _logits(case.with_adapter(case.run.path / "adapter"), ids)
    assert _distance(theirs, tuned) < 1e-5
    assert _distance(base, tuned) > 1e-2
    assert _distance(base, _logits(case.published(), ids)) < 1e-5


def _naming_no_image(collate: Callable[[Any], Any], model: Any) -> Callable[[Any], Any]:
    """Let ``collate`` add zeros for the arguments of ``model`` that say which tokens are an image's."""
    names = set(IMAGE_ARGUMENTS) & set(inspect.signature(model.get_base_model().forward).parameters)

    def collated(rows: Any) -> Any:
        batch = collate(rows)
        return {**batch, **{name: torch.zeros_like(batch["input_ids"]) for name in names}}

    return collated


def _logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=ids).logits
    return logits


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
