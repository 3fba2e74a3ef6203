"""The recipe's group ``preference``: defaults that depend on the method, and what does not go together."""

import pytest
import yaml

from tests.recipe.test_load import LEAST, problems
from weitune.recipe.load import build_recipe, dump_recipe
from weitune.recipe.preference import WITH_REFERENCE, Preference
from weitune.recipe.schema import Lora, Recipe, Tokens, Train

METHODS = ("dpo", "dpo_norm", "ipo", "hinge", "kto", "orpo", "simpo", "cpo")


@pytest.mark.parametrize("method", METHODS)
def test_defaults_of_a_method_are_resolved_and_recorded(method):
    recipe = build_recipe(LEAST, {"preference.method": method})
    found = recipe.preference
    assert found.beta == (2 if method == "simpo" else 0.1)
    assert found.sft_weight == (1 if method == "cpo" else 0)
    assert (recipe.train.learning_rate, recipe.tokens.max_length) == (1e-5, 2048)
    assert recipe.lora.dropout == (0 if method in WITH_REFERENCE else 0.1)
    recorded = yaml.safe_load(dump_recipe(recipe))
    assert recorded["preference"]["beta"] == found.beta
    assert recorded["train"]["learning_rate"] == 1e-5
    assert build_recipe(recorded) == recipe


def test_values_that_were_given_win_over_the_defaults_of_the_method():
    given = {"train.learning_rate": 1e-4, "tokens.max_length": 1024, "preference.beta": 0.1}
    recipe = build_recipe(LEAST, {"preference.method": "simpo", "lora.dropout": 0.1, **given})
    assert (recipe.train.learning_rate, recipe.tokens.max_length, recipe.preference.beta) == (1e-4, 1024, 0.1)


@pytest.mark.parametrize("given", [None, "ipo", {"method": "ipo"}], ids=str)
def test_keys_are_laid_over_a_word_a_group_and_nothing(given):
    tree = {**LEAST, "preference": given}
    found = build_recipe(tree, {"preference.method": "simpo", "preference.margin": 0.5}).preference
    assert (found.method, found.margin, found.beta) == ("simpo", 0.5, 2)
    if given:
        assert build_recipe(tree, {"preference.beta": 0.5}).preference == Preference(method="ipo", beta=0.5)
    assert build_recipe(LEAST, {"preference": "ipo", "preference.beta": 0.5}).preference.beta == 0.5


def test_the_same_defaults_in_python():
    recipe = Recipe(**LEAST, preference=Preference(method="simpo"), train=Train(epochs=1), tokens=Tokens(), lora=Lora())
    assert (recipe.preference.beta, recipe.train.epochs, recipe.train.learning_rate) == (2, 1, 1e-5)
    assert recipe == build_recipe(LEAST, {"preference": "simpo", "train.epochs": 1})


def test_without_a_preference_nothing_changes():
    recipe = build_recipe(LEAST)
    assert recipe.preference is None
    assert (recipe.train.learning_rate, recipe.tokens.max_length, recipe.lora.dropout) == (1e-4, 1024, 0.1)


def test_a_whole_model_may_learn_preferences():
    assert build_recipe(LEAST, {"preference": "dpo", "lora": "none"}).adapter is None


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("dpo", "margin", 0.5),
        ("ipo", "label_smoothing", 0.1),
        ("simpo", "label_smoothing", 0.1),
        ("kto", "sft_weight", 0.2),
        ("orpo", "sft_weight", 1),
        ("simpo", "sft_weight", 1),
        ("dpo", "liked_weight", 2),
        ("cpo", "disliked_weight", 2),
    ],
)
def test_a_key_that_the_method_does_not_use(method, key, value):
    (line,) = problems(LEAST, {"preference.method": method, f"preference.{key}": value})
    assert line == f"preference: preference.{key}: the method {method} does not use it; remove it"


def test_dropout_beside_a_reference_is_refused_and_without_one_it_is_not():
    (line,) = problems(LEAST, {"preference": "dpo", "lora.dropout": 0.05})
    assert line.startswith("lora.dropout: dpo compares the model with its reference, so dropout must be 0")
    assert build_recipe(LEAST, {"preference": "orpo", "lora.dropout": 0.05}).lora.dropout == 0.05


@pytest.mark.parametrize(("key", "value"), [("keep", 0.1), ("tokens.supervise", "last")])
def test_what_does_not_go_with_preferences(key, value):
    (line,) = problems(LEAST, {"preference": "dpo", key: value})
    assert line.startswith(key)


def test_an_unknown_method_names_the_known_ones():
    (line,) = problems(LEAST, {"preference": "ppo"})
    assert line == f"preference.method: must be {', '.join(map(repr, METHODS[:-1]))} or 'cpo'; found 'ppo'"


def test_a_preference_needs_a_method():
    assert problems(LEAST, {"preference.beta": 0.2}) == ["preference.method: missing, and has no default"]


def test_both_weights_of_judged_answers_must_not_be_0():
    (line,) = problems(LEAST, {"preference": {"method": "kto", "liked_weight": 0, "disliked_weight": 0}})
    assert "at least one must be greater than 0" in line
