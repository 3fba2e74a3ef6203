"""A step of Qwen2.5-7B's shape on a GPU in every way that a base can lie there, each in a process of its own.

    python -m bench.gpu_ways [--ways bf16 auto sharded nf4 int8] [--layers 28] [--steps 60]

    bf16       on one GPU; its passes are recorded as CUDA graphs
    auto       the same, placed by ``device_map="auto"``, which weitune asks for where one process owns several GPUs;
               on a single one accelerate adds nothing that moves values between layers
    sharded    divided by FSDP2 over NCCL among the processes there are: this one; not recorded
    nf4, int8  its linear layers rounded by bitsandbytes

A model with random weights is written to a folder first and loaded from there, as a user's would be. Rows and order are
the same in all ways, and there is no dropout, so that losses can be compared. Speed is that of the median step: the
first steps compile. ``--device cpu --layers 1`` tries the script itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.compare import RESULTS, model_folder, run_apart
from bench.examples import huanhuan
from bench.gpu_7b import SHAPE
from bench.side import EPOCHS, read_examples, weitune_side, write_examples
from weitune.data.schedule import Plan

WAYS = ("bf16", "auto", "sharded", "nf4", "int8")
BATCH = 16


def make_folder(folder: Path, layers: int, device: str, tokenizer: str) -> None:
    """Write a model of Qwen2.5-7B's shape with random weights in bfloat16, and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device(device):
        torch.manual_seed(0)
        config = AutoConfig.for_model(**{**SHAPE, "num_hidden_layers": layers})
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tokenizer) / name, folder)
    del model
    torch.cuda.empty_cache()  # does nothing where there is no GPU


def load(job: dict[str, Any]) -> Any:
    """Load the job's model in the job's way."""
    from weitune.model.load import weights
    from weitune.model.load.locate import locate
    from weitune.model.load.tokenizer import load_tokenizer

    files, way = locate(job["model"]), job["way"]
    tokenizer = load_tokenizer(files)
    if way == "auto":
        weights.device_map = lambda target, asked: "auto"
    if way == "sharded":
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29578", "RANK": "0", "WORLD_SIZE": "1"}
        torch.distributed.init_process_group("gloo" if job["device"] == "cpu" else "nccl")
    return weights.load_weights(
        files, tokenizer, precision="bf16", storage=way if way in {"nf4", "int8"} else "auto",
        device=job["device"], shards=2 if way == "sharded" else 1,
    )  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-0.5b", help="folder of the tokenizer")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job = json.loads(Path(arguments.job).read_text())
        examples = read_examples(job["examples"])
        plan = Plan(len(examples), BATCH, EPOCHS, 42, job["steps"])
        print(json.dumps(weitune_side(job, examples, plan, load(job))))
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no GPU here")
    tokenizer = model_folder(arguments.model)
    examples = huanhuan(tokenizer)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        path, model = Path(scratch) / "examples.jsonl", Path(scratch) / "model"
        write_examples(path, examples)
        make_folder(model, arguments.layers, arguments.device, tokenizer)
        for way in arguments.ways:
            job = {
                "model": str(model), "examples": str(path), "way": way, "device": arguments.device,
                "steps": arguments.steps, "batch_size": BATCH, "micro_tokens": "auto", "dropout": 0.0,
            }  # fmt: skip
            found = run_apart(["bench.gpu_ways", "--job"], job)
            rate = BATCH / statistics.median(found["seconds"][1:])
            results.append({"way": way, "layers": arguments.layers, "examples_per_second": rate, **found})
            print(
                f"{way:8s} {rate:7.1f} examples/s  {found['peak_bytes'] / 1e9:6.2f} GB  first and last loss "
                f"{found['losses'][0]:.4f} {found['losses'][-1]:.4f}  first step {found['seconds'][0]:.1f} s"
                f"{'' if found['plain_blocks'] else '  own modules'}  {found['recordings']} recordings",
                flush=True,
            )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"gpu_ways-{arguments.device}-{arguments.layers}.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
