"""Does `weitune plan` tell the truth? Its forecast of peak memory against what a run really takes.

    python -m bench.plan_accuracy [--models qwen2.5-0.5b smollm2-135m] [--recipes default …] [--measure]
    python -m bench.plan_accuracy --models gemma3-270m phi3 qwen3_moe qwen3_5_text falcon_h1 gpt_oss --recipes short

Besides test models it knows the families of MEASURED, models with random weights whose passes no formula covers: plan
runs their blocks, or their own modules, on tensors without numbers.

For each model and recipe, `weitune plan --json` forecasts a run of a few steps in one process, and `weitune train` does
them in another, whose peak resident memory the kernel tells (ru_maxrss). With --measure the runs are longer, and the
time of all their steps is compared too; a busy machine makes that figure worthless, but not the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.compare import RESULTS, model_folder
from bench.examples import SHARED, SYSTEM
from tests.families import save_family

STEPS, TIMED_STEPS = 3, 10
_HUANHUAN = {"data": str(SHARED / "huanhuan.json"), "system": SYSTEM}
_ALPACA = {"data": str(SHARED / "alpaca_en_demo.json")}
RECIPES: dict[str, dict[str, str]] = {
    "default": _HUANHUAN,
    "micro-256": {**_HUANHUAN, "train.micro_tokens": "256"},
    "nf4": {**_HUANHUAN, "train.micro_tokens": "256", "train.storage": "nf4"},
    "rank-64": {**_HUANHUAN, "lora.r": "64", "lora.dropout": "0", "train.batch_size": "8"},
    "bf16": {**_HUANHUAN, "train.precision": "bf16", "train.max_steps": "30"},  # until shapes of rows come again
    "short": {**_ALPACA, "tokens.max_length": "512", "train.batch_size": "8", "train.micro_tokens": "1024"},
    "long": {**_ALPACA, "tokens.max_length": "512", "train.batch_size": "8", "lora.target_modules": "q_proj,v_proj"},
}

_SIZES = {
    "vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "head_dim": 64,
    "num_attention_heads": 8, "num_key_value_heads": 2,
}  # fmt: skip
MEASURED: dict[str, dict[str, Any]] = {
    "phi3": {"num_hidden_layers": 8},
    "gemma2": {"query_pre_attn_scalar": 64, "layer_types": ["sliding_attention", "full_attention"] * 3},
    "qwen3_moe": {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 384, "mlp_only_layers": []},
    "gpt_oss": {
        "layer_types": ["sliding_attention", "full_attention"] * 3, "num_local_experts": 8, "intermediate_size": 512,
    },
    "qwen3_5_text": {
        "num_hidden_layers": 8, "layer_types": [*["linear_attention"] * 3, "full_attention"] * 2,
        "linear_num_value_heads": 8, "linear_num_key_heads": 4, "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
    },
    "falcon_h1": {
        "mamba_d_ssm": 1024, "mamba_n_heads": 16, "mamba_d_head": 64, "mamba_d_state": 64, "mamba_chunk_size": 64,
    },
}  # fmt: skip
"""Sizes of families with random weights, 70 to 240 MB in float32."""


def main() -> int:
    """Compare, print and keep the figures; 1 if a forecast of memory is more than 15 % off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "qwen2.5-0.5b"])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--measure", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for model in arguments.models:
        for name in arguments.recipes:
            rows.append(row := {"model": model, "recipe": name, **one(model, name, measure=arguments.measure)})
            print(
                f"{model:14s} {name:10s} forecast {row['forecast_bytes'] / 1e9:5.2f} GB  measured "
                f"{row['measured_bytes'] / 1e9:5.2f} GB  {row['error']:+.1%}"
                + (f"  time {row['time_error']:+.1%}" if arguments.measure else ""),
                flush=True,
            )
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / "plan_accuracy.json").write_text(json.dumps(rows, indent=2) + "\n")
    worst = max(abs(row["error"]) for row in rows)
    print(f"worst {worst:.1%}")
    return int(worst > 0.15)


def folder_of(model: str, scratch: Path) -> str:
    """Return the folder of a test model, or write a model of MEASURED to ``scratch``."""
    if model not in MEASURED:
        return model_folder(model)
    return str(save_family(scratch / model, model, **{**_SIZES, **MEASURED[model]}))


def one(model: str, name: str, *, measure: bool) -> dict[str, Any]:
    """Forecast and make one run."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "run"
        keys = {
            "model": folder_of(model, Path(scratch)),
            "train.max_steps": str(TIMED_STEPS if measure else STEPS),
            "train.precision": "fp32",
            **RECIPES[name],
        }
        options = [part for key, value in keys.items() for part in (f"--{key}", value)]
        more = ["--measure"] if measure else []
        command = [sys.executable, "-m", "weitune"]
        # 2 says that it will not fit, which is a forecast too
        planned = subprocess.run(
            [*command, "plan", "--json", "--device", "cpu", *more, *options],
            capture_output=True,
            text=True,
            check=False,
        )
        if not planned.stdout:
            raise RuntimeError(planned.stderr[-2000:])
        plan = json.loads(planned.stdout)
        trained = subprocess.Popen(
            [*command, "train", "--device", "cpu", "--output", str(output), *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _, status, usage = os.wait4(trained.pid, 0)
        trained.returncode = os.waitstatus_to_exitcode(status)
        if trained.returncode:
            raise RuntimeError(f"training ended with {trained.returncode}")
        events = [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]
    measured = usage.ru_maxrss * 1024
    forecast = plan["here"]["total_bytes"]
    row = {
        "forecast_bytes": forecast, "measured_bytes": measured, "error": forecast / measured - 1,
        "parts": plan["here"]["need"], "largest_pass": plan["largest_pass"],
    }  # fmt: skip
    if measure:
        seconds = sum(event["step_seconds"] for event in events if event["event"] == "step")
        row["time_error"] = plan["time"]["seconds"] / seconds - 1
    return row


if __name__ == "__main__":
    sys.exit(main())
