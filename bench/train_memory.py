"""How little memory does a training step need? Small micro-batches against the plain recipe, in turn.

    python -m bench.train_memory [--micro-tokens 320 256] [--recompute none] [--model qwen2.5-0.5b] [--rounds 2]

Peak resident memory counts everything: the interpreter and the libraries (0.35 GB), the weights that were touched, and
what a step keeps.
"""

from __future__ import annotations

import argparse
from typing import get_args

from bench.compare import compare, model_folder, report
from bench.examples import huanhuan
from weitune.recipe.schema import Recompute

STEPS = {"weitune": 4, "plain": 4}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-tokens", type=int, nargs="+", default=[320, 256])
    parser.add_argument("--recompute", default="none", choices=get_args(Recompute))
    parser.add_argument("--model", default="qwen2.5-0.5b")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    model = model_folder(arguments.model)
    examples = huanhuan(model)
    for micro_tokens in arguments.micro_tokens:
        result = compare(
            examples,
            model,
            rounds=arguments.rounds,
            steps=STEPS,
            micro_tokens=micro_tokens,
            recompute=arguments.recompute,
        )
        again = "" if arguments.recompute == "none" else f"-{arguments.recompute}"
        report(f"train_memory-{arguments.model}-{micro_tokens}{again}", result)


if __name__ == "__main__":
    main()
