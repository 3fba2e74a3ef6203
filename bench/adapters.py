"""Does every kind of adapter learn a real model, and get out again? SmolLM2-135M, 8 dialogues, 6 steps of all of them.

    python -m bench.adapters [--kinds plain dora …]

The loss before and after is of the same eight dialogues, without dropout. "peft" is the largest difference between the
logits of the run as `weitune chat` loads it and those of a fresh base with the saved adapter, loaded by plain PEFT;
"merged" likewise after PEFT merged it (not where the base is quantized, which PEFT rounds again). Every run is then
exported: merged, as a GGUF file in F16, and as a GGUF adapter, each compared with base + adapter by the engine that it
is for.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from bench.compare import RESULTS, model_folder
from weitune import Recipe, Run, train
from weitune.cli.shared.terminal import quiet_libraries
from weitune.data.read import sources
from weitune.errors import WeituneError
from weitune.export.options import ExportOptions
from weitune.export.run import export
from weitune.model.load.weights import load_model

MODEL = "smollm2-135m"
FIRST = "plain"
KINDS: dict[str, dict[str, Any]] = {
    FIRST: {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "gaussian": {"init": "gaussian"},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "eva": {"init": "eva"},
    "loftq": {"init": "loftq"},
    "lora+": {"plus_ratio": 16},
    "lora-fa": {"freeze_a": True},
    "all-linear": {"target_modules": "all-linear"},
    "half the layers": {"layers": "15-29"},
    "patterns": {"rank_pattern": {"down_proj": 16}, "alpha_pattern": {"q_proj": 16}},
    "norms": {"modules_to_save": ["norm"]},
    "tokens": {"train_tokens": "Ġcaptain,Ġsea,Ġship"},
    "go on": {"init_from": FIRST},
    "nf4": {},
    "none": {},
}
ORDERS = {
    "merged": ExportOptions("merged", dtype=torch.float32, prompts=4),
    "gguf": ExportOptions("gguf", "F16", prompts=4),
    "adapter": ExportOptions("gguf-adapter", prompts=4),
}


def main() -> None:
    """Learn every kind, export it, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    wanted = parser.parse_args().kinds
    quiet_libraries()
    found = []
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for kind in dict.fromkeys([FIRST, *wanted]):
            found.append(one := learn(kind, Path(folder)))
            print(line(one), flush=True)
            (RESULTS / "adapters-smollm2-135m.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def learn(kind: str, folder: Path) -> dict[str, Any]:
    """Train one kind of adapter, compare what was saved with what was trained, and export it."""
    run = train(recipe_of(kind, folder), device="cpu")
    events = list(run.events())
    steps = [event["loss"] for event in events if event["event"] == "step"]
    found: dict[str, Any] = {"kind": kind, "losses": steps, **saved_and_loaded(run)}
    found["exports"] = {
        name: exported(run, folder / f"{run.path.name}-{name}", order) for name, order in ORDERS.items()
    }
    return found


def recipe_of(kind: str, folder: Path) -> Recipe:
    """Return the recipe of a kind's run."""
    lora: Any = "none" if kind == "none" else {"dropout": 0.0, **KINDS[kind]}
    if kind != "none" and "init_from" in lora:
        lora["init_from"] = str(folder / FIRST / "adapter")
    data = folder / "captain.jsonl"
    with (Path(sources.__file__).parents[1] / "builtin" / "captain-en.jsonl").open(encoding="utf-8") as lines:
        data.write_text("".join(islice(lines, 8)), encoding="utf-8")
    return Recipe.model_validate({
        "model": model_folder(MODEL),
        "data": [str(data)],
        "output": str(folder / kind.replace(" ", "-")),
        "lora": lora,
        "train": {
            "batch_size": 8,
            "epochs": 7,
            "learning_rate": 2e-5 if kind == "none" else 2e-4,
            "schedule": "constant",
            "precision": "fp32",
            "storage": "nf4" if kind in {"nf4", "loftq"} else "auto",
        },
    })  # fmt: skip


def saved_and_loaded(run: Run) -> dict[str, float]:
    """Return the largest differences of logits from weitune's own loading: in plain PEFT, and merged by PEFT."""
    tokens = torch.arange(100, 160)[None]
    trained = logits(run.engine(device="cpu").model, tokens)
    recipe = run.recipe
    if recipe.adapter is None:
        from transformers import AutoModelForCausalLM

        whole = AutoModelForCausalLM.from_pretrained(run.path / "adapter", dtype=torch.float32)
        return {"transformers": float((logits(whole, tokens) - trained).abs().max())}
    base = load_model(recipe.model, precision="fp32", storage=recipe.train.storage, device="cpu").model
    theirs: Any = PeftModel.from_pretrained(base, run.path / "adapter")
    found = {"peft": float((logits(theirs, tokens) - trained).abs().max())}
    if recipe.train.storage == "auto":
        found["merged"] = float((logits(theirs.merge_and_unload(), tokens) - trained).abs().max())
    return found


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits of ``tokens`` (1, T) as transformers computes them."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    attention = plain.config._attn_implementation
    plain.set_attn_implementation("sdpa")
    with torch.no_grad():
        found: torch.Tensor = model.eval()(tokens).logits
    plain.set_attn_implementation(attention)
    return found


def exported(run: Run, folder: Path, order: ExportOptions) -> str:
    """Export a run and return what became of it."""
    try:
        verdict = export(run, folder, order).verdict
    except WeituneError as error:
        return f"{type(error).__name__}: {error}"
    return "equal" if verdict is not None and verdict.passed else "not compared"


def line(one: dict[str, Any]) -> str:
    """Return the figures of a kind on one line."""
    close = "   ".join(f"{name} {one[name]:.1e}" for name in ("peft", "merged", "transformers") if name in one)
    exports = "   ".join(f"{name}: {text}" for name, text in one["exports"].items())
    return f"{one['kind']:16s} loss {one['losses'][0]:.3f} → {one['losses'][-1]:.3f}   {close}   {exports}"


if __name__ == "__main__":
    main()
