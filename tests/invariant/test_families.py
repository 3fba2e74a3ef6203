"""Every family trains as transformers.Trainer and PEFT train it, resumes to the same bits, and PEFT loads the adapter.

One run of twenty steps in float32 without dropout is made for each family, in the class and with the names that are
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
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from bench.reference import in_plan_order, losses, make_trainer, rows_of
from tests.families import FAMILIES, FAST, MOE, WRAPPED, save_family
from weitune import Recipe, Run, train
from weitune.export.options import ExportOptions
from weitune.export.run import export
from weitune.forecast.own_modules import OwnModules
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.file_names import ADAPTER_FILES
from weitune.recipe.schema import Lora, Train
from weitune.training.inputs import RunInputs, collect_inputs
from weitune.training.reporter import Reporter
from weitune.training.run import resume

QUICK = ("phi3", "gpt_oss", "glm4_moe", "qwen3_5_text", "gemma3")
"""One family of each kind: the others are tested with the slow tests."""
EXPERTS = {*MOE, "gemma4_text_26b", "qwen3_next", "lfm2_moe", "granitemoehybrid", "nemotron_h", "jamba", "llama4"}
"""Families whose experts are trained too, in a second case."""
STEPS, BATCH = 20, 4
SEEDS = {"qwen3_5_moe_text": 1}
"""Of random weights, where those of seed 0 come to two experts that a router likes so equally that rounding decides.
Losses then differ by 3e-3, but by 2e-7 if tokens go to all experts."""
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
    experts: bool
    folder: Path
    trained_by_blocks: bool = False

    @cached_property
    def recipe(self) -> Recipe:
        rows = self.folder / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in dialogues()))
        settings = {
            "precision": "fp32",
            "batch_size": BATCH,
            "max_steps": STEPS,
            "checkpoint_every": STEPS // 2,
            "epochs": 4,
        }
        return Recipe(
            model=str(save_family(self.folder / "model", self.family, SEEDS.get(self.family, 0))),
            data=[str(rows)],
            output=str(self.folder / "run"),
            lora=Lora(dropout=0.0, experts=self.experts),
            train=Train(learning_rate=1e-3, **settings),  # type: ignore[arg-type]
        )

    @cached_property
    def inputs(self) -> RunInputs:
        return collect_inputs(self.recipe, Reporter())

    @cached_property
    def run(self) -> Run:
        with patch.object(BlockDecoder, "states", autospec=True, side_effect=BlockDecoder.states) as passes:
            run = train(self.recipe, device="cpu")
        self.trained_by_blocks = passes.call_count >= STEPS
        return run

    @cached_property
    def start(self) -> Path:
        """The adapter before the first step, as nearly as float32 can tell."""
        still = self.recipe.train.model_copy(update={"learning_rate": 1e-30, "max_steps": 1})
        output = str(self.folder / "start")
        return train(self.recipe.model_copy(update={"train": still, "output": output}), device="cpu").path / "adapter"

    def published(self, folder: Path | None = None) -> Any:
        """Load the model, or that in ``folder``, as its users do, with no dropout of its own."""
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

        model = str(folder or self.recipe.model)
        config = AutoConfig.from_pretrained(model)
        for key in [key for key in config.get_text_config().to_dict() if "dropout" in key]:
            setattr(config.get_text_config(), key, 0.0)
        loader = AutoModelForImageTextToText if self.family in WRAPPED else AutoModelForCausalLM
        return loader.from_pretrained(model, config=config, dtype=torch.float32)

    def with_adapter(self, folder: Path, *, trained: bool = False) -> Any:
        from peft import PeftModel

        return PeftModel.from_pretrained(self.published(), str(folder), is_trainable=trained)


def _cases() -> Iterator[Any]:
    for name in FAMILIES:
        for experts in (False, True) if name in EXPERTS else (False,):
            marks = () if name in QUICK else pytest.mark.slow
            yield pytest.param((name, experts), id=f"{name}-experts" if experts else name, marks=marks)


@pytest.fixture(scope="module", autouse=True)
def memory_is_guessed() -> Iterator[None]:
    """Leave the measurement of memory, which takes seconds, to tests/forecast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OwnModules, "footprint", lambda *_, **__: None)
        yield


@pytest.fixture(scope="module", params=_cases())
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, experts = request.param
    return Case(family, experts, tmp_path_factory.mktemp(family))


def test_the_blocks_train_the_families_that_are_fast(case: Case) -> None:
    assert len(list(case.run.events())) > STEPS
    assert case.trained_by_blocks is (case.family in FAST)  # one that has become fast is to be entered


def test_losses_and_adapter_equal_those_of_trainer_and_peft(case: Case) -> None:
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
    learned, wanted = _adapter(case.with_adapter(case.run.path / "adapter")), _adapter(theirs)
    assert learned.keys() == wanted.keys()
    one, other = (torch.cat([each[name].flatten() for name in wanted]) for each in (learned, wanted))
    assert _distance(one, other) < 1e-4


def test_a_run_that_ended_half_way_resumes_to_the_same_bits(case: Case) -> None:
    whole, torn = case.run.path, case.folder / "torn"
    shutil.copytree(whole, torn)
    for name in (f"checkpoint-{STEPS}", "adapter"):
        shutil.rmtree(torn / name)
    resumed = resume(torn, device="cpu").path
    for name in ADAPTER_FILES:
        assert (resumed / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes()


def test_peft_loads_the_adapter_and_gives_our_logits(case: Case) -> None:
    ours, base = (_logits(case.run.engine(which, device="cpu").model, case) for which in ("last", "base"))
    assert _distance(_logits(case.published(), case), base) < 1e-5
    assert _distance(_logits(case.with_adapter(case.run.path / "adapter"), case), ours) < 1e-5
    assert _distance(base, ours) > 1e-2


def test_the_merged_export_is_base_and_adapter(case: Case) -> None:
    merged = export(case.run, case.folder / "merged", ExportOptions("merged", prompts=0)).folder
    adapted = _logits(case.with_adapter(case.run.path / "adapter"), case)
    assert _distance(_logits(case.published(merged), case), adapted) < 1e-4


def _naming_no_image(collate: Callable[[Any], Any], model: Any) -> Callable[[Any], Any]:
    """Let ``collate`` add zeros for the arguments of ``model`` that say which tokens are an image's."""
    names = set(IMAGE_ARGUMENTS) & set(inspect.signature(model.get_base_model().forward).parameters)

    def collated(rows: Any) -> Any:
        batch = collate(rows)
        return {**batch, **{name: torch.zeros_like(batch["input_ids"]) for name in names}}

    return collated


def _logits(model: Any, case: Case) -> Tensor:
    """Return the logits of the longest of some examples."""
    example = max((case.inputs.examples[k] for k in range(8)), key=lambda each: len(each.input_ids))
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=torch.tensor([example.input_ids])).logits
    return logits


def _adapter(model: Any) -> dict[str, Tensor]:
    """Return the weights of the adapter by their names in ``model``."""
    return {name: p.detach() for name, p in model.named_parameters() if ".lora_" in name}


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
