"""How much memory does merging an adapter into Qwen2.5-7B take? Its shape, random weights, `weitune export` as it is.

    python -m bench.merge_memory [--layers 28] [--scratch FOLDER]

The base (15 GB in bfloat16) and its merged copy are written below ``--scratch`` and deleted at the end. Two peaks:
*own*, memory that nobody else could use (`RssAnon`, looked at every 20 ms), and *resident*, with the pages of the
base's files, which the system takes back when it needs them (`VmHWM`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from bench.compare import model_folder
from bench.gpu_7b import SHAPE
from bench.serving import keep
from weitune.export.formats.safetensors_file import shard_names, shards, write_safetensors
from weitune.export.source.base_weights import Slot
from weitune.recipe.schema import PROJECTIONS

RANK = 8


def write_base(folder: Path, shape: dict[str, Any], tokenizer: Path) -> dict[str, Slot]:
    """Write a model of ``shape`` to ``folder`` and return its tensors; those of one shape have the same numbers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    slots = {name: Slot(torch.bfloat16, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    for file in tokenizer.glob("*token*.json"):
        shutil.copyfile(file, folder / file.name)
    drawn: dict[tuple[int, ...], torch.Tensor] = {}
    parts = shards(slots)
    for name, part in zip(shard_names(len(parts)), parts, strict=True):
        drawn |= {slot.shape: random(slot.shape, torch.bfloat16) for slot in part.values() if slot.shape not in drawn}
        write_safetensors(folder / name, part, (drawn[slot.shape] for slot in part.values()))
    places = {tensor: name for name, part in zip(shard_names(len(parts)), parts, strict=True) for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return slots


def random(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return small random numbers."""
    return torch.empty(shape, dtype=dtype).normal_(std=0.02)


def write_run(folder: Path, base: Path, slots: dict[str, Slot]) -> None:
    """Write what ``weitune export`` needs of a run: a recipe, and an adapter on the seven projections."""
    adapter = folder / "adapter"
    adapter.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": str(base), "data": ["none.json"]}))
    tensors = {}
    for name, slot in slots.items():
        if name.split(".")[-2] in PROJECTIONS and name.endswith(".weight"):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = random((RANK, slot.shape[1]), torch.float32)
            tensors[f"{stem}.lora_B.weight"] = random((slot.shape[0], RANK), torch.float32)
    save_file(tensors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": RANK,
              "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": list(PROJECTIONS)}  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(config))


def peaks(command: list[str]) -> tuple[int, int, float]:
    """Run ``command`` and return its peaks of own and resident memory, in bytes, and its seconds."""
    began, own, resident = time.perf_counter(), 0, 0
    process = subprocess.Popen(command)
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        found = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "RssAnon" in found:
            own = max(own, 1024 * int(found["RssAnon"].split()[0]))
            resident = max(resident, 1024 * int(found["VmHWM"].split()[0]))
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return own, resident, time.perf_counter() - began


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=int(SHAPE["num_hidden_layers"]))
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        scratch = Path(name)
        shape = {**SHAPE, "num_hidden_layers": arguments.layers}
        slots = write_base(scratch / "base", shape, Path(model_folder("qwen2.5-0.5b")))
        write_run(scratch / "run", scratch / "base", slots)
        command = [sys.executable, "-m", "weitune", "export", str(scratch / "run"), "--format", "merged", "--no-verify"]
        own, resident, seconds = peaks(command)
        written = sum(file.stat().st_size for file in (scratch / "run" / "export").rglob("*.safetensors"))
        shard = max(file.stat().st_size for file in (scratch / "run" / "export").rglob("*.safetensors"))
    result = {"layers": arguments.layers, "own_bytes": own, "resident_bytes": resident, "seconds": round(seconds, 1),
              "written_bytes": written, "largest_shard_bytes": shard}  # fmt: skip
    keep("merge_memory", result)


if __name__ == "__main__":
    main()
