"""Why do answers not end, and why do they repeat themselves? A run's base and checkpoints, token by token.

    python -m bench.ends RUN [--checkpoints 15 30 60] [--limit 40] [--precision fp32]

For the base and each checkpoint: the loss of the tokens that end a turn, of those that begin an answer and of all
others on the held-out rows; the share of the end in the loss; how probable the end is where it should come, and where
it should not; the greedy answers to held-out questions (how many end, how many repeat a run of eight words, their
length); and how many training answers are repeated word by word.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.compare import RESULTS
from weitune.data.conversation import Example
from weitune.evaluate.evaluation_set import EvaluationSet, Question, evaluation_set
from weitune.evaluate.metrics import distinct, repeats
from weitune.generate.engine import Engine
from weitune.generate.open_model import load_engine
from weitune.generate.run import Run
from weitune.generate.sampling import Sampling
from weitune.model.fast.attention import tree_attention


@dataclass
class Losses:
    """Losses in nats of the learned tokens, by where they stand."""

    ends: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    early: list[float] = field(default_factory=list)
    """Probability of the end where an answer goes on."""

    def figures(self) -> dict[str, float]:
        every = sum(self.ends) + sum(self.firsts) + sum(self.others)
        return {
            "loss": every / (len(self.ends) + len(self.firsts) + len(self.others)),
            "loss_of_ends": mean(self.ends),
            "loss_of_firsts": mean(self.firsts),
            "loss_of_others": mean(self.others),
            "ends_among_tokens": len(self.ends) / (len(self.ends) + len(self.firsts) + len(self.others)),
            "ends_in_loss": sum(self.ends) / every,
            "end_where_due": mean([math.exp(-loss) for loss in self.ends]),
            "end_where_early": mean(self.early),
        }


def main() -> None:
    """Print and keep the figures of every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--checkpoints", type=int, nargs="*", help="steps  [default: all]")
    parser.add_argument("--limit", type=int, default=40, help="questions that are answered")
    parser.add_argument("--training-rows", type=int, default=20)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    arguments = parser.parse_args()
    run = Run(arguments.run)
    rows = evaluation_set(run, (), arguments.limit, arguments.training_rows)
    found: dict[str, Any] = {}
    for which in ("base", *(run.checkpoints() if arguments.checkpoints is None else arguments.checkpoints)):
        recipe = run.recipe
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": arguments.precision})})
        engine = load_engine(recipe, run.adapter_folder(which), files=run.base_files(), device="cpu")
        found[str(which)] = figures = {**losses(engine, rows), **answers(engine, rows, arguments.max_new_tokens)}
        print(which, {key: round(value, 4) for key, value in figures.items()}, flush=True)
        RESULTS.mkdir(exist_ok=True)
        name = f"ends-{arguments.run.name}-{arguments.precision}.json"
        (RESULTS / name).write_text(json.dumps(found, indent=2) + "\n")


def losses(engine: Engine, rows: EvaluationSet) -> dict[str, float]:
    """Return the losses of the held-out rows, each row alone."""
    found = Losses()
    end = engine.framing.end_of_turn
    with torch.inference_mode(), tree_attention(engine.model, on=False):
        for k in range(len(rows.examples)):
            example: Example = rows.examples[k]
            ids = torch.tensor([example.input_ids])
            logs = engine.model(input_ids=ids).logits[0].float().log_softmax(-1)
            for span in example.spans:
                for at in range(span.start, span.stop):
                    token, log = example.input_ids[at], logs[at - 1]
                    kind = found.firsts if at == span.start else found.ends if token == end else found.others
                    kind.append(-float(log[token]))
                    if token != end:
                        found.early.append(math.exp(float(log[end])))
    return found.figures()


def answers(engine: Engine, rows: EvaluationSet, max_new_tokens: int) -> dict[str, float]:
    """Return figures of the likeliest answers to held-out questions, and of those to training questions."""
    said = answer(engine, rows.questions, max_new_tokens)
    learned = [question for question in rows.learned if question.reference]
    known = answer(engine, learned, max_new_tokens)
    by_heart = [a.text.split() == (q.reference or "").split() for q, a in zip(learned, known, strict=True)]
    return {
        "stopped": mean([float(each.stopped) for each in said]),
        "repeating": mean([float(repeats(each.text)) for each in said]),
        "distinct_2": distinct([each.text for each in said], 2),
        "tokens": mean([float(len(each.tokens)) for each in said]),
        "by_heart": mean([float(each) for each in by_heart]),
    }


def answer(engine: Engine, questions: Sequence[Question], max_new_tokens: int) -> Sequence[Any]:
    sampling = Sampling(max_new_tokens=max_new_tokens)
    return engine.answers([question.conversation for question in questions], sampling, batch_size=16)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


if __name__ == "__main__":
    main()
