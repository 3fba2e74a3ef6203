"""How much faster is a training step? weitune against transformers.Trainer + PEFT, in turn, on real rows.

    python -m bench.train_speed [--data huanhuan.json] [--model qwen2.5-0.5b] [--precision fp32] [--rounds 3]

Data: the tutorial's (huanhuan.json, its framing, 16 examples a step, dropout 0.1). ``needed`` counts the operations
that are left when padding, unsupervised logits and repeated beginnings are gone, as docs/performance.md explains. In
bfloat16 they are also compared with what products with packed matrices of the model's shapes reach.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from bench.compare import compare, model_folder, report
from bench.examples import huanhuan, persona
from bench.side import EPOCHS, packed_flops
from weitune.data.conversation import Example
from weitune.data.pack import pack
from weitune.data.schedule import Plan

STEPS = {"weitune": 10, "plain": 4}
"""Of weitune enough that its memory, which grows with the largest row so far, has settled in half of them."""


def needed_gflop(config: Any, examples: list[Example], plan: Plan) -> list[float]:
    """Return the operations (10⁹) that each step of ``plan`` needs: forward and backward of every distinct token.

    A frozen weight costs 2 operations a token forward and 2 backward; the head works at supervised tokens only.
    """
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // heads
    block = config.hidden_size * size * (2 * heads + 2 * groups) + 3 * config.hidden_size * config.intermediate_size
    rows = [pack([examples[int(i)] for i in plan.step(k)]) for k in range(plan.steps)]
    blocks, head = block * config.num_hidden_layers, config.hidden_size * config.vocab_size
    return [4 * (blocks * len(row) + head * len(row.targets)) / 1e9 for row in rows]


def share_of_peak(figures: dict[str, Any], needed: list[float]) -> float:
    """Return the median over the counted steps of needed operations a second, as a share of what matrix products
    reached before and after the step."""
    shares = [
        needed[k] * 1e9 / seconds[k] / statistics.mean(peaks[k - 1 : k + 1])
        for seconds, peaks in zip(figures["seconds"], figures["peak_flops"], strict=True)
        for k in range(1, len(seconds))
    ]
    return statistics.median(shares)


def beside_packed(
    config: Any, figures: dict[str, Any], needed: list[float], examples: list[Example], plan: Plan
) -> dict[str, float]:
    """Return what packed products of the model's shapes reach now, and what the steps do of it, at the median."""
    size = config.hidden_size // config.num_attention_heads
    hidden, keys, wide = config.hidden_size, config.num_key_value_heads * size, config.intermediate_size
    shapes = [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden)]
    shapes += [(wide, hidden), (wide, hidden), (hidden, wide)]
    rows = statistics.median(len(pack([examples[int(i)] for i in plan.step(k)])) for k in range(plan.steps))
    packed = packed_flops(shapes, int(rows))
    rates = [needed[k] * 1e9 / seconds[k] for seconds in figures["seconds"] for k in range(1, len(seconds))]
    return {"packed_gflops": packed / 1e9, "share_of_packed": statistics.median(rates) / packed}


def main() -> None:
    """Measure and print."""
    from transformers import AutoConfig

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="huanhuan", choices=["huanhuan", "persona"])
    parser.add_argument("--model", default="qwen2.5-0.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--micro-tokens", default="auto")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="of both sides' base model")
    arguments = parser.parse_args()
    model = model_folder(arguments.model)
    examples = (huanhuan if arguments.data == "huanhuan" else persona)(model)
    micro = arguments.micro_tokens if arguments.micro_tokens == "auto" else int(arguments.micro_tokens)
    result = compare(
        examples, model, rounds=arguments.rounds, steps=STEPS, micro_tokens=micro, precision=arguments.precision
    )
    epoch = Plan(len(examples), 16, EPOCHS, 42, 40)
    needed = needed_gflop(AutoConfig.from_pretrained(model), examples, epoch)
    result["needed_gflop"] = sum(needed) / sum(len(epoch.step(k)) for k in range(epoch.steps))
    result["share_of_peak"] = share_of_peak(result["weitune"], needed)
    if arguments.precision == "bf16":
        result.update(beside_packed(AutoConfig.from_pretrained(model), result["weitune"], needed, examples, epoch))
    of = "" if arguments.precision == "fp32" else f"-{arguments.precision}"
    report(f"train_speed-{arguments.model}-{arguments.data}-{arguments.micro_tokens}{of}", result)


if __name__ == "__main__":
    main()
