"""A step of Qwen2.5-7B's shape on a GPU: random weights in bf16, the lengths of huanhuan.json, both sides in turn.

    python -m bench.gpu_7b [--model qwen2.5-0.5b]

The weights are random, for speed does not depend on them; the tokenizer of the 0.5B model has the same tokens. Without
a GPU it stops with a message; ``--layers 1 --device cpu`` tries the script itself.
"""

from __future__ import annotations

import argparse
import sys

import torch

from bench.compare import compare, model_folder, report
from bench.examples import huanhuan

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-0.5b", help="folder of the tokenizer")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no GPU here")
    tokenizer = model_folder(arguments.model)
    result = compare(
        huanhuan(tokenizer),
        tokenizer,
        rounds=arguments.rounds,
        steps={"weitune": 30, "plain": 10} if arguments.device == "cuda" else {"weitune": 2, "plain": 2},
        shape={**SHAPE, "num_hidden_layers": arguments.layers},
        device=arguments.device,
        dtype="bfloat16",
        tokenizer=tokenizer,
    )
    report(f"gpu_7b-{arguments.device}-{arguments.layers}", result)


if __name__ == "__main__":
    main()
