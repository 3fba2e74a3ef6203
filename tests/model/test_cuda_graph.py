"""Recorded passes, except for recording itself, which needs a GPU (:mod:`tests.gpu.test_cuda`)."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.data.preference.groups import answer
from tests.invariant.test_oracle import examples_with_forks
from tests.tiny import tiny_model
from weitune.data.pack import pack
from weitune.data.pack_groups import pack_groups
from weitune.data.preference.values import Group
from weitune.model.batch import to_tensors
from weitune.model.cuda_graph import CudaGraphPasses, can_record
from weitune.model.fast.attention import register
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.lora.adapter import attach_adapter
from weitune.model.supervised import AnswerPass, SupervisedModel
from weitune.recipe.schema import Lora
from weitune.training.optim import seed_step


def test_passes_too_large_to_be_recorded_add_the_same_gradients() -> None:
    register()
    model = tiny_model("qwen2")
    adapted = attach_adapter(model, Lora(dropout=0.0), seed=1, base="tiny")
    supervised = SupervisedModel(model, blocks=BlockDecoder.from_model(model)).train()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    batches = [pack(examples_with_forks(count, vocabulary=400)) for count in (6, 40)]
    losses = [supervised(to_tensors(batch, torch.device("cpu"))) for batch in batches]
    expected = [grad.clone() for grad in torch.autograd.grad(0.5 * sum(losses), trained)]
    norm = torch.nn.utils.get_total_norm(expected)
    passes, before = CudaGraphPasses(supervised, most_tokens=0), torch.get_rng_state()
    for _ in range(3):
        passes.zero_grad()
        for batch, loss in zip(batches, losses, strict=True):
            assert passes.accepts(batch)
            assert float(passes.run(batch, 0.5)) == pytest.approx(float(loss.detach()), rel=1e-6)
        for parameter, grad in zip(trained, expected, strict=True):
            assert (parameter.grad - grad).norm() <= 1e-5 * grad.norm()
    assert torch.get_rng_state().equal(before)
    assert float(passes.clip_grad_norm(float(norm) / 2)) == pytest.approx(float(norm), rel=1e-5)
    assert float(passes.clip_grad_norm(float(norm))) == pytest.approx(float(norm) / 2, rel=1e-5)


def test_a_failed_recording_does_not_change_the_pass_that_replaces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDAGraph", "current_stream", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: nullcontext())
    monkeypatch.setattr("weitune.model.cuda_graph._release_generator", lambda device: None)
    register()
    model = tiny_model("qwen2")
    adapted = attach_adapter(model, Lora(dropout=0.1), seed=1, base="tiny")
    passes = CudaGraphPasses(SupervisedModel(model, blocks=BlockDecoder.from_model(model)).train())
    batch, calls = pack(examples_with_forks(12, vocabulary=400)), []

    def fails_in_the_recording(module: torch.nn.Module, given: object, states: torch.Tensor) -> None:
        calls.append(states)
        if len(calls) == 2:
            raise RuntimeError("this cannot be recorded")

    model.get_decoder().norm.register_forward_hook(fails_in_the_recording)
    results = []
    for turn in range(3):
        seed_step(42, 1, 0)
        passes.zero_grad()
        with pytest.warns(RuntimeWarning, match="cannot be recorded") if turn == 1 else nullcontext():
            loss = passes.run(batch, 1.0)
        results.append([loss, *(p.grad.clone() for p in adapted.parameters() if p.requires_grad)])
    assert len(calls) == 4  # eagerly, in the failed recording, and twice eagerly instead
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_answers_come_without_the_padding_of_their_row() -> None:
    register()
    model = tiny_model("qwen2")
    adapted = attach_adapter(model, Lora(dropout=0.0), seed=1, base="tiny")
    supervised = SupervisedModel(
        model, blocks=BlockDecoder.from_model(model), objective=lambda sums, given: (sums * given.coefficient).sum()
    ).train()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    pairs = [Group((answer([1, 2], [k, 3]), answer([1, 2], [4])), (True, False)) for k in (5, 6)]
    batch = pack_groups(pairs)
    assert batch.answers is not None
    batch = replace(batch, answers=replace(batch.answers, coefficient=np.array([0.5, -1.0, 0.25, -0.5])))
    loss, sums = supervised(to_tensors(batch, torch.device("cpu")))
    expected = [grad.clone() for grad in torch.autograd.grad(0.5 * loss, trained)]
    passes = CudaGraphPasses(supervised, most_tokens=0)
    result = passes.run(batch, 0.5)
    assert isinstance(result, AnswerPass)
    assert float(result.loss) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert result.sums.tolist() == pytest.approx(sums.tolist(), rel=1e-6)
    for parameter, grad in zip(trained, expected, strict=True):
        assert (parameter.grad - grad).norm() <= 1e-5 * grad.norm()


def test_only_a_model_on_one_gpu_is_recorded() -> None:
    assert not can_record(tiny_model("qwen2"))
