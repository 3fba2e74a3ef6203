"""Does a token cost more in a long conversation? Seconds a token from 256 to 8,192 tokens of context.

    python -m bench.long_context [--model qwen2.5-0.5b] [--lengths 256 1024 2048 4096 8192]

One conversation a step, a tenth of it learned. Only weitune is measured: the lengths take turns in one process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from bench.compare import RESULTS, model_folder
from bench.examples import made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-0.5b")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 2048, 4096, 8192])
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()

    from accelerate import Accelerator

    from weitune.data.schedule import Plan
    from weitune.model.load.weights import load_model
    from weitune.recipe.schema import Lora, Train
    from weitune.training.build import make_loop, make_trainable

    model = model_folder(arguments.model)
    trainable = make_trainable(load_model(model, precision="fp32", device="cpu"), Lora(), seed=0, base=model)
    accelerator = Accelerator(cpu=True)

    class Silent:
        def stepped(self, record: Any) -> bool:
            return True

        def failed(self, record: Any) -> None:
            raise RuntimeError(record)

    seconds: dict[int, list[float]] = {length: [] for length in arguments.lengths}
    for _ in range(arguments.rounds + 1):
        for length in arguments.lengths:
            examples = made(1, prefix=0, prompt=length - length // 10, answer=length // 10)
            loop = make_loop(trainable, Train(batch_size=1), examples, Plan(1, 1, 1, 0), accelerator=accelerator)
            began = time.perf_counter()
            loop.run(0, Silent())
            seconds[length].append(time.perf_counter() - began)
    cost = {length: statistics.median(taken[1:]) / length for length, taken in seconds.items()}
    shortest = cost[arguments.lengths[0]]
    for length, each in cost.items():
        print(f"  {length:6d} tokens  {each * 1e3:7.2f} ms a token  {each / shortest:5.2f} times the shortest")
    RESULTS.mkdir(exist_ok=True)
    figures = {"seconds_per_token": cost, "ratio": {length: each / shortest for length, each in cost.items()}}
    (RESULTS / f"long_context-{arguments.model}.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
