"""TRL's losses and gradients for fixed token ids, which the tests of preference tuning compare with.

    python3.11 -m venv trl && trl/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0
    trl/bin/python -m bench.preference_oracle --model tiny
    trl/bin/python -m bench.preference_oracle --model FOLDER/smollm2-135m

In an environment of its own, in which weitune need not be installed. For every method the script writes the losses of
20 steps of AdamW on the same batch, and the gradient of the first. DPO's kinds and KTO come from the trainers as they
are; they get token ids, since from text TRL makes other ones. ORPO, CPO and SimPO come from the static functions of
their trainers. One thing differs: TRL's ORPO adds the cross entropy of prompt and answer; here, as in weitune, it is
that of the answer.

Only the adapter is trained; the reference is the model without it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.preference_cases import (
    ALPHA,
    METHODS,
    ORACLE,
    RANK,
    RATES,
    STEPS,
    TARGETS,
    fill_adapter,
    judged,
    pairs,
    sketched,
    tiny_model,
)

TRL_LOSSES = {"dpo": "sigmoid", "dpo_norm": "sigmoid_norm", "ipo": "ipo", "hinge": "hinge"}


def main() -> int:
    """Compute every method's values and add them to the file of the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="`tiny`, or the folder of a model named as in RATES")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    arguments = parser.parse_args()
    name = Path(arguments.model).name
    result = json.loads(ORACLE.read_text()) if ORACLE.exists() else {}
    result["versions"] = {package: version(package) for package in ("trl", "torch", "transformers", "peft")}
    values = result.setdefault(name, {})
    for case in arguments.methods:
        values[case] = trained(open_model(arguments.model), case, RATES[name])
        print(f"{name}  {case:14s}  {values[case]['losses'][0]:.8f} … {values[case]['losses'][-1]:.8f}", flush=True)
    ORACLE.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def open_model(name: str) -> Any:
    """Return the base in float32, by its folder."""
    import torch
    from transformers import AutoModelForCausalLM

    return tiny_model() if name == "tiny" else AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)


def trained(base: Any, case: str, rate: float) -> dict[str, Any]:
    """Return the losses of all steps and the sketched gradient of the first."""
    import torch

    settings = METHODS[case]
    method = settings.get("method", case)
    prepare = {"kto": kto, **dict.fromkeys(TRL_LOSSES, dpo)}.get(method, static)
    model, loss_of = prepare(base, method, settings)
    fill_adapter(model)
    adapter = [(n, p) for n, p in model.named_parameters() if "lora_" in n]
    optimizer = torch.optim.AdamW([p for _, p in adapter], lr=rate, weight_decay=0.0)
    losses, gradient = [], []
    for _ in range(STEPS):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        gradient = gradient or sketched((n, p.grad) for n, p in adapter)
        optimizer.step()
        losses.append(float(loss.detach()))
    return {"losses": losses, "gradient": gradient}


def adapter_config() -> Any:
    """Return the adapter of all cases."""
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM")


def dpo(base: Any, method: str, settings: dict[str, Any]) -> tuple[Any, Callable[[], Any]]:
    """Return the model and the loss of TRL's DPOTrainer on the pairs."""
    rows = [{"prompt_ids": p.prompt, "chosen_ids": p.chosen, "rejected_ids": p.rejected} for p in pairs()]
    sft = settings.get("sft_weight", 0.0)
    kinds = {"loss_type": [TRL_LOSSES[method], "sft"], "loss_weights": [1.0, sft]} if sft else {}
    return on_all(make_trainer(method, base, rows, settings["beta"], len(rows), **kinds), rows)


def kto(base: Any, method: str, settings: dict[str, Any]) -> tuple[Any, Callable[[], Any]]:
    """Return the model and the loss of TRL's KTOTrainer on the judged answers."""
    rows = [
        {"prompt_ids": j.prompt, "completion_ids": j.answer, "label": j.liked, "KL_completion_ids": j.mismatched}
        for j in judged()
    ]
    weight = settings["disliked_weight"]
    return on_all(make_trainer(method, base, rows, settings["beta"], len(rows), undesirable_weight=weight), rows)


def on_all(trainer: Any, rows: list[dict[str, Any]]) -> tuple[Any, Callable[[], Any]]:
    """Return the model of ``trainer`` and its loss on all ``rows`` as one batch."""
    model, batch = trainer.model.train(), trainer.data_collator([dict(row) for row in rows])
    return model, lambda: trainer._compute_loss(model, dict(batch), False)


def make_trainer(
    method: str,
    base: Any,
    rows: list[dict[str, Any]],
    beta: float,
    batch_size: int,
    *,
    adapter: Any = None,
    **arguments: Any,
) -> Any:
    """Return TRL's trainer for ``method``, which takes the token ids of ``rows`` as they are.

    It computes in float32 and recomputes nothing in backward. ``adapter`` is a LoraConfig; that of the cases if None.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    kind, config = (KTOTrainer, KTOConfig) if method == "kto" else (DPOTrainer, DPOConfig)
    if method != "kto":
        arguments = {"loss_type": [TRL_LOSSES[method]], **arguments}

    class OnIds(kind):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    return OnIds(
        model=base,
        args=config(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=batch_size,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            beta=beta,
            **arguments,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        peft_config=adapter or adapter_config(),
    )


def tokenizer() -> Any:
    """Return a tokenizer that knows its padding token, all that the trainers ask of it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    control = {"pad_token": "<pad>", "eos_token": "<end>"}
    words = Tokenizer(models.WordLevel({token: k for k, token in enumerate(control.values())}, control["pad_token"]))
    return PreTrainedTokenizerFast(tokenizer_object=words, **control)


def static(base: Any, method: str, settings: dict[str, Any]) -> tuple[Any, Callable[[], Any]]:
    """Return the model and the loss that the static functions of TRL's ORPO and CPO trainers make of its logits."""
    import torch
    from peft import get_peft_model
    from torch.nn.utils.rnn import pad_sequence
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    model = get_peft_model(base, adapter_config()).train()
    sides = [(p.prompt, answer) for side in (1, 2) for p in pairs() for answer in (p[side],)]
    ids = pad_sequence([torch.tensor(prompt + answer) for prompt, answer in sides], batch_first=True)
    labels = pad_sequence(
        [torch.tensor([-100] * len(prompt) + answer) for prompt, answer in sides], True, padding_value=-100
    )
    mask = pad_sequence([torch.ones(len(prompt + answer), dtype=torch.long) for prompt, answer in sides], True)
    half = len(sides) // 2
    place = SimpleNamespace(device="cpu")

    def loss() -> Any:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        averaged = method in ("orpo", "simpo")
        chosen, rejected = CPOTrainer.get_batch_logps(logits, labels.clone(), average_log_prob=averaged).split(half)
        targets = labels[:half, 1:].flatten()
        nll = torch.nn.functional.cross_entropy(logits[:half, :-1].flatten(0, 1), targets, ignore_index=-100)
        if method == "orpo":
            own = SimpleNamespace(beta=settings["beta"], accelerator=place)
            return nll - ORPOTrainer.odds_ratio_loss(own, chosen, rejected)[0].mean()
        own = SimpleNamespace(
            alpha=0.0,
            loss_type="simpo" if method == "simpo" else "sigmoid",
            beta=settings["beta"],
            simpo_gamma=settings.get("margin", 0.0),
            label_smoothing=settings.get("label_smoothing", 0.0),
            accelerator=place,
        )
        return CPOTrainer.cpo_loss(own, chosen, rejected)[0].mean() + settings.get("sft_weight", 0.0) * nll

    return model, loss


if __name__ == "__main__":
    sys.exit(main())
