"""Pairs of right and wrong answers to small tasks of arithmetic and counting, and how many answers are right.

    python -m bench.preference_tasks make --output tasks
    weitune train --model M --data tasks/pairs.jsonl --validation tasks/held-out.jsonl \\
        --preference.method dpo --output run
    weitune eval run --limit 200 --max-new-tokens 24
    python -m bench.preference_tasks score run/evaluation.json --right tasks/held-out.jsonl

``make`` needs reasoning-gym (Apache-2.0), in an environment of its own, and nothing of weitune. The wrong answer is the
right number with a little added or taken away: only the number tells the answers apart. No question is in both files.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TASKS: dict[str, dict[str, int]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "products": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "letter_counting": {"min_words": 2, "max_words": 5},
    "gcd": {"min_numbers": 2, "max_numbers": 2, "min_value": 1, "max_value": 60},
    "leg_counting": {"min_animals": 1, "max_animals": 2, "min_instances": 1, "max_instances": 5},
}
STEPS = (-10, -3, -2, -1, 1, 2, 3, 10)
"""What a wrong answer may have more than the right one."""
SEED = 33


def questions(count: int) -> Iterator[tuple[str, str, int]]:
    """Yield task, question and answer, the tasks in turn; no question twice."""
    import reasoning_gym

    seen: set[str] = set()
    sources = [(name, iter(reasoning_gym.create_dataset(name, seed=SEED, size=4 * count, **options)))
               for name, options in TASKS.items()]  # fmt: skip
    while len(seen) < count:
        for name, source in sources:
            item: dict[str, Any] = next(each for each in source if each["question"].strip() not in seen)
            seen.add(item["question"].strip())
            yield name, item["question"].strip(), int(item["answer"])


def wrong(right: int, draw: random.Random) -> int:
    """Return another number, not negative unless ``right`` is."""
    return draw.choice([right + step for step in STEPS if right < 0 or right + step >= 0])


def make(output: Path, pairs: int, held_out: int) -> None:
    """Write ``pairs.jsonl`` and ``held-out.jsonl``."""
    draw = random.Random(SEED)
    rows = [
        {"prompt": question, "chosen": str(right), "rejected": str(wrong(right, draw)), "task": name}
        for name, question, right in questions(pairs + held_out)
    ][: pairs + held_out]
    draw.shuffle(rows)
    output.mkdir(parents=True, exist_ok=True)
    for name, part in (("held-out", rows[:held_out]), ("pairs", rows[held_out:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (output / f"{name}.jsonl").write_text(text, encoding="utf-8")


def score(evaluation: Path, right: Path) -> None:
    """Print of how many answers of each model the last number is right, by task."""
    known = {row["prompt"]: row for row in map(json.loads, right.read_text(encoding="utf-8").splitlines())}
    asked: Counter[str] = Counter()
    good: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question in json.loads(evaluation.read_text(encoding="utf-8"))["answers"]:
        row = known[question["prompt"]]
        asked[row["task"]] += 1
        for model, answer in question["said"].items():
            numbers = re.findall(r"-?\d+", answer.replace(",", ""))
            good[model][row["task"]] += numbers[-1:] == [row["chosen"]]
    for model, counts in good.items():
        tasks = ", ".join(f"{task} {counts[task]} of {asked[task]}" for task in TASKS)
        print(f"{model}: {counts.total()} of {asked.total()} ({counts.total() / asked.total():.1%}): {tasks}")


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    making = commands.add_parser("make")
    making.add_argument("--output", type=Path, required=True)
    making.add_argument("--pairs", type=int, default=1600)
    making.add_argument("--held-out", type=int, default=200)
    making.set_defaults(command=make)
    scoring = commands.add_parser("score")
    scoring.add_argument("evaluation", type=Path)
    scoring.add_argument("--right", type=Path, required=True)
    scoring.set_defaults(command=score)
    options = vars(parser.parse_args())
    options.pop("command")(**options)


if __name__ == "__main__":
    main()
