"""Small packed rows go to the CUDA graphs, other batches through autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from accelerate import Accelerator

from tests.families import save_family
from tests.invariant.test_oracle import examples_with_forks
from tests.tiny import tiny_model
from weitune.data.pack import pack
from weitune.data.pad import pad
from weitune.data.schedule import Plan
from weitune.model.capabilities import probe
from weitune.model.cuda_graph import CudaGraphPasses
from weitune.model.fast.experts import routed
from weitune.model.load.weights import load_model
from weitune.model.lora.adapter import attach_adapter
from weitune.model.supervised import SupervisedModel
from weitune.recipe.schema import Lora, Train
from weitune.training import build
from weitune.training.optim import make_optimizer
from weitune.training.passes import GraphPasses, Passes


def test_who_makes_which_pass() -> None:
    model = tiny_model()
    probe(model)
    adapted = attach_adapter(model, Lora(dropout=0.0), seed=1, base="tiny")
    supervised = SupervisedModel(model, head=None).train()
    parts: Any = (supervised, make_optimizer(adapted.named_parameters(), Train()), Accelerator(cpu=True))
    graphs = create_autospec(CudaGraphPasses, instance=True)
    graphs.accepts.side_effect = lambda batch: len(batch) <= 60
    graphs.run.return_value = torch.tensor(7.0, dtype=torch.float64)
    graphs.clip_grad_norm.return_value = torch.tensor(3.0)
    passes = GraphPasses(*parts, graphs)
    examples = examples_with_forks(12, vocabulary=400)
    small, large = pack(examples[:2]), pack(examples)
    assert len(small) <= 60 < len(large)

    assert float(passes.run(small, 4.0, counted=True, last=True)) == 7.0
    graphs.run.assert_called_once_with(small, 0.25)
    for batch, attention in ((large, model.config._attn_implementation), (pad(examples[:2]), "sdpa")):
        model.set_attn_implementation(attention)
        losses = [each.run(batch, 4.0, counted=True, last=True) for each in (passes, Passes(*parts))]
        assert torch.equal(*losses)
    assert passes.clip(1.0) == 3.0
    passes.zero_grad()
    graphs.run.assert_called_once()
    graphs.zero_grad.assert_called_once_with()


def test_gradients_of_all_that_is_trained_are_clipped_together() -> None:
    adapted = attach_adapter(tiny_model(), Lora(dropout=0.0), seed=1, base="tiny")
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    passes = Passes(adapted, make_optimizer(adapted.named_parameters(), Train()), Accelerator(cpu=True))
    for length in (2.0, 0.5):  # the second step clips what the first one did
        for parameter in trained:
            parameter.grad = torch.full_like(parameter, length / sum(p.numel() for p in trained) ** 0.5)
        assert passes.clip(1.0) == pytest.approx(length, rel=1e-5)
        norms = torch.stack([parameter.grad.norm() for parameter in trained])
        assert float(norms.norm()) == pytest.approx(min(length, 1.0), rel=1e-4)
        passes.zero_grad()


@pytest.mark.parametrize(
    ("family", "grouped", "recorded"),
    [
        ("qwen3", False, True),
        ("qwen3_moe", False, False),
        ("qwen3_moe", True, True),
        ("lfm2", False, False),
        ("ministral3", False, False),
    ],
)
def test_only_passes_that_can_be_recorded_are(
    family: str, grouped: bool, recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those of recurrent layers, nor those that count the rows of experts on the host or look at positions."""
    monkeypatch.setattr(build, "can_record", lambda _: True)
    monkeypatch.setattr(build, "CudaGraphPasses", create_autospec(CudaGraphPasses))
    monkeypatch.setattr(routed, "can_group", lambda *_: grouped)
    loaded = load_model(str(save_family(tmp_path, family)), precision="fp32", device="cpu")
    trainable = build.make_trainable(loaded, Lora(), seed=1, base="tiny")
    examples = examples_with_forks(4, vocabulary=400)
    plan, accelerator = Plan(len(examples), 2, epochs=1, seed=3), Accelerator(cpu=True)
    loop = build.make_loop(trainable, Train(), examples, plan, accelerator=accelerator)
    assert isinstance(loop.passes, GraphPasses) is recorded
