"""How much faster is a training step? weitune against transformers.Trainer + PEFT, in turn, on real rows.

    python -m bench.train_speed [--data huanhuan.json] [--model qwen2.5-0.5b] [--rounds 3]

Data: the tutorial's (huanhuan.json, its framing, 16 examples a step, dropout 0.1). ``needed`` counts the operations
that are left when padding, unsupervised logits and repeated beginnings are gone, as docs/performance.md explains.
"""

from __future__ import annotations

import argparse

from bench.compare import compare, model_folder, report
from bench.examples import huanhuan, persona


def needed_gflop(model: str, examples: list, batch_size: int) -> float:
    """Return the operations (10⁹) that an example needs on average: forward and backward of every distinct token.

    A frozen weight costs 2 operations a token forward and 2 backward; the head works at supervised tokens only.
    """
    from transformers import AutoConfig

    from weitune.data.pack import pack
    from weitune.data.plan import Plan

    config = AutoConfig.from_pretrained(model)
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // heads
    block = config.hidden_size * size * (2 * heads + 2 * groups) + 3 * config.hidden_size * config.intermediate_size
    plan = Plan(len(examples), batch_size, 1, 42)
    steps = range(min(plan.steps, 40))
    rows = [pack([examples[int(i)] for i in plan.step(k)]) for k in steps]
    tokens, predictions = sum(len(row) for row in rows), sum(len(row.targets) for row in rows)
    products = 4 * (block * config.num_hidden_layers * tokens + config.hidden_size * config.vocab_size * predictions)
    return products / 1e9 / sum(len(plan.step(k)) for k in steps)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="huanhuan", choices=["huanhuan", "persona"])
    parser.add_argument("--model", default="qwen2.5-0.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--micro-tokens", default="auto")
    arguments = parser.parse_args()
    model = model_folder(arguments.model)
    examples = (huanhuan if arguments.data == "huanhuan" else persona)(model)
    micro = arguments.micro_tokens if arguments.micro_tokens == "auto" else int(arguments.micro_tokens)
    result = compare(examples, model, rounds=arguments.rounds, micro_tokens=micro)
    result["needed_gflop"] = needed_gflop(model, examples, 16)
    report(f"train_speed-{arguments.model}-{arguments.data}-{arguments.micro_tokens}", result)


if __name__ == "__main__":
    main()
