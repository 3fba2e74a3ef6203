"""What does sharing save? Speed against the plain recipe as more of every example is common to all.

    python -m bench.shared_prefix [--model smollm2-135m] [--prefix 0 64 300 512] [--answers 1 2 4 8]

Made examples of random tokens, all equally long, so that padding plays no part: a prefix shared by all, then 32 tokens
of prompt, then 24 learned tokens; with ``--answers``, so many answers to each prompt.
"""

from __future__ import annotations

import argparse

from bench.compare import compare, model_folder, report
from bench.examples import made

STEPS = {"weitune": 3, "plain": 2}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prefix", type=int, nargs="*", default=[0, 64, 300, 512])
    parser.add_argument("--answers", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    model = model_folder(arguments.model)
    for prefix in arguments.prefix:
        examples = made(64, prefix=prefix, prompt=32, answer=24)
        result = compare(examples, model, rounds=arguments.rounds, steps=STEPS)
        report(f"shared_prefix-{arguments.model}-prefix{prefix}", result)
    for answers in arguments.answers:
        examples = made(64, prefix=0, prompt=64, answer=24, answers_per_prompt=answers)
        result = compare(examples, model, rounds=arguments.rounds, steps=STEPS)
        report(f"shared_prefix-{arguments.model}-answers{answers}", result)


if __name__ == "__main__":
    main()
