"""The recipe that people use today, as the documentation of transformers and PEFT has it: the oracle and the baseline.

transformers.Trainer, peft.get_peft_model, DataCollatorForSeq2Seq: padded batches, logits of every position. Tests use
it as the oracle, benchmarks as the baseline.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler

from weitune.data.conversation import Example
from weitune.data.schedule import Plan


@functools.cache
def scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that goes when this process ends: a Trainer wants one even if it saves nothing."""
    return tempfile.TemporaryDirectory()


def rows_of(examples: Sequence[Example]) -> list[dict[str, list[int]]]:
    """Return examples as the rows that DataCollatorForSeq2Seq pads: labels are -100 where nothing is learned."""
    return [
        {
            "input_ids": list(example.input_ids),
            "attention_mask": [1] * len(example.input_ids),
            "labels": [
                token if weight else -100 for token, weight in zip(example.input_ids, example.loss_mask, strict=True)
            ],
        }
        for example in examples
    ]


def in_plan_order(examples: Sequence[Example], plan: Plan) -> list[Example]:
    """Return the examples in the order in which ``plan`` visits them, once for each visit."""
    return [examples[int(i)] for step in range(plan.steps) for i in plan.step(step)]


def make_trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[dict[str, list[int]]],
    *,
    batch_size: int = 16,
    per_device: int = 4,
    **arguments: Any,
) -> Any:
    """Return a Trainer over ``rows`` in their order; ``model`` is a PEFT model. It logs each step, saves nothing."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
            return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    settings = TrainingArguments(
        **{
            "output_dir": scratch().name,
            "per_device_train_batch_size": min(per_device, batch_size),
            "gradient_accumulation_steps": batch_size // min(per_device, batch_size),
            "num_train_epochs": 1,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "linear",
            "max_grad_norm": 1.0,
            "weight_decay": 0.0,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": not torch.cuda.is_available(),
            "seed": 42,
            **arguments,
        }
    )
    return InOrder(
        model=model,
        args=settings,
        train_dataset=list(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True),
    )


def losses(trainer: Any) -> list[float]:
    """Return the loss of every step that ``trainer`` has logged."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
