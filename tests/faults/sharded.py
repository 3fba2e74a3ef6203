"""What each process of a sharded run does in :mod:`.test_sharded`: ``python -m tests.faults.sharded ORDERS.json``.

Two processes do everything, since most of the time goes into starting them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.families import family_model
from tests.invariant.test_oracle import examples_with_forks
from tests.tiny import VOCABULARY, tiny_model
from weitune.data.pack import pack
from weitune.model.batch import TensorBatch, to_tensors
from weitune.model.capabilities import probe
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.loss import PLAIN_LOGITS, LogitForm
from weitune.model.load.locate import locate
from weitune.model.load.tokenizer import load_tokenizer
from weitune.model.load.weights import load_weights
from weitune.model.lora.adapter import attach_adapter
from weitune.model.storage.shard import gathered_bytes, held_numbers, shard
from weitune.model.supervised import SupervisedModel
from weitune.recipe.load import build_recipe
from weitune.recipe.schema import Lora, Recompute
from weitune.training.distributed.processes import make_accelerator
from weitune.training.run import resume, train

CPU = torch.device("cpu")
Manner = tuple[str, bool, Recompute, LogitForm | None]
MANNERS: Sequence[Manner] = (
    ("blocks", True, "none", PLAIN_LOGITS),
    ("blocks, feed-forward again", True, "feed-forward", PLAIN_LOGITS),
    ("blocks again", True, "block", PLAIN_LOGITS),
    ("own modules", False, "none", PLAIN_LOGITS),
    ("own modules and head", False, "none", None),
    ("own modules again", False, "block", PLAIN_LOGITS),
)
"""Name, whether weitune's blocks compute it, what is computed again, how logits are made."""
BY_BLOCKS = [manner for manner in MANNERS if manner[1]]
HYBRID = "qwen3_5_text", "falcon_h1", "lfm2"
"""Families with the gated delta rule, a state space and a convolution, whose own modules would mix the rows."""


def adapted(model: Any) -> Any:
    """Return ``model`` with an adapter that already does something: B is not zero."""
    found = attach_adapter(model, Lora(dropout=0.0), seed=1, base="tiny")
    draw = torch.Generator().manual_seed(2)
    for name, parameter in found.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
    return found


def gradient(model: Any, row: TensorBatch, manner: Manner) -> torch.Tensor:
    _, fast, recompute, head = manner
    base = model.get_base_model()
    base.gradient_checkpointing_disable()
    blocks = BlockDecoder.from_model(base) if fast else None
    model.zero_grad()
    SupervisedModel(base, head=head, blocks=blocks, recompute=recompute).train()(row).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def distances(make: Callable[[], Any], manners: Sequence[Manner] = MANNERS) -> dict[str, float]:
    """Return how far the gradient of a sharded model is from that of a whole one, by manner."""
    whole, parts = (make().requires_grad_(False) for _ in range(2))
    shard(parts, CPU, torch.float32)
    assert probe(parts) == probe(whole)
    whole, parts = adapted(whole), adapted(parts)
    row = to_tensors(pack(examples_with_forks(6, VOCABULARY)), CPU)
    found = {}
    for manner in manners:
        expected, ours = gradient(whole, row, manner), gradient(parts, row, manner)
        found[manner[0]] = float((ours - expected).norm() / expected.norm())
    return found


def numbers(model: nn.Module) -> dict[str, int]:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    return {
        "matrices": sum(p.numel() for p in matrices),
        "held": sum(map(held_numbers, matrices)),
        "vectors": sum(p.numel() for p in vectors),
        "vectors held": sum(map(held_numbers, vectors)),
    }


def loaded(folder: str) -> dict[str, int]:
    files = locate(folder)
    found = load_weights(files, load_tokenizer(files), precision="fp32", device="cpu", shards=2)
    return {**numbers(found.model), "gathered": gathered_bytes(found.model)}


def main(orders: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    make_accelerator(torch.device("cpu"))
    said = {
        "loaded": loaded(orders["narrow"]),
        "published": loaded(orders["published"]),
        "untied": distances(lambda: tiny_model("llama")),
        "tied": distances(lambda: tiny_model("gemma", tie_word_embeddings=True, vocab_size=VOCABULARY + 1)),
        "experts": distances(lambda: family_model("glm4_moe")),
        **{family: distances(partial(family_model, family), BY_BLOCKS) for family in HYBRID},
    }
    for tree in orders["train"]:
        train(build_recipe({}, tree), device="cpu")
    resume(orders["resume"], overrides=orders["overrides"], device="cpu")
    Path(orders["answers"], os.environ["RANK"]).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
