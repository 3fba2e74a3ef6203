"""What lies between the parts of a layer is read from the layer's own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.families import family_model
from weitune.model.decoder_of import decoder_of
from weitune.model.fast.channel.side_by_side import SideBySide
from weitune.model.fast.norm import RMSNorm
from weitune.model.fast.parts import Mixer
from weitune.model.fast.recognise.arrangement import Wiring, arrange, trace

NORM = RMSNorm(torch.ones(4), 1e-6)


class Layer(nn.Module):
    """A decoder layer whose forward is given; its parts are linear layers and norms."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def layer(family: str, **overrides: Any) -> nn.Module:
    first: nn.Module = decoder_of(family_model(family, **overrides)).layers[0]
    return first


def arranged(of: nn.Module) -> Any:
    """Arrange ``of`` with something in the place of every mixer and norm."""
    names = [name for name, _ in of.named_children()]
    mixers: dict[str, Mixer] = {name: _Named(name) for name in names if "norm" not in name}
    return arrange(of, mixers, {name: NORM for name in names if "norm" in name})


class _Named:
    carried = ()
    mixes_tokens = False

    def __init__(self, name: str) -> None:
        self.name = name


def test_a_layer_of_llama() -> None:
    assert trace(layer("llama")) == Wiring(
        {
            "input_layernorm": {"": 1},
            "self_attn": {"input_layernorm": 1},
            "post_attention_layernorm": {"": 1, "self_attn": 1},
            "mlp": {"post_attention_layernorm": 1},
        },
        {"": 1, "self_attn": 1, "mlp": 1},
    )


@pytest.mark.parametrize(
    ("family", "norms", "parallel", "multiplier"),
    [
        ("llama", [(True, False), (True, False)], False, 1),
        ("gemma2", [(True, True), (True, True)], False, 1),
        ("olmo2", [(False, True), (False, True)], False, 1),
        ("glm4", [(True, True), (True, True)], False, 1),
        ("cohere2", [(True, False), (True, False)], True, 1),
        ("granite", [(True, False), (True, False)], False, 0.5),
        ("mixtral", [(True, False), (True, False)], False, 1),
        ("gpt_oss", [(True, False), (True, False)], False, 1),
    ],
)
def test_norms_stand_where_the_family_has_them(
    family: str, norms: list[tuple[bool, bool]], parallel: bool, multiplier: float
) -> None:
    block = arranged(layer(family))
    assert [(bool(branch.pre), bool(branch.post)) for branch in block.branches] == norms
    assert [branch.multiplier for branch in block.branches] == [multiplier] * 2
    assert block.parallel is parallel
    assert block.scale == 1
    assert block.branches[0].mixer.name == "self_attn"


@pytest.mark.parametrize(
    ("family", "names"),
    [("granitemoehybrid", [["mamba"], ["block_sparse_moe", "shared_mlp"]]),
     ("falcon_h1", [["mamba", "self_attn"], ["feed_forward"]])],
)  # fmt: skip
def test_mixers_of_one_norm_stand_side_by_side(family: str, names: list[list[str]]) -> None:
    block = arranged(layer(family))
    assert not block.parallel
    assert all(branch.pre for branch in block.branches)
    mixers = [branch.mixer for branch in block.branches]
    assert names == [[b.mixer.name for b in m.branches] if isinstance(m, SideBySide) else [m.name] for m in mixers]
    assert all(b.pre is None for m in mixers if isinstance(m, SideBySide) for b in m.branches)


def test_factors_of_mixers_side_by_side_are_their_own() -> None:
    class Both(Layer):
        def forward(self, hidden_states: Tensor) -> Tensor:
            normed = self.norm(hidden_states)
            hidden_states = hidden_states + 0.5 * self.mixer(normed) + 3 * self.other(normed)
            return hidden_states - self.last(hidden_states)

    names = ("mixer", "other", "last")
    block = arranged(Both({"norm": nn.LayerNorm(4), **{name: nn.Linear(4, 4) for name in names}}))
    both, last = block.branches
    assert [branch.multiplier for branch in both.mixer.branches] == [0.5, 3]
    assert (both.multiplier, last.multiplier) == (1, -1)


def test_the_layer_is_not_changed() -> None:
    before = layer("gemma2")
    x, positions = torch.randn(1, 3, 64), (torch.ones(1, 3, 16), torch.zeros(1, 3, 16))
    expected = before(x, position_embeddings=positions)
    trace(before)
    assert torch.equal(before(x, position_embeddings=positions), expected)


def test_a_scaled_output_and_different_multipliers() -> None:
    class Scaled(Layer):
        def forward(self, hidden_states: Tensor, mask: Any) -> Tensor:
            hidden_states = hidden_states + 0.22 * self.mixer(self.norm(hidden_states))
            return 3 * (hidden_states - 2 * self.other(hidden_states))

    block = arranged(Scaled({"norm": nn.LayerNorm(4), "mixer": nn.Linear(4, 4), "other": nn.Linear(4, 4)}))
    assert [branch.multiplier for branch in block.branches] == [0.22, -2]
    assert block.scale == 3
    assert block.branches[1].pre is None


@pytest.mark.parametrize("kind", ["product", "twice", "between", "no residual"])
def test_what_is_no_sum_of_branches_is_refused(kind: str) -> None:
    class Odd(Layer):
        def forward(self, hidden_states: Tensor) -> Tensor:
            mixed: Tensor = self.mixer(hidden_states)
            match kind:
                case "product":
                    return hidden_states * mixed
                case "twice":
                    return hidden_states + self.mixer(mixed)
                case "between":
                    return hidden_states + self.other(mixed + 2 * hidden_states)
                case _:
                    return mixed

    assert arranged(Odd({"mixer": nn.Linear(4, 4), "other": nn.Linear(4, 4)})) is None
