"""Every published kind of Gemma 4 against its own modules and the readable twin: states, losses, gradients, packing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm

from tests.families import family_model
from tests.invariant.test_oracle import examples_with_forks
from tests.model.fast.test_attention import text
from weitune.data.pack import pack
from weitune.model.batch import TensorBatch, to_tensors
from weitune.model.capabilities import Capabilities, probe
from weitune.model.fast.block import reference_block, run_block
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.tree import Tree
from weitune.model.lora.adapter import attach_adapter
from weitune.model.supervised import SupervisedModel, hidden_states
from weitune.recipe.schema import Lora, Recompute

CPU = torch.device("cpu")
_GLOBAL = {"head_dim": 32, "num_key_value_heads": 1}
_NEITHER = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}
_KEYS_AS_VALUES = {**_NEITHER, "attention_k_eq_v": True, "per_layer_config": {"01": _GLOBAL, "03": _GLOBAL}}
KINDS: Mapping[str, Mapping[str, Any]] = {
    "E2B": {"use_double_wide_mlp": True, "final_logit_softcapping": 30.0, "sliding_window": 5},
    "E4B": {"sliding_window": 5},
    "per-layer embeddings alone": {"num_kv_shared_layers": 0},
    "31B": _KEYS_AS_VALUES,
    "26B-A4B": {
        **_KEYS_AS_VALUES, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32,
    },
}  # fmt: skip


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the modules compute norms in float64, not in float32."""

    def forward(self: Any, x: Tensor) -> Tensor:
        normed = self._norm(x)
        return normed * self.weight if self.with_scale else normed

    monkeypatch.setattr(Gemma4RMSNorm, "forward", forward)


def adapted_model(kind: str, dtype: torch.dtype = torch.float64, **lora: Any) -> tuple[Any, Capabilities]:
    """Return a model whose adapter already does something, and what the model can do."""
    model = family_model("gemma4_text", **KINDS[kind])
    model.set_experts_implementation("eager")  # the others take no float64
    capabilities = probe(model)
    lora = {"dropout": 0.0, "r": 4, **lora}
    adapted = attach_adapter(model, Lora(**lora), seed=1, base="tiny").to(dtype)
    draw = torch.Generator().manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw, dtype=dtype)
    return adapted, capabilities


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def supervised_model(
    adapted: Any, capabilities: Capabilities, *, fast: bool, recompute: Recompute = "none"
) -> SupervisedModel:
    model = adapted.get_base_model()
    blocks = BlockDecoder.from_model(model) if fast else None
    assert (blocks is not None) is fast
    return SupervisedModel(model, head=capabilities.head, blocks=blocks, recompute=recompute).train()


def loss_and_gradients(supervised: SupervisedModel, row: TensorBatch) -> tuple[Tensor, dict[str, Tensor]]:
    supervised.zero_grad()
    loss = supervised(row)
    loss.backward()
    trained = {name: parameter for name, parameter in supervised.named_parameters() if parameter.requires_grad}
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in trained.items()}  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_fast_and_shares(kind: str) -> None:
    _, capabilities = adapted_model(kind)
    assert capabilities.shares_rows
    assert capabilities.plain_blocks
    assert capabilities.head is not None


@pytest.mark.parametrize("kind", KINDS)
def test_states_equal_those_of_the_modules(kind: str) -> None:
    model = adapted_model(kind, torch.float32)[0].get_base_model()
    row = to_tensors(pack(examples_with_forks(12, vocabulary=400)), CPU)
    blocks = BlockDecoder.from_model(model)
    assert blocks is not None
    with torch.no_grad():
        states = blocks.states(row.input_ids[0], row.tree, row.rows, training=False)
        expected = hidden_states(model, row)[row.rows]
    assert distance(states, expected) < 1e-5


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("recompute", ["none", "feed-forward", "block"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_equal_those_of_the_modules(kind: str, recompute: Recompute) -> None:
    adapted, capabilities = adapted_model(kind, experts=kind == "26B-A4B")
    row = to_tensors(pack(examples_with_forks(12, vocabulary=400)), CPU)
    fast = supervised_model(adapted, capabilities, fast=True, recompute=recompute)
    plain = supervised_model(adapted, capabilities, fast=False)
    loss, gradients = loss_and_gradients(fast, row)
    expected_loss, expected = loss_and_gradients(plain, row)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-9, atol=0)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        assert distance(gradients[name], gradient) < 1e-8, name


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_equal_separate_ones(kind: str) -> None:
    adapted, capabilities = adapted_model(kind, torch.float32)
    supervised, examples = supervised_model(adapted, capabilities, fast=True), examples_with_forks(12, vocabulary=400)
    loss, gradients = loss_and_gradients(supervised, to_tensors(pack(examples), CPU))
    losses, sums = torch.zeros(()), {name: torch.zeros_like(g) for name, g in gradients.items()}
    for example in examples:
        alone, more = loss_and_gradients(supervised, to_tensors(pack([example]), CPU))
        losses = losses + alone
        sums = {name: total + more[name] for name, total in sums.items()}
    torch.testing.assert_close(loss, losses, rtol=1e-5, atol=0)
    for name, total in sums.items():
        assert distance(gradients[name], total) < 1e-4, name


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("kind", ["E2B", "31B", "26B-A4B"])
def test_outputs_and_gradients_equal_those_of_the_readable_twin(kind: str, dropout: float) -> None:
    """All blocks, one after another, so that keys and values go from the twin of one to that of another."""
    decoder = BlockDecoder.from_model(adapted_model(kind, dropout=dropout)[0].get_base_model())
    assert decoder is not None
    tree = Tree.from_batch(pack([text(1, 2, 3), text(1, 2, 4, 5), text(6)]), CPU)
    draw = torch.Generator().manual_seed(0)
    hidden, weights = (torch.randn(6, 64, dtype=torch.float64, generator=draw) for _ in range(2))
    parameters = [parameter for block in decoder.parts for parameter in block.parameters]

    def results(*, fast: bool) -> list[Tensor]:
        torch.manual_seed(3)  # the same masks
        context = decoder.begin(hidden, tree, training=True)
        for name in {name for block in decoder.parts for name in block.carried if "per-layer" in name}:
            context.carried[name] = torch.arange(6 * 16, dtype=torch.float64).cos().view(6, 16)
        output = hidden.requires_grad_()
        for block in decoder.parts:
            if block.keys:
                (block.keys.run if fast else block.keys.reference)(output, context)
            output = (run_block if fast else reference_block)(block, output, context)
        return [output.detach(), *torch.autograd.grad((output * weights).sum(), [hidden, *parameters])]

    for ours, theirs in zip(results(fast=True), results(fast=False), strict=True):
        assert theirs.abs().max() > 0
        assert distance(ours, theirs) < 1e-5


@pytest.mark.usefixtures("exact_norms")
def test_gradcheck_of_shared_keys_and_what_reads_them() -> None:
    decoder = BlockDecoder.from_model(adapted_model("E4B", r=2)[0].get_base_model())
    assert decoder is not None
    donor, reader = decoder.parts[1], decoder.parts[3]
    assert donor.keys is not None
    assert reader.keys is None
    tree = Tree.from_batch(pack([text(1, 2, 3), text(1, 2, 4, 5), text(6)]), CPU)
    draw = torch.Generator().manual_seed(0)
    drawn, embedded = (torch.randn(6, n, dtype=torch.float64, generator=draw) for n in (64, 16))
    context = replace(decoder.begin(drawn, tree, training=False), retain_graph=True)
    wanted = torch.tensor([0, 3, 4])

    def output(hidden: Tensor, *_: Tensor) -> Tensor:
        context.carried.clear()
        context.carried.update(dict.fromkeys([*donor.carried, *reader.carried], embedded[wanted]))
        donor.keys.run(hidden, context)  # type: ignore[union-attr]
        some = context.only(wanted)
        return run_block(reader, run_block(donor, hidden[wanted], some), some)

    inputs = [drawn.requires_grad_(), *donor.keys.parameters, *reader.branches[0].mixer.parameters]
    assert torch.autograd.gradcheck(output, inputs, fast_mode=True)


def test_only_wanted_rows_run_after_the_last_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted_model("E2B")[0].get_base_model()
    row = to_tensors(pack(examples_with_forks(12, vocabulary=400)), CPU)
    decoder = BlockDecoder.from_model(model)
    assert decoder is not None
    seen: list[int] = []

    def watched(block: Any, hidden: Tensor, *rest: Any) -> Tensor:
        seen.append(len(hidden))
        return run_block(block, hidden, *rest)

    monkeypatch.setattr("weitune.model.fast.decoder.run_block", watched)
    decoder.states(row.input_ids[0], row.tree, row.rows, training=False)
    tokens, wanted = row.input_ids.shape[1], len(row.rows)
    assert wanted < tokens
    assert seen == [tokens, wanted, wanted, wanted]


@pytest.mark.parametrize("name", ["per_layer_model_projection", "router.proj"])
def test_an_adapter_that_blocks_do_not_train_is_left_to_the_modules(name: str) -> None:
    kind = "26B-A4B" if "router" in name else "E2B"
    model = family_model("gemma4_text", **KINDS[kind])
    assert probe(model).plain_blocks
    before = BlockDecoder.from_model(model)
    assert before is not None
    attach_adapter(model, Lora(dropout=0.0, target_modules=["q_proj", name]), seed=1, base="tiny")
    assert before.with_adapters(torch.float32) is None
