"""Small packed rows go to the CUDA graphs, other batches through autograd."""

from __future__ import annotations

from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from accelerate import Accelerator

from tests.invariant.test_oracle import examples_with_forks
from tests.tiny import tiny_model
from weitune.data.pack import pack
from weitune.data.pad import pad
from weitune.model.capabilities import probe
from weitune.model.cuda_graph import CudaGraphPasses
from weitune.model.lora.adapter import attach_adapter
from weitune.model.supervised import SupervisedModel
from weitune.recipe.schema import Lora, Train
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
