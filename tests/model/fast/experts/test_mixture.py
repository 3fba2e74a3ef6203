"""The mixture of experts against the families' own modules, its readable twin and numeric gradients."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import family_model
from weitune.model.capabilities import probe
from weitune.model.fast import matmul
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.dropout import DropoutDraws
from weitune.model.fast.experts import routed
from weitune.model.fast.experts import rows as rows_module
from weitune.model.fast.experts.gate import read_gate
from weitune.model.fast.experts.mixture import Mixture
from weitune.model.fast.experts.read import read_mixture
from weitune.model.fast.parts import BlockContext
from weitune.model.lora.adapter import attach_adapter
from weitune.recipe.schema import Lora

FAMILIES = [
    "qwen2_moe", "qwen3_moe", "mixtral", "olmoe", "gpt_oss", "ernie4_5_moe", "hunyuan_v1_moe", "deepseek_v3",
    "glm4_moe", "llama4_text", "granitemoe", "minimax_m2", "dots1",
]  # fmt: skip
"""Softmax before and after the choice, sigmoids with corrections and groups, weights on inputs, gated shared experts"""


def test_a_limit_beyond_usual_values_is_seen() -> None:
    def gated(limit: float) -> Any:
        def gate(x: Tensor) -> Tensor:
            one, other = x.clamp(-limit, limit).chunk(2, dim=1)
            return torch.nn.functional.silu(one) * other

        return SimpleNamespace(_apply_gate=gate)

    assert read_gate(gated(math.inf), 4) is not None
    assert read_gate(gated(10.0), 4) is None


def mixture_of(model: Any) -> tuple[Any, Mixture]:
    """Return the module of the last mixture of a model, and what is read from it."""
    owners = [module for module in model.modules() if hasattr(module, "experts") and hasattr(module, "forward")]
    mixture = read_mixture(owners[-1])
    assert mixture is not None
    return owners[-1], mixture


def model_of(family: str, *, adapted: bool, dtype: torch.dtype = torch.float32, **lora: Any) -> Any:
    """Return a model, perhaps with adapters of experts and of all else, which do something: B is not zero."""
    model = family_model(family)
    if not adapted:
        return model.to(dtype)
    settings = Lora(**{"r": 4, "alpha": 8, "dropout": 0.0, "experts": True, **lora})
    wrapped = attach_adapter(model, settings, seed=1, base="tiny").to(dtype)
    draw = torch.Generator().manual_seed(2)
    for name, parameter in wrapped.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw, dtype=dtype)
    return model


def rows(count: int = 23, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    x, weights = (torch.randn(count, 64, generator=draw, dtype=dtype) for _ in range(2))
    return x.requires_grad_(), weights


def results_of_module(module: Any, mixture: Mixture, x: Tensor, weights: Tensor) -> list[Tensor]:
    output = module(x[None])
    output = (output[0] if isinstance(output, tuple) else output).view(x.shape)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), [x, *mixture.parameters])]


def results_of_pass(
    mixture: Mixture, x: Tensor, weights: Tensor, *, keep: bool = True, retain: bool = False
) -> list[Tensor]:
    mixer_pass = mixture.begin(BlockContext(None, None, keep))
    base = torch.ones_like(x)
    with torch.no_grad():
        output, saved = mixer_pass.forward(x.detach(), base, None)
        results = [
            mixer_pass.backward(weights, x.detach(), saved, retain=retain, needs_input=True) for _ in range(1 + retain)
        ]
    assert base.eq(1).all()
    for grad_x, grads in results:
        assert grad_x is not None
        assert len(grads) == len(mixture.parameters)
    grad_x, grads = results[-1]
    return [output - 1, grad_x, *grads]


def assert_close(ours: list[Tensor], theirs: list[Tensor], bound: float) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert other.abs().max() > 0
        assert float((one - other).norm() / other.norm()) < bound


@pytest.mark.filterwarnings("ignore:The following .* keys did not match any targeted module")
@pytest.mark.parametrize("adapted", [False, True], ids=["frozen", "adapted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_equal_those_of_the_family_and_of_the_twin(family: str, adapted: bool) -> None:
    module, mixture = mixture_of(model_of(family, adapted=adapted))
    assert bool(mixture.routed.parameters) == adapted
    x, weights = rows()
    theirs = results_of_module(module, mixture, x, weights)
    for keep, retain in ((True, False), (False, False), (True, True)):
        assert_close(results_of_pass(mixture, x, weights, keep=keep, retain=retain), theirs, 1e-5)
    output = mixture.reference(x, BlockContext(None, None))
    twin = [output.detach(), *torch.autograd.grad((output * weights).sum(), [x, *mixture.parameters])]
    assert_close(twin, theirs, 1e-5)


class ExactRouter(torch.nn.Module):
    """A router in float64: those of the families compute in float32, too coarse for differences."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(4)
        self.weight = torch.nn.Parameter(torch.randn(experts, 64, dtype=torch.float64, generator=draw))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = (x @ self.weight.T).softmax(1).topk(2, dim=1)
        return weights, index


def assert_gradients_are_slopes(mixture: Mixture) -> None:
    """Compare the gradients of a mixture in float64 with differences."""
    x, _ = rows(5, torch.float64)

    class Mixed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, *_: Tensor) -> Tensor:
            ctx.mixer_pass = mixture.begin(BlockContext(None, None, retain_graph=True))
            output, saved = ctx.mixer_pass.forward(x, None, None)
            ctx.save = x, saved
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            grad_x, others = ctx.mixer_pass.backward(grads[0], *ctx.save, retain=True, needs_input=True)
            return grad_x, *others

    assert torch.autograd.gradcheck(Mixed.apply, (x, *mixture.parameters), atol=1e-9, fast_mode=True)


def in_float64(mixture: Mixture) -> Mixture:
    router = replace(mixture.routed.router, module=ExactRouter(mixture.routed.router.experts), arguments=())
    return replace(mixture, routed=replace(mixture.routed, router=router))


@pytest.mark.filterwarnings("ignore:The following .* keys did not match any targeted module")
@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss", "llama4_text"])
def test_gradcheck(family: str) -> None:
    model = model_of(family, adapted=True, r=2)
    mixture = in_float64(mixture_of(model)[1])
    model.double()
    assert_gradients_are_slopes(mixture)


class Doubled:
    """torch, in which numbers of 32 bits have 64."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.mark.filterwarnings("ignore:The following .* keys did not match any targeted module")
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_gradcheck_with_the_routers_of_the_families(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmax before the choice and after it; sigmoids with corrections, in groups."""
    model = model_of(family, adapted=True, r=2)
    _, mixture = mixture_of(model)
    model.double()
    router = mixture.routed.router
    monkeypatch.setattr(sys.modules[type(router.module).__module__], "torch", Doubled())
    assert all(each.dtype in (torch.float64, torch.int64) for each in router.module(rows(5, torch.float64)[0]))
    assert_gradients_are_slopes(mixture)


@pytest.mark.filterwarnings("ignore:The following .* keys did not match any targeted module")
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "llama4_text"])
def test_rounded_rows_and_grouped_products_change_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, mixture = mixture_of(model_of(family, adapted=True))
    x, weights = rows()
    plain = results_of_pass(mixture, x, weights)
    with monkeypatch.context() as patch:
        patch.setattr(rows_module.matmul, "round_rows", lambda *_: 16)
        assert rows_module.rounded("cpu", torch.float32, 11) == 16
        assert_close(results_of_pass(mixture, x, weights), plain, 1e-5)
    monkeypatch.setattr(routed, "can_group", lambda *_: True)
    assert_close(results_of_pass(mixture, x, weights), plain, 1e-5)


@pytest.mark.parametrize(
    ("family", "counts"), [("qwen3", False), ("qwen3_moe", True), ("gemma4_text_26b", True), ("granitemoehybrid", True)]
)
def test_a_pass_waits_for_the_rows_of_experts_that_cannot_be_grouped(
    family: str, counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = BlockDecoder.from_model(family_model(family))
    assert blocks is not None
    assert blocks.waits_for(torch.device("cpu")) == counts
    monkeypatch.setattr(routed, "can_group", lambda *_: True)
    assert not blocks.waits_for(torch.device("cpu"))


def test_sizes_of_rounded_rows_are_few_and_little_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module.matmul, "round_rows", lambda *_: 16)
    sizes = {count: rows_module.rounded("cpu", torch.float32, count) for count in range(1, 4097)}
    assert len(set(sizes.values())) < 70
    assert all(count <= size < count + max(8, count / 7) for count, size in sizes.items())


def test_experts_get_no_gradient_that_nobody_needs() -> None:
    _, mixture = mixture_of(model_of("qwen3_moe", adapted=False))
    x, weights = rows()
    mixer_pass = mixture.begin(BlockContext(None, None))
    with torch.no_grad():
        _, saved = mixer_pass.forward(x.detach(), None, None)
        assert mixer_pass.backward(weights, x.detach(), saved, retain=False, needs_input=False) == (None, [])


def test_weights_in_16_bits_are_widened_where_they_are_used() -> None:
    for family in ("qwen3_moe", "glm4_moe", "gpt_oss"):
        model = model_of(family, adapted=False)
        exact = mixture_of(model)[1]
        x, weights = rows()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.bfloat16())
        expected = results_of_pass(exact, x, weights)
        coarse = mixture_of(model.bfloat16())[1]
        ours = results_of_pass(coarse, x, weights)
        assert_close(ours, expected, 1e-5)


def test_a_module_without_known_parts_is_no_mixture() -> None:
    assert read_mixture(torch.nn.Linear(3, 3)) is None
    model = family_model("qwen3_moe")
    module = model.model.layers[1].mlp
    module.more = torch.nn.LayerNorm(64)
    assert read_mixture(module) is None
    del module.more
    module.experts.act_fn = torch.nn.Tanh()
    assert read_mixture(module) is None


@pytest.mark.filterwarnings("ignore:The following .* keys did not match any targeted module")
@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe", "glm4_moe"])
@pytest.mark.parametrize("experts", [False, True], ids=["frozen", "adapted"])
def test_blocks_with_mixtures_run_fast_with_adapters(family: str, experts: bool) -> None:
    model = family_model(family)
    blocks = BlockDecoder.from_model(model)
    assert blocks is not None
    assert probe(model, blocks).plain_blocks
    wrapped = attach_adapter(model, Lora(dropout=0.1, experts=experts), seed=1, base="tiny")
    trained = blocks.with_adapters(torch.float32)
    assert trained is not None
    count = sum(parameter.requires_grad for parameter in wrapped.parameters())
    assert sum(len(block.parameters) for block in trained.parts) == count > 0
    assert any(isinstance(branch.mixer, Mixture) for branch in trained.parts[1].branches)


def test_shared_experts_whose_weights_peft_adapts_as_parameters() -> None:
    from peft import LoraConfig, get_peft_model

    model = family_model("glm4_moe")
    names = [f"shared_experts.{name}_proj.weight" for name in ("gate", "up", "down")]
    config = LoraConfig(r=3, target_modules=[], target_parameters=names, init_lora_weights=False)
    wrapped = get_peft_model(model, config)
    module, mixture = mixture_of(model)
    assert len(mixture.parameters) == sum(p.requires_grad for p in wrapped.parameters()) == 6
    x, weights = rows()
    assert_close(results_of_pass(mixture, x, weights), results_of_module(module, mixture, x, weights), 1e-5)


@pytest.mark.parametrize("family", ["glm4_moe", "qwen2_moe"])
def test_shared_experts_are_laid_out_as_other_feed_forward_layers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = family_model(family)
    blocks = BlockDecoder.from_model(model)
    assert blocks is not None
    monkeypatch.setattr(matmul, "by_onednn", lambda *_: True)
    blocks.lay_out()
    downs = [layer for name, layer in model.named_modules() if name.endswith("down_proj")]
    assert len(downs) == 2
    assert all(layer.weight.T.is_contiguous() for layer in downs)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_shared_experts_and_their_gate_have_adapters_with_dropout(dora: bool) -> None:
    targets = ["gate_proj", "up_proj", "down_proj", "shared_expert_gate"]
    settings = {"target_modules": targets, "experts": False, "dora": dora, "dropout": 0.4}
    _, mixture = mixture_of(model_of("qwen2_moe", adapted=True, **settings))
    assert len(mixture.parameters) == 4 * (3 if dora else 2)
    x, weights = rows()
    draws = DropoutDraws(0.4, x.numel(), x.device, x.dtype)
    context = BlockContext(None, draws, keep_feed_forward=False)

    torch.manual_seed(5)  # the same masks
    mixer_pass = mixture.begin(context)
    with torch.no_grad():
        output, saved = mixer_pass.forward(x.detach(), None, None)
        grad_x, grads = mixer_pass.backward(weights, x.detach(), saved, retain=False, needs_input=True)
    assert grad_x is not None
    torch.manual_seed(5)
    twin = mixture.reference(x, context)
    expected = [twin.detach(), *torch.autograd.grad((twin * weights).sum(), [x, *mixture.parameters])]
    assert_close([output, grad_x, *grads], expected, 1e-5)
