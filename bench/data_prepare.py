"""Preparing data: weitune against the plain recipe's ``Dataset.map``, side by side, and at a million rows.

    python -m bench.data_prepare --tokenizer FOLDER --data huanhuan.json [--distinct] [--small] [--output FILE]
    python -m bench.data_prepare --tokenizer FOLDER --data huanhuan.json --million [--template chat]

Both sides start from the JSON file and end with Arrow on disk, each in a fresh process of its own so that neither finds
the other's caches, in turns; the medians and their ratio are printed. The file's rows are repeated 30 times, and
weitune tokenizes no text again that it remembers; ``--distinct`` numbers the rows, for data in which nothing recurs.
``--million`` instead generates 100,000 and 1,000,000 rows that all differ and reports throughput, peak resident memory
and the time of a second start.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SYSTEM = "现在你要扮演皇帝身边的女人--甄嬛"
MAX_LENGTH = 384


def prepare_plainly(tokenizer: Any, data: Path, work: Path) -> int:
    """Prepare as the tutorial's recipe does: one row at a time through ``Dataset.map``, then to disk."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()

    def process(row: dict[str, str]) -> dict[str, list[int]]:
        framing = tokenizer(
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{row['instruction'] + row['input']}<|im_end|>\n"
            "<|im_start|>assistant\n",
            add_special_tokens=False,
        )
        answer = tokenizer(row["output"], add_special_tokens=False)
        input_ids = framing["input_ids"] + answer["input_ids"] + [tokenizer.pad_token_id]
        attention_mask = framing["attention_mask"] + answer["attention_mask"] + [1]
        labels = [-100] * len(framing["input_ids"]) + answer["input_ids"] + [tokenizer.pad_token_id]
        return {
            "input_ids": input_ids[:MAX_LENGTH],
            "attention_mask": attention_mask[:MAX_LENGTH],
            "labels": labels[:MAX_LENGTH],
        }

    rows = Dataset.from_list(json.loads(data.read_text(encoding="utf-8")))
    mapped = rows.map(process, remove_columns=rows.column_names)
    mapped.save_to_disk(str(work / "plain"))
    return len(mapped)


def prepare_with_weitune(tokenizer: Any, data: Path, work: Path, template: str = "tutorial") -> int:
    """Prepare as ``weitune train`` does, into an empty cache."""
    from weitune.data.frame.choose import framing_for
    from weitune.data.prepare.prepare import prepare
    from weitune.recipe.schema import Recipe, Tokens

    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    tokens = Tokens(template=template, max_length=MAX_LENGTH, truncation="cut")
    recipe = Recipe(model="any", data=[str(data)], system=SYSTEM, tokens=tokens)
    return len(prepare(recipe, framing_for(tokenizer, recipe.tokens)))


def side(name: str, tokenizer_folder: str, data: Path, work: Path) -> None:
    """Run one side in this process and print what it took; imports and the tokenizer's loading are not counted."""
    import datasets  # noqa: F401  (both sides import the same)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    before, cpu = time.perf_counter(), time.process_time()
    if name == "plain":
        rows = prepare_plainly(tokenizer, data, work)
    else:
        rows = prepare_with_weitune(tokenizer, data, work, name)
    seconds = time.perf_counter() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facts = {"rows": rows, "seconds": seconds, "cpu_seconds": time.process_time() - cpu, "peak_resident_bytes": peak}
    print(json.dumps(facts))


def run_side(name: str, tokenizer_folder: str, data: Path, work: Path) -> dict[str, Any]:
    """Run one side in a fresh process."""
    command = [sys.executable, "-m", "bench.data_prepare", "--side", name, "--work", str(work)]
    command += ["--tokenizer", tokenizer_folder, "--data", str(data)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run both sides in turns and return medians and ratio."""
    copies, rounds = (3, 3) if arguments.small else (30, 3)
    results: dict[str, list[dict[str, Any]]] = {"plain": [], "tutorial": []}
    with tempfile.TemporaryDirectory() as folder:
        rows = json.loads(arguments.data.read_text(encoding="utf-8")) * copies
        if arguments.distinct:
            rows = [{**row, "instruction": f"{row['instruction']}{i}", "output": f"{i}{row['output']}"}
                    for i, row in enumerate(rows)]  # fmt: skip
        data = Path(folder) / "rows.json"
        data.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
        for turn in range(rounds):
            for name, runs in results.items():
                work = Path(folder) / f"{name}-{turn}"
                work.mkdir()
                runs.append(run_side(name, arguments.tokenizer, data, work))
    rates = {name: statistics.median(run["rows"] / run["seconds"] for run in runs) for name, runs in results.items()}
    return {
        "rows": len(rows),
        "plain_rows_per_second": rates["plain"],
        "weitune_rows_per_second": rates["tutorial"],
        "ratio": rates["tutorial"] / rates["plain"],
        "runs": results,
    }


def scale(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prepare generated files of two sizes and return throughput, memory and the time of a second start."""
    sizes = (10_000, 100_000) if arguments.small else (100_000, 1_000_000)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            data, work = Path(folder) / f"{size}.jsonl", Path(folder) / str(size)
            generate(arguments.data, data, size)
            work.mkdir()
            first = run_side(arguments.template, arguments.tokenizer, data, work)
            second = run_side(arguments.template, arguments.tokenizer, data, work)
            results[str(size)] = {
                "rows_per_second": first["rows"] / first["seconds"],
                "peak_resident_bytes": first["peak_resident_bytes"],
                "second_start_seconds": second["seconds"],
                "file_bytes": data.stat().st_size,
            }
            data.unlink()
    return {"template": arguments.template, **results}


def generate(source: Path, target: Path, rows: int) -> None:
    """Write ``rows`` rows that all differ: two of the source's texts, put together at random."""
    import random

    texts = json.loads(source.read_text(encoding="utf-8"))
    chance = random.Random(7)
    with target.open("w", encoding="utf-8") as file:
        for i in range(rows):
            first, second = chance.choice(texts), chance.choice(texts)
            row = {"instruction": f"{first['instruction']}{i}", "input": "", "output": second["output"]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    """Parse the command line and run what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder of the model whose tokenizer is used")
    parser.add_argument("--data", type=Path, required=True, help="an Alpaca file such as huanhuan.json")
    parser.add_argument("--small", action="store_true", help="a tenth of the size")
    parser.add_argument("--distinct", action="store_true", help="number the rows, so that no text occurs twice")
    parser.add_argument("--million", action="store_true", help="measure the scale instead of the ratio")
    parser.add_argument("--template", default="tutorial", choices=["tutorial", "chat"], help="framing at scale")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side(arguments.side, arguments.tokenizer, arguments.data, arguments.work)
        return
    measured = scale(arguments) if arguments.million else compare(arguments)
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    text = json.dumps({"machine": machine, **measured}, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
