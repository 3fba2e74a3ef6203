"""A step of Qwen2.5-7B's shape on a GPU: random weights in bf16, the lengths of huanhuan.json, both sides in turn.

    python -m bench.gpu_7b [--model qwen2.5-0.5b]

The weights are random, for speed does not depend on them; the tokenizer of the 0.5B model has the same tokens. Without
a GPU it stops with a message; ``--layers 1 --device cpu`` tries the script itself.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch

from bench.compare import compare, model_folder, report
from bench.examples import huanhuan
from bench.side import EPOCHS
from bench.train_speed import needed_gflop
from weitune.data.schedule import Plan

SHAPE = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
}
"""The configuration of Qwen2.5-7B-Instruct as published."""


def main() -> None:
    """Measure and print."""
    from transformers import AutoConfig

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-0.5b", help="folder of the tokenizer")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=699, help="of weitune; the default is the whole tutorial")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no GPU here")
    tokenizer = model_folder(arguments.model)
    shape, examples = {**SHAPE, "num_hidden_layers": arguments.layers}, huanhuan(tokenizer)
    result = compare(
        examples,
        tokenizer,
        rounds=arguments.rounds,
        steps={"weitune": arguments.steps, "plain": min(arguments.steps, 12)},
        settled=True,
        shape=shape,
        device=arguments.device,
        precision="bf16",
        tokenizer=tokenizer,
    )
    plan = Plan(len(examples), 16, EPOCHS, 42, arguments.steps)
    needed = needed_gflop(AutoConfig.for_model(**shape), examples, plan)
    seconds = result["weitune"]["seconds"]
    shares = [needed[k] / each / result["peak_gflops"] for run in seconds for k, each in enumerate(run) if k]
    result["needed_gflop"], result["share_of_peak"] = sum(needed) / (16 * plan.steps), statistics.median(shares)
    print(f"{arguments.steps} steps from the first on: {', '.join(f'{sum(run):.1f}' for run in seconds)} s")
    report(f"gpu_7b-{arguments.device}-{arguments.layers}", result)


if __name__ == "__main__":
    main()
