"""Feed-forward layers of several kinds: against their twins, by differences, and against the families' own modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.families import family_model
from tests.model.fast.test_block import CPU, distance
from weitune.model.decoder_of import decoder_of
from weitune.model.fast.channel.feed_forward import FeedForward, read_feed_forward
from weitune.model.fast.dropout import DropoutDraws
from weitune.model.fast.parts import BlockContext
from weitune.model.lora.adapter import attach_adapter
from weitune.recipe.schema import Lora

T, C = 6, 64
FAMILIES = ["llama", "gemma", "falcon_h1", "phi3", "lfm2", "starcoder2", "apertus"]
"""gate and up apart, with SiLU, with GELU, with factors inside and outside of the activation; fused in one layer,
called by other names; no gate; no gate and an activation of its own"""


def adapted_layer(family: str, **lora: Any) -> Any:
    """Return a feed-forward module of ``family`` in float64, with an adapter that already does something."""
    model = attach_adapter(family_model(family), Lora(**{"r": 3, **lora}), seed=1, base="tiny").double()
    draw = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        elif "magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    layer = decoder_of(model.get_base_model()).layers[0]
    return next(part for name, part in layer.named_children() if name in ("mlp", "feed_forward"))


def drawn(seed: int) -> Tensor:
    return torch.randn(T, C, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def context(rate: float, **more: Any) -> BlockContext:
    return BlockContext(None, DropoutDraws(rate, T * 128, CPU, torch.float64) if rate else None, **more)


def gradients(output: Tensor, x: Tensor, mixer: FeedForward) -> list[Tensor]:
    return list(torch.autograd.grad((output * drawn(1)).sum(), [x, *mixer.parameters]))


@pytest.mark.parametrize("slices", [False, True], ids=["whole", "slices"])
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "again"])
@pytest.mark.parametrize(("dora", "rate"), [(False, 0.0), (False, 0.4), (True, 0.0), (True, 0.4)])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_equal_those_of_the_readable_twin(
    family: str, dora: bool, rate: float, keep: bool, slices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if slices:
        monkeypatch.setattr("weitune.model.fast.channel.feed_forward.SLICE_COLUMNS", (16, 48))
    mixer = read_feed_forward(adapted_layer(family, dora=dora, dropout=rate))
    shared, x, base = context(rate, keep_feed_forward=keep), drawn(0).requires_grad_(), drawn(3)
    torch.manual_seed(3)
    run = mixer.begin(shared)
    output, saved = run.forward(x.detach(), base, None)
    grad_x, grads = run.backward(drawn(1), x.detach(), saved, retain=False, needs_input=True)
    torch.manual_seed(3)
    expected = mixer.reference(x, shared)
    assert distance(output - base, expected) < 1e-12
    assert len(grads) == len(mixer.parameters)
    for ours, theirs in zip([grad_x, *grads], gradients(expected, x, mixer), strict=True):
        assert theirs.abs().max() > 0
        assert distance(ours, theirs) < 1e-12


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_equal_those_of_the_family(family: str, dora: bool) -> None:
    module = adapted_layer(family, dora=dora, dropout=0.0)
    mixer, x = read_feed_forward(module), drawn(0).requires_grad_()
    run = mixer.begin(context(0.0))
    output, saved = run.forward(x.detach(), None, None)
    grad_x, grads = run.backward(drawn(1), x.detach(), saved, retain=False, needs_input=True)
    expected = module(x)
    assert distance(output, expected) < 1e-12
    for ours, theirs in zip([grad_x, *grads], gradients(expected, x, mixer), strict=True):
        assert distance(ours, theirs) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_gradcheck(family: str) -> None:
    mixer = read_feed_forward(adapted_layer(family, dropout=0.0))

    class Run(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
            ctx.run, ctx.x = mixer.begin(context(0.0)), x
            output, ctx.saved = ctx.run.forward(x, None, None)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
            grad_x, others = ctx.run.backward(grads[0], ctx.x, ctx.saved, retain=True, needs_input=True)
            return grad_x, *others

    inputs = (drawn(0).requires_grad_(), *mixer.parameters)
    assert torch.autograd.gradcheck(Run.apply, inputs, atol=1e-9, fast_mode=True)


def test_a_fused_layer_has_one_adapter_and_no_gradient_of_an_input_that_needs_none() -> None:
    mixer = read_feed_forward(adapted_layer("phi3", dropout=0.0))
    assert [tuple(p.shape) for p in mixer.parameters] == [(3, 64), (256, 3), (3, 128), (64, 3)]
    run, x = mixer.begin(context(0.0)), drawn(0)
    _, saved = run.forward(x, None, None)
    _, expected = run.backward(drawn(1), x, saved, retain=True, needs_input=True)
    grad_x, grads = run.backward(drawn(1), x, saved, retain=True, needs_input=False)
    assert grad_x is None
    torch.testing.assert_close(grads, expected, rtol=0, atol=0)


def test_a_limit_beyond_usual_values_is_seen() -> None:
    mlp = decoder_of(family_model("llama")).layers[0].mlp

    class Limited(type(mlp)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)).clamp(max=16) * self.up_proj(x))  # type: ignore[no-any-return]

    mlp.__class__ = Limited
    assert read_feed_forward(mlp) is None


def test_layers_with_other_parts_are_not_taken_for_one() -> None:
    mlp = decoder_of(family_model("llama")).layers[0].mlp
    assert read_feed_forward(mlp) is not None
    mlp.extra = nn.Linear(4, 4)
    assert read_feed_forward(mlp) is None
    del mlp.extra
    mlp.act_fn = nn.Softmax(-1)  # cannot be computed in slices
    assert read_feed_forward(mlp) is None
    mlp.act_fn = nn.Softplus()
    assert read_feed_forward(mlp) is not None
