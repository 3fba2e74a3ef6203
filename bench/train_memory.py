"""How little memory does a training step need? Small micro-batches against the plain recipe, in turn.

    python -m bench.train_memory [--micro-tokens 256] [--model qwen2.5-0.5b] [--rounds 2]

Peak resident memory counts everything: the interpreter and the libraries (0.35 GB), the weights that were touched, and
what a step keeps.
"""

from __future__ import annotations

import argparse

from bench.compare import compare, model_folder, report
from bench.examples import huanhuan


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-tokens", type=int, nargs="+", default=[256])
    parser.add_argument("--model", default="qwen2.5-0.5b")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    model = model_folder(arguments.model)
    examples = huanhuan(model)
    for micro_tokens in arguments.micro_tokens:
        result = compare(examples, model, rounds=arguments.rounds, micro_tokens=micro_tokens)
        report(f"train_memory-{arguments.model}-{micro_tokens}", result)


if __name__ == "__main__":
    main()
