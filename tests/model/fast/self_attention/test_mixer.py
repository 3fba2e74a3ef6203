"""The attention of each family against the family's own module, its readable twin and numeric gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import family_model
from tests.invariant.test_oracle import examples_with_forks
from weitune.data.pack import pack
from weitune.model.decoder_of import decoder_of
from weitune.model.fast.attention import DENSE, register
from weitune.model.fast.block import reference_block, run_block
from weitune.model.fast.dropout import DropoutDraws
from weitune.model.fast.parts import BlockContext, BlockParts, Branch
from weitune.model.fast.recognise.mixers import read_mixer
from weitune.model.fast.self_attention.latent import LatentAttention
from weitune.model.fast.self_attention.mixer import Attention
from weitune.model.fast.self_attention.observe import Rows
from weitune.model.fast.self_attention.positions import Positions, kind_of
from weitune.model.fast.tree import Tree
from weitune.model.lora.adapter import attach_adapter
from weitune.recipe.schema import Lora

FAMILIES = [
    "qwen2", "qwen3", "ministral", "ernie4_5", "granite", "gemma2", "gemma3_text", "smollm3", "olmo2", "olmo3",
    "exaone4", "cohere2", "hunyuan_v1_dense", "phi3", "glm4", "starcoder2", "apertus", "qwen3_moe", "olmoe", "gpt_oss",
    "glm4_moe", "minimax_m2", "dots1", "deepseek_v3", "qwen3_next", "lfm2", "qwen2_5_vl",
]  # fmt: skip
GRADCHECKED = ["qwen2", "qwen3", "gemma2", "olmo2", "cohere2", "hunyuan_v1_dense", "phi3", "glm4", "gpt_oss"]
WINDOW = 5
TREE = Tree.from_batch(pack(examples_with_forks(6, vocabulary=400)), torch.device("cpu"))
SHORT = Tree(torch.tensor([0, 1, 2, 1, 2, 0]), torch.tensor([5, 3, 3, 5, 5, 6]))


class Case:
    """The layers of a family that have softmax attention, with an adapter that already does something."""

    def __init__(self, family: str, **lora: Any) -> None:
        sliding = family in ("ministral", "gemma2", "gemma3_text", "olmo3", "exaone4", "cohere2", "gpt_oss")
        overrides: dict[str, Any] = {"sliding_window": WINDOW} if sliding else {}
        if family == "gemma2":
            overrides["attn_logit_softcapping"] = 2.0  # as hidden states of this size need for the cap to matter
        model = family_model(family, **overrides)
        adapted = attach_adapter(model, Lora(**{"dropout": 0.0, "r": 2, **lora}), seed=1, base="tiny").double()
        draw = torch.Generator().manual_seed(2)
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            elif "magnitude" in name:
                parameter.data *= 1 + 0.2 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        self.model, self.decoder = model, decoder_of(model)
        rows = Rows.of(self.decoder)
        attention = [each.self_attn for each in self.decoder.layers if hasattr(each, "self_attn")]
        self.blocks = []
        for module in attention:
            mixer = read_mixer(module, rows)
            assert isinstance(mixer, Attention | LatentAttention)
            assert mixer.parameters
            self.blocks.append(BlockParts([Branch(None, mixer)], module))

    def context(self, hidden: Tensor, tree: Tree, rate: float = 0.0) -> BlockContext:
        """Return the context of a pass over ``hidden`` (T, C)."""
        torch.manual_seed(5)
        widest = max(p.shape[1] for block in self.blocks for group in block.groups for p in group.projections)
        dropout = DropoutDraws(rate, len(hidden) * widest, hidden.device, hidden.dtype) if rate else None
        return BlockContext(Positions.of(self.decoder, hidden[None], tree.position_ids[None], tree), dropout)

    def by_module(self, block: BlockParts, hidden: Tensor, tree: Tree) -> Tensor:
        """Return hidden + attention(hidden) as the module computes it."""
        register()
        self.model.set_attn_implementation(DENSE)
        module: Any = block.layer
        rotary = self.context(hidden, tree).attention.rotary_of(kind_of(module))
        output: Tensor = module(
            hidden_states=hidden[None], position_embeddings=rotary, attention_mask=None, past_key_values=None, tree=tree
        )[0][0]
        return hidden + output


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def results(output: Tensor, leaves: list[Any]) -> list[Tensor]:
    """Return the output and the gradients of ``leaves``."""
    return [output.detach(), *torch.autograd.grad((output * random(*output.shape)).sum(), leaves)]


def check(ours: list[Tensor], theirs: list[Tensor], bound: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 0
        assert float((a - b).norm() / b.norm()) < bound


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_equal_those_of_the_familys_module(family: str, dora: bool) -> None:
    """To the digits of float32, in which modules compute norms and the angles of the rotary embedding."""
    case = Case(family, dora=dora)
    hidden = random(len(TREE.position_ids), 64).requires_grad_()
    for block in case.blocks:
        leaves = [hidden, *block.parameters]
        ours = results(run_block(block, hidden, case.context(hidden, TREE)), leaves)
        check(ours, results(case.by_module(block, hidden, TREE), leaves), 2e-5)


@pytest.mark.parametrize(("rows", "rate"), [(None, 0.3), ([0, 3, 4], 0.0)], ids=["all", "some"])
@pytest.mark.parametrize("family", ["qwen3", "phi3", "gpt_oss", "qwen3_next", "deepseek_v3"])
def test_outputs_and_gradients_equal_those_of_the_readable_twin(
    family: str, rows: list[int] | None, rate: float
) -> None:
    case = Case(family, dora=True, dropout=rate)
    hidden = random(6, 64).requires_grad_()
    wanted = None if rows is None else torch.tensor(rows)
    for block in case.blocks:
        leaves = [hidden, *block.parameters]
        ours = results(run_block(block, hidden, case.context(hidden, SHORT, rate), wanted), leaves)
        twin = reference_block(block, hidden, case.context(hidden, SHORT, rate))
        check(ours, results(twin if wanted is None else twin[wanted], leaves), 1e-9)


@pytest.mark.parametrize("family", [*GRADCHECKED, "deepseek_v3", "qwen3_next"])
def test_gradcheck(family: str) -> None:
    case = Case(family)
    hidden = random(6, 64).requires_grad_()
    for block in case.blocks:
        context = replace(case.context(hidden, SHORT), retain_graph=True)
        leaves = (hidden, *block.parameters)
        assert torch.autograd.gradcheck(lambda x, *_: run_block(block, x, context), leaves, fast_mode=True)  # noqa: B023


@pytest.mark.parametrize("latent_query", [16, None])
def test_the_query_of_latent_attention_may_have_no_latent_state(latent_query: int | None) -> None:
    model = family_model("deepseek_v3", q_lora_rank=latent_query)
    decoder = decoder_of(model)
    mixer = read_mixer(decoder.layers[0].self_attn, Rows.of(decoder))
    assert isinstance(mixer, LatentAttention)
    assert (mixer.query is None) is (latent_query is None)
