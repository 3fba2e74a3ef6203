"""What blocks and a model's own modules keep, measured without numbers, is what they really keep."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import FAMILIES, family_config, family_model
from weitune.data.conversation import Example, Span
from weitune.forecast.fake_batch import mask_bytes
from weitune.forecast.live_memory import LiveBytes
from weitune.forecast.memory_estimate import ModelShape, PassConfig, PassSize, pass_bytes
from weitune.forecast.meta_model import has_llama_blocks
from weitune.forecast.own_modules import OwnModules, layers_of
from weitune.model.batch import PackedTensors, TensorBatch, to_tensors
from weitune.model.capabilities import Capabilities, probe
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.loss import PLAIN_LOGITS, LogitForm
from weitune.model.load.text_model import model_from_config, text_config
from weitune.model.lora.adapter import attach_adapter
from weitune.model.supervised import SupervisedModel, hidden_states
from weitune.recipe.schema import Lora, Recompute

LENGTH = 128
MEASURED = [
    "gemma3_text", "gemma4_text", "cohere2", "phi3", "qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_5_text", "falcon_h1",
    "lfm2", "qwen3_vl",
]  # fmt: skip
"""Sandwich norms, layers of several sizes, scaled logits, fused matrices, experts, recurrent layers, convolutions."""


def modules_of(config: Any, lora: Lora | None, capabilities: Capabilities) -> OwnModules:
    return OwnModules(lambda: copy.deepcopy(config), lora, capabilities, model_from_config)


def saved_bytes(model: Any, batch: TensorBatch) -> int:
    """Return the bytes of the tensors that autograd keeps of a pass, each memory once, without the weights."""
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = hidden_states(model, batch)
        masks = mask_bytes(batch.tree if isinstance(batch, PackedTensors) else None)  # which autograd does not keep
        del states
        return masks + sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("family", MEASURED)
def test_what_is_kept_is_what_autograd_saves(family: str) -> None:
    config, lora = text_config(family_config(family)), Lora(dropout=0.1)
    torch.manual_seed(0)
    model = model_from_config(config)
    capabilities = probe(model.eval()).by_modules()
    attach_adapter(model.requires_grad_(False), lora, seed=0, base="")
    lengths = [LENGTH] * 3 if capabilities.shares_rows else [LENGTH, LENGTH, LENGTH - 9]  # or there would be no mask
    examples = [Example(tuple(range(k, k + n + 1)), (Span(n, n + 1),)) for k, n in enumerate(lengths, 10)]
    saved = saved_bytes(model.train(), to_tensors(capabilities.layout.lay(examples), torch.device("cpu")))
    footprint = modules_of(config, lora, capabilities).footprint(4, recompute="none", longest=LENGTH)
    assert footprint is not None
    assert footprint.kept.at(3, 3 * LENGTH) == pytest.approx(saved, rel=0.06)


def taken_by_blocks(model: Any, blocks: BlockDecoder, batch: TensorBatch, recompute: Recompute) -> tuple[int, int]:
    """Return the bytes that ``blocks`` really keep for backward, and how many more there are at the most."""
    supervised = SupervisedModel(model, blocks=blocks, recompute=recompute).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    with LiveBytes([*model.parameters(), *model.buffers(), *gradients, batch.input_ids]) as live:
        states = supervised.predicting_states(batch)
        kept, forward = live.now, live.peak()
        states.sum().backward()
        return kept, max(forward, live.peak()) - kept


@pytest.mark.parametrize("recompute", ["none", "feed-forward", "block"])
@pytest.mark.parametrize(
    "family", ["gemma2", "cohere2", "qwen3_moe", "gpt_oss", "deepseek_v3", "gemma4_text", "qwen3_5_text"]
)
def test_what_blocks_keep_is_what_they_are_forecast_to_keep(family: str, recompute: Recompute) -> None:
    config, lora = text_config(family_config(family)), Lora(dropout=0.1)
    model = family_model(family)
    capabilities = probe(model)
    assert capabilities.plain_blocks
    decoder = BlockDecoder.from_model(model)
    attach_adapter(model.requires_grad_(False), lora, seed=0, base="")
    blocks = decoder and decoder.with_adapters(torch.float32)
    assert blocks is not None
    examples = [Example(tuple(range(k, k + LENGTH + 1)), (Span(1, LENGTH + 1),)) for k in (10, 11, 12)]
    batch = to_tensors(capabilities.layout.lay(examples), torch.device("cpu"))
    kept, work = taken_by_blocks(model, blocks, batch, recompute)
    footprint = modules_of(config, lora, capabilities).footprint(4, recompute=recompute, longest=LENGTH)
    assert footprint is not None
    assert footprint.kept.at(3, 3 * LENGTH) == pytest.approx(kept, rel=0.1)
    assert footprint.kept.at(3, 3 * LENGTH) + footprint.work.at(3, 3 * LENGTH) == pytest.approx(kept + work, rel=0.1)


@pytest.mark.parametrize("number_bytes", [4, 2])
@pytest.mark.parametrize("recompute", ["none", "feed-forward", "block"])
def test_measured_blocks_take_what_the_formulas_of_llama_say(recompute: Recompute, number_bytes: int) -> None:
    sizes = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "head_dim": 64}
    config = text_config(family_config("qwen2", num_hidden_layers=6, vocab_size=50_000, **sizes))
    shape, size = ModelShape.from_config(config), PassSize(1024, 200, 256)
    modules = modules_of(config, Lora(), Capabilities(True, PLAIN_LOGITS, True))
    manner = PassConfig(number_bytes, recompute=recompute)
    expected, measured = (sum(pass_bytes(shape, size, each)) for each in (manner, replace(manner, modules=modules)))
    assert measured == pytest.approx(expected, rel=0.2 if recompute == "block" else 0.1)


@pytest.mark.parametrize(
    ("family", "holds"),
    [("qwen3", True), ("smollm3", True), ("granite", True), ("gemma2", False), ("exaone4", False), ("cohere2", False),
     ("phi3", False), ("qwen3_moe", False), ("starcoder2", False)],
)  # fmt: skip
def test_formulas_hold_for_blocks_of_llamas_parts(family: str, holds: bool) -> None:
    model = family_model(family)
    assert has_llama_blocks(model) == holds
    attach_adapter(model, Lora(target_modules="all-linear"), seed=0, base="")
    assert has_llama_blocks(model) == holds


def test_a_deep_model_takes_as_much_as_its_layers_together() -> None:
    lora = Lora()
    kept = {}
    for layers in (4, 8, 12):
        kinds = ["sliding_attention", "full_attention"] * (layers // 2)
        config = text_config(family_config("gemma3_text", num_hidden_layers=layers, layer_types=kinds))
        measured = modules_of(config, lora, Capabilities(True, PLAIN_LOGITS, False)).footprint(
            4, recompute="none", longest=256
        )
        assert measured is not None
        kept[layers] = measured.kept.at(1, 512)
    assert kept[12] - kept[8] == pytest.approx(kept[8] - kept[4], rel=1e-6)
    assert kept[8] > 1.8 * kept[4]


def test_patterns_that_name_a_later_layer_are_no_obstacle() -> None:
    config = text_config(family_config("qwen3", num_hidden_layers=12))
    lora = Lora(rank_pattern={r"layers\.11\..*q_proj": 16}, modules_to_save=["layers.10.mlp"])
    modules = modules_of(config, lora, Capabilities(True, PLAIN_LOGITS, False))
    assert modules.footprint(4, recompute="none", longest=256) is not None


def test_recomputing_keeps_the_inputs_of_layers_and_works_on_one() -> None:
    config = text_config(family_config("phi3", num_hidden_layers=12))
    modules, shape = modules_of(config, Lora(), Capabilities(True, PLAIN_LOGITS, False)), ModelShape.from_config(config)
    size = PassSize(1024, 100, 256)

    def need(**manner: Any) -> int:
        return sum(pass_bytes(shape, size, PassConfig(4, plain_blocks=False, modules=modules, **manner)))

    assert need(recompute="block") < 0.35 * need()
    assert need(recompute="feed-forward") == need(recompute="block")
    half = sum(pass_bytes(shape, size, PassConfig(2, plain_blocks=False, modules=modules)))
    assert half < need()


def test_whole_logits_count_where_the_model_makes_them() -> None:
    config, size = text_config(family_config("cohere2", vocab_size=50_000)), PassSize(512, 200, 256)
    shape = ModelShape.from_config(config)

    def logits(size: PassSize, form: LogitForm | None) -> int:
        modules = modules_of(config, Lora(), Capabilities(True, form, False))
        return pass_bytes(shape, size, PassConfig(4, plain_blocks=False, modules=modules))[1]

    assert logits(size, None) > 2 * 4 * 200 * 50_000  # and their gradient
    assert 4 * 200 * 50_000 < logits(size, PLAIN_LOGITS) < 1.1 * 4 * 200 * 50_000


def test_a_model_that_needs_numbers_is_guessed() -> None:
    def broken(config: Any, dtype: torch.dtype) -> Any:
        raise RuntimeError

    config = text_config(family_config("qwen3"))
    modules = OwnModules(lambda: config, Lora(), Capabilities(True, PLAIN_LOGITS, False), broken)
    assert modules.footprint(4, recompute="none", longest=64) is None
    shape, size = ModelShape.from_config(config), PassSize(64, 64, 64)
    guessed = PassConfig(4, plain_blocks=False, modules=modules)
    assert pass_bytes(shape, size, guessed) == pass_bytes(shape, size, PassConfig(4, plain_blocks=False))


def test_memory_of_real_tensors_is_counted_once_and_until_it_is_freed() -> None:
    before = torch.ones(1000)
    with LiveBytes([before]) as live:
        views = before[10:], before.view(10, 100)
        kept = before * 2
        half = kept[:500]
        temporary = kept + 1
        assert live.now == 2 * 4000
        del temporary
        assert live.now == 4000
        assert live.peak() == 2 * 4000
        del kept
        assert live.now == 4000  # the half keeps it
        assert live.peak() == 4000
    assert len(half) + len(views) == 502


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_shape_and_a_list_of_layers(family: str) -> None:
    config = text_config(family_config(family))
    with torch.device("meta"):
        model = model_from_config(config)
    shape = ModelShape.from_config(config)
    assert shape.layers == len(layers_of(model))
    assert shape.vocabulary == model.get_input_embeddings().weight.shape[0]
    assert shape.hidden == model.get_input_embeddings().weight.shape[1]
    assert min(shape.wide, shape.queries, shape.keys) > 0
