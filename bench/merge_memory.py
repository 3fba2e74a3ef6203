"""How much memory does merging an adapter into a large model take? Random weights, `weitune export` as it is.

    python -m bench.merge_memory [--layers 28] [--scratch FOLDER]             # Qwen2.5-7B's shape, merged
    python -m bench.merge_memory --experts --layers 1 [--scratch FOLDER]      # Mixtral 8x7B's, to GGUF in F16

The base (15 GB in bfloat16; 2.9 GB for each of Mixtral's layers) and its copy are written below ``--scratch`` and
deleted at the end. The adapter is on the seven projections, or on those of attention and on the experts. Two peaks:
*own*, memory that nobody else could use (`RssAnon`, looked at every 20 ms), and *resident*, with the pages of the
base's files, which the system takes back when it needs them (`VmHWM`).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 49152,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
"""The configuration of Mixtral-8x7B-Instruct-v0.1 as published, but with the vocabulary of SmolLM2's tokenizer."""
_EXPERTS = re.compile(r"(.+)\.mlp\.experts\.(gate_up_proj|down_proj)")


def write_base(folder: Path, shape: dict[str, Any], tokenizer: Path) -> dict[str, Slot]:
    """Write a model of ``shape`` to ``folder`` and return its parameters; those of one shape have the same numbers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    parameters = {name: Slot(torch.bfloat16, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    slots = {name: slot for parameter in parameters.items() for name, slot in in_files(*parameter)}
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
    return parameters


def in_files(name: str, slot: Slot) -> Iterator[tuple[str, Slot]]:
    """Yield the tensors that a parameter is published as: Mixtral's experts have matrices of their own."""
    if not (match := _EXPERTS.fullmatch(name)):
        yield name.replace(".mlp.gate.", ".block_sparse_moe.gate."), slot
        return
    count, rows, columns = slot.shape
    matrices = ("w1", "w3") if match[2] == "gate_up_proj" else ("w2",)
    for expert in range(count):
        for matrix in matrices:
            at = f"{match[1]}.block_sparse_moe.experts.{expert}"
            yield f"{at}.{matrix}.weight", Slot(slot.dtype, (rows // len(matrices), columns))


def random(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return small random numbers."""
    return torch.empty(shape, dtype=dtype).normal_(std=0.02)


def write_run(folder: Path, base: Path, parameters: dict[str, Slot]) -> None:
    """Write what ``weitune export`` needs of a run: a recipe, and an adapter on the projections and on experts."""
    adapter = folder / "adapter"
    adapter.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": str(base), "data": ["none.json"]}))
    tensors = {}
    for name, slot in parameters.items():
        if match := _EXPERTS.fullmatch(name):
            below = ".base_layer" if match[2] == "gate_up_proj" else ""
            stem, rank = f"base_model.model.{match[1]}.mlp.experts{below}", RANK * slot.shape[0]
        elif name.split(".")[-2] in PROJECTIONS and name.endswith(".weight"):
            stem, rank = f"base_model.model.{name.removesuffix('.weight')}", RANK
        else:
            continue
        tensors[f"{stem}.lora_A.weight"] = random((rank, slot.shape[-1]), torch.float32)
        tensors[f"{stem}.lora_B.weight"] = random((slot.shape[-2], rank), torch.float32)
    save_file(tensors, adapter / "adapter_model.safetensors")
    experts = sorted({f"mlp.experts.{match[2]}" for name in parameters if (match := _EXPERTS.fullmatch(name))})
    modules = {name.split(".")[-2] for name in parameters if name.endswith(".weight")} & set(PROJECTIONS)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": RANK,
              "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": sorted(modules),
              "target_parameters": experts or None}  # fmt: skip
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
    parser.add_argument("--experts", action="store_true")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    whole, tokenizer = (MIXTRAL, "smollm2-135m") if arguments.experts else (SHAPE, "qwen2.5-0.5b")
    form = ["gguf", "--type", "F16"] if arguments.experts else ["merged"]
    shape = {**whole, "num_hidden_layers": arguments.layers or whole["num_hidden_layers"]}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        scratch = Path(name)
        parameters = write_base(scratch / "base", shape, Path(model_folder(tokenizer)))
        write_run(scratch / "run", scratch / "base", parameters)
        command = [sys.executable, "-m", "weitune", "export", str(scratch / "run"), "--no-verify", "--format", *form]
        own, resident, seconds = peaks(command)
        written = [file for file in (scratch / "run/export").rglob("*") if file.suffix in {".safetensors", ".gguf"}]
        sizes = [file.stat().st_size for file in written]
    result = {"layers": shape["num_hidden_layers"], "own_bytes": own, "resident_bytes": resident,
              "seconds": round(seconds, 1), "written_bytes": sum(sizes), "largest_file_bytes": max(sizes)}  # fmt: skip
    keep("merge_memory-experts" if arguments.experts else "merge_memory", result)


if __name__ == "__main__":
    main()
