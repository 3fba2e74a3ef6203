"""How much faster is a family of models? weitune against transformers.Trainer + PEFT, in turn, on the same examples.

    python -m bench.family_speed [FAMILY …] [--shared 300] [--rounds 2] [--steps 3]

Random weights in the shapes of bench/family_shapes.py, and gemma3-270m with its real ones; float32, without dropout,
so that both sides must have the same losses, which is checked. The examples are the rows of huanhuan.json in the
tutorial's framing: for random weights, the tokens of Qwen2.5 modulo the vocabulary, so lengths and beginnings are true
ones. ``--shared`` puts so many tokens before all of them. A family takes about a minute on two cores.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
from dataclasses import replace
from typing import Any

import torch

from bench.baseline import processor
from bench.compare import compare, model_folder, report
from bench.examples import huanhuan
from bench.family_shapes import SHAPES, VOCABULARY, shape
from tests.tiny import tiny_tokenizer
from weitune.cli.shared.terminal import quiet_libraries
from weitune.data.conversation import Example

REAL = "gemma3-270m"
"""A test model with real weights."""
BATCH = 16
TOLERANCE = 1e-4
"""Relative difference of losses."""


def begun_with(examples: list[Example], count: int, vocabulary: int) -> list[Example]:
    """Return ``examples`` with the same ``count`` tokens before each of them."""
    draw = random.Random(0)
    common = tuple(draw.randrange(vocabulary) for _ in range(count))
    return [
        replace(
            example,
            input_ids=(*common, *example.input_ids),
            spans=tuple(span._replace(start=span.start + count, stop=span.stop + count) for span in example.spans),
        )
        for example in examples
    ]


def within(vocabulary: int, examples: list[Example]) -> list[Example]:
    """Return ``examples`` with tokens below ``vocabulary``; what was equal stays equal."""
    return [replace(each, input_ids=tuple(token % vocabulary for token in each.input_ids)) for each in examples]


def save_random(folder: str, family: str) -> None:
    """Write a model of ``family`` with random weights, and a tokenizer with which the plain side pads."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape(family)), dtype=torch.float32)
    _scale_queries(model)
    model.save_pretrained(folder)
    tiny_tokenizer("chatml").save_pretrained(folder)


def _scale_queries(model: Any) -> None:
    """Let the norms of queries divide by √d where the attention does not, as those of a trained model do.

    Otherwise scores are so large that float32 rounds the gradients of both sides by 0.4 % (Gemma 4).
    """
    for module in model.modules():
        if hasattr(module, "q_norm") and getattr(module, "scaling", None) == 1.0:
            module.q_norm.weight.data.mul_(module.head_dim**-0.5)


def measure(name: str, shared: int, **turns: int) -> dict[str, Any]:
    """Return the figures of both sides for the family or test model ``name``."""
    if name == REAL:
        return trained(model_folder(name), huanhuan(model_folder(name)), shared, **turns)
    with tempfile.TemporaryDirectory() as scratch:
        folder = f"{scratch}/{name}"
        save_random(folder, name)
        return trained(folder, within(VOCABULARY, huanhuan(model_folder("qwen2.5-0.5b"))), shared, **turns)


def trained(model: str, examples: list[Example], shared: int, *, rounds: int, steps: int) -> dict[str, Any]:
    """Train the model in the folder ``model`` on both sides."""
    examples, counts = begun_with(examples, shared, VOCABULARY), {"weitune": steps, "plain": steps}
    result = compare(examples, model, rounds=rounds, steps=counts, batch_size=BATCH, dropout=0.0, same_adapter=True)
    return {**result, "processor": processor(), "shared_tokens": shared, "losses_equal": equal(result)}


def equal(result: dict[str, Any]) -> bool:
    """Return whether both sides had the same losses."""
    ours, theirs = (result[side]["losses"] for side in ("weitune", "plain"))
    return all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(ours, theirs, strict=True))


def main() -> int:
    """Measure and print; return 1 if the losses of a family differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [REAL, *SHAPES]
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"{', '.join(names)}; the default is all")
    parser.add_argument("--shared", type=int, default=0, help="tokens that all examples begin with")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="of each side a round; the first is not counted")
    arguments = parser.parse_args()
    if unknown := set(arguments.families) - set(names):
        parser.error(f"no shape for {', '.join(sorted(unknown))}")
    quiet_libraries()
    wrong = []
    for name in arguments.families or names:
        result = measure(name, arguments.shared, rounds=arguments.rounds, steps=arguments.steps)
        report(f"family_speed-{name}" + (f"-shared{arguments.shared}" if arguments.shared else ""), result)
        print(
            f"  {result['processor']}; {'fast blocks' if result['weitune']['plain_blocks'] else 'its own modules'}",
            flush=True,
        )
        if not result["losses_equal"]:
            wrong.append(name)
            print(f"  LOSSES DIFFER: {result['weitune']['losses']} and {result['plain']['losses']}", flush=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
