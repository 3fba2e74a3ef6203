"""Names of layers: PEFT matches exactly those that were meant."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weitune.model.lora.target_names import kind_of, kinds_text, matches, shortest_ends, shortest_names

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMA = [f"model.layers.{k}.{part}_proj" for k in range(12) for part in ("self_attn.q", "self_attn.k", "mlp.up")]
parts = st.sampled_from(["layers", "0", "1", "11", "attn", "mlp", "q_proj", "up_proj", "gate", "a.b"])
names = st.lists(parts, min_size=1, max_size=5).map(".".join)


def peft_matches(name: str, target_modules: list[str] | str, layers: list[int] | None = None) -> bool:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(target_modules=target_modules, layers_to_transform=layers)
    return bool(check_target_module_exists(config, name))


@given(st.sets(names, min_size=1), st.data())
def test_the_shortest_names_match_what_is_wanted_and_nothing_else(modules: set[str], data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.sampled_from(sorted(modules)), min_size=1, unique=True))
    found = shortest_names(wanted, modules)
    assert {name for name in modules if peft_matches(name, found)} == set(wanted)
    assert {name for name in modules if matches(name, found)} == set(wanted)


@given(st.sets(names, min_size=1), st.data())
def test_the_shortest_ends_do_too(parameters: set[str], data: st.DataObject) -> None:
    parameters = {f"model.{name}.weight" for name in parameters}  # none is the end of another
    wanted = data.draw(st.lists(st.sampled_from(sorted(parameters)), min_size=1, unique=True))
    ends = shortest_ends(wanted, parameters)
    assert {name for name in parameters if any(f".{name}".endswith(f".{end}") for end in ends)} == set(wanted)


@given(names, st.lists(names, min_size=1, max_size=3), st.none() | st.lists(st.sampled_from([0, 1, 11]), min_size=1))
def test_a_name_is_matched_as_peft_matches_it(name: str, target_modules: list[str], layers: list[int] | None) -> None:
    assert matches(name, target_modules, layers) == peft_matches(name, target_modules, layers)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], ["q_proj", "k_proj", "up_proj"]),
        (["tower.q_proj", "tower.up_proj"], ["self_attn.q_proj", "k_proj", "mlp.up_proj"]),
        (["tower.layers.0.mlp.up_proj"], r"model\.layers\.\d+\.(?:self_attn\.q_proj|self_attn\.k_proj|mlp\.up_proj)"),
    ],
)
def test_names_are_as_short_as_other_modules_allow(others: list[str], expected: list[str] | str) -> None:
    assert shortest_names(LLAMA, [*LLAMA, *others]) == expected


def test_a_pattern_numbers_the_layers_of_which_not_all_are_meant() -> None:
    wanted = [name for name in LLAMA if not re.search(r"\.(0|11)\.mlp", name)]
    numbers = "|".join(map(str, range(1, 11)))
    assert shortest_names(wanted, LLAMA) == (
        rf"model\.layers\.\d+\.(?:self_attn\.q_proj|self_attn\.k_proj)|model\.layers\.(?:{numbers})\.(?:mlp\.up_proj)"
    )


def test_kinds_are_counted_in_a_line() -> None:
    assert kind_of("model.layers.3.self_attn.0.q_proj", "model.layers") == "self_attn.*.q_proj"
    assert kind_of("lm_head", "model.layers") == "lm_head"
    counts = {"self_attn.q_proj": 28, "self_attn.k_proj": 28, "mlp.up_proj": 28, "mlp.gate": 27, "lm_head": 1}
    assert kinds_text(counts) == "self_attn.q_proj, k_proj ×28; mlp.up_proj ×28; mlp.gate ×27; lm_head"
