"""Does every kind of adapter learn a real model? SmolLM2-135M on ``captain-en``, 6 steps of 8 dialogues each.

    python -m bench.adapters

The loss before and after is of the same eight dialogues, without dropout. "peft" is the largest difference between the
logits of the trained model and those of a fresh base with the saved adapter, loaded by plain PEFT; "merged" likewise
after merging.
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel

from bench.compare import RESULTS, model_folder
from bench.examples import persona
from weitune.cli.terminal import quiet_libraries
from weitune.data.plan import Plan
from weitune.model.load import load_model
from weitune.recipe.schema import Lora, Train
from weitune.training.assemble import make_loop, make_trainable
from weitune.training.snapshot import Snapshot

MODEL = "smollm2-135m"
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "gaussian": {"init": "gaussian"},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
    "eva": {"init": "eva"},
    "lora+": {"plus_ratio": 16},
    "lora-fa": {"freeze_a": True},
    "all-linear": {"target_modules": "all-linear"},
    "half the layers": {"layers": "15-29"},
    "patterns": {"rank_pattern": {"down_proj": 16}, "alpha_pattern": {"q_proj": 16}},
    "norms": {"modules_to_save": ["norm"]},
}


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits of ``tokens`` (1, T) as transformers computes them."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    attention = plain.config._attn_implementation
    plain.set_attn_implementation("sdpa")
    with torch.no_grad():
        found: torch.Tensor = model.eval()(tokens).logits
    plain.set_attn_implementation(attention)
    return found


def learn(kind: str) -> dict[str, Any]:
    """Train one kind of adapter and compare what was saved with what was trained."""
    lora = Lora.model_validate({"dropout": 0.0, **KINDS[kind]})
    folder = model_folder(MODEL)
    loaded = load_model(folder, precision="fp32", device="cpu")
    base = copy.deepcopy(loaded.model)
    examples = persona(folder)[:8]
    trainable = make_trainable(loaded, lora, seed=42, base=MODEL, steps=[examples])
    settings = Train(batch_size=8, learning_rate=2e-4, schedule="constant")
    plan, ratio = Plan(8, 8, 7, 42), lora.plus_ratio
    loop = make_loop(trainable, settings, examples, plan, accelerator=Accelerator(cpu=True), plus_ratio=ratio)
    losses: list[float] = []

    class Watcher:
        def stepped(self, record: Any) -> bool:
            losses.append(record.loss)
            return True

        def failed(self, record: Any) -> None:
            raise RuntimeError(record)

    loop.run(0, Watcher())
    tokens = torch.tensor([examples[0].input_ids])
    trained = logits(trainable.trained.model, tokens)
    with tempfile.TemporaryDirectory() as saved:
        for name, data in Snapshot.take(7, trainable.trained, loop.optimizer, {}).files():
            (Path(saved) / name).write_bytes(data)
        theirs: Any = PeftModel.from_pretrained(base, saved)
    plain = (logits(theirs, tokens) - trained).abs().max()
    merged = (logits(theirs.merge_and_unload(), tokens) - trained).abs().max()
    blocks = trainable.abilities.plain_blocks
    return {"kind": kind, "fast_blocks": blocks, "losses": losses, "peft": float(plain), "merged": float(merged)}


def main() -> None:
    """Learn every kind and keep the figures."""
    quiet_libraries()
    torch.set_num_threads(1)
    found = []
    for kind in KINDS:
        found.append(one := learn(kind))
        print(
            f"{kind:16s} loss {one['losses'][0]:.3f} → {one['losses'][-1]:.3f}   peft {one['peft']:.1e}   "
            f"merged {one['merged']:.1e}   {'blocks' if one['fast_blocks'] else 'modules'}",
            flush=True,
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "adapters-smollm2-135m.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
