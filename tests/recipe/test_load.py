"""Reading a recipe: what is accepted, what a mistake is told, and that writing and reading are inverse."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from weitune.errors import RecipeError
from weitune.recipe.load import build_recipe, dump_recipe, fields, load_recipe, preset_names, recorded
from weitune.recipe.schema import PROJECTIONS, Lora, Recipe, Tokens, Train

LEAST = {"model": "some/model", "data": "dialogues.json"}


def problems(tree, overrides=None):
    """Return the lines about single keys in the error that ``tree`` causes."""
    with pytest.raises(RecipeError) as caught:
        build_recipe(tree, overrides)
    title, *lines = caught.value.message.split("\n  ")
    assert title == ("the recipe has a problem:" if len(lines) == 1 else f"the recipe has {len(lines)} problems:")
    return lines


@pytest.fixture
def recipe_file(tmp_path):
    """Return a function that writes a recipe file and returns its name."""

    def write(content):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content, encoding="utf-8")
        return str(path)

    return write


# What is accepted


def test_the_least_recipe_has_the_documented_defaults():
    recipe = build_recipe(LEAST)
    assert recipe.data == ["dialogues.json"]
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.target_modules) == (8, 32, ["auto"])
    assert (recipe.train.batch_size, recipe.train.epochs, recipe.train.learning_rate) == (16, 3, 1e-4)


@pytest.mark.parametrize("written", ["1e-4", "1.0e-4", "0.0001", "'1e-4'", "1E-4"])
def test_every_way_to_write_a_learning_rate_in_yaml(recipe_file, written):
    name = recipe_file(f"model: m\ndata: d\ntrain: {{learning_rate: {written}}}\n")
    assert load_recipe(name).train.learning_rate == 1e-4


def test_one_file_or_several():
    assert build_recipe({**LEAST, "data": "a, b.json"}).data == ["a, b.json"]
    assert build_recipe({**LEAST, "data": ["a.json", "b.json"]}).data == ["a.json", "b.json"]


def test_target_modules_separated_by_commas():
    assert build_recipe(LEAST, {"lora.target_modules": "q_proj, v_proj"}).lora.target_modules == ["q_proj", "v_proj"]


@pytest.mark.parametrize("empty", ["lora:", "lora: {}", "lora:\n  # r: 16"])
def test_a_group_without_keys_keeps_its_defaults(recipe_file, empty):
    assert load_recipe(recipe_file(f"model: m\ndata: d\n{empty}\n")).lora == Lora()


def test_a_file_with_a_byte_order_mark(recipe_file):
    assert load_recipe(recipe_file("\ufeffmodel: 模型\ndata: d\n")).model == "模型"


def test_overrides_win_over_the_file_and_leave_its_neighbours(recipe_file):
    name = recipe_file("model: m\ndata: d\nlora: {r: 4, alpha: 8}\n")
    recipe = load_recipe(name, {"lora.r": "16", "train.epochs": 1, "model": "n"})
    assert (recipe.model, recipe.lora.r, recipe.lora.alpha, recipe.train.epochs) == ("n", 16, 8, 1)


def test_overrides_do_not_change_the_tree_they_are_laid_over():
    tree = {**LEAST, "lora": {"r": 4}}
    build_recipe(tree, {"lora.r": 16, "train.epochs": 1})
    assert tree == {**LEAST, "lora": {"r": 4}}


def test_a_word_for_a_group_changes_the_key_that_it_stands_for():
    tree = {**LEAST, "keep": {"share": 0.1, "run": "runs/old", "target": "distill"}}
    for override in ({"keep": 0.2}, {"keep": "0.2"}, {"keep.share": 0.2}):
        keep = build_recipe(tree, override).keep
        assert (keep.share, keep.run, keep.target) == (0.2, "runs/old", "distill")
    assert build_recipe({**LEAST, "keep": 0.1}, {"keep": 0.2}).keep.share == 0.2
    assert build_recipe(tree, {"keep": {"share": 0.3}}).keep.run is None  # a whole group replaces it
    assert build_recipe(tree, {"keep": None}).keep is None
    preference = build_recipe({**LEAST, "preference": {"method": "dpo", "beta": 0.3}}, {"preference": "ipo"}).preference
    assert (preference.method, preference.beta) == ("ipo", 0.3)
    assert build_recipe(LEAST, {"preference.beta": 0.3, "preference": "ipo"}).preference.beta == 0.3


def test_overrides_alone_make_a_recipe():
    assert load_recipe(None, LEAST) == build_recipe(LEAST)


def test_a_recipe_does_not_change():
    with pytest.raises(ValidationError):
        build_recipe(LEAST).lora.r = 4


@pytest.mark.parametrize("name", sorted({*preset_names()} - {"fast"}))
def test_presets_are_valid(name):
    assert load_recipe(name).model


def test_the_expected_presets_ship():
    assert {"demo", "fast", "tutorial"} <= set(preset_names())


def test_the_fast_preset_changes_how_long_and_how_fast_it_learns_and_nothing_else():
    recipe = load_recipe("fast", {"model": "m", "data": "d"})
    assert recipe == build_recipe({"model": "m", "data": "d", "train": {"epochs": 1, "learning_rate": 5e-4}})


@pytest.mark.parametrize("given", [{"preference": "dpo"}, {"preference.method": "dpo", "preference.beta": 0.2}])
@pytest.mark.parametrize("name", preset_names())
def test_with_preferences_the_rates_and_lengths_of_a_preset_for_dialogues_do_not_count(name, given):
    more = {"model": "m", "data": "d"}
    recipe, plain = load_recipe(name, {**more, **given}), build_recipe({}, {**more, **given})
    assert recipe.train.learning_rate == plain.train.learning_rate == 1e-5
    assert recipe.tokens.max_length == plain.tokens.max_length == 2048
    assert recipe.lora.dropout == plain.lora.dropout == 0.0
    assert recipe.train.epochs == load_recipe(name, more).train.epochs
    assert load_recipe(name, {**more, **given, "train.learning_rate": 3e-5}).train.learning_rate == 3e-5


@pytest.mark.parametrize("method", ["orpo", "simpo", "cpo"])
def test_a_method_without_a_default_of_its_own_takes_the_value_of_the_preset(method):
    recipe = load_recipe("demo", {"preference": method})
    assert recipe.lora.dropout == load_recipe("demo").lora.dropout == 0.05
    assert recipe.train.learning_rate == 1e-5


def test_a_preset_without_a_model_asks_for_one():
    with pytest.raises(RecipeError, match="model"):
        load_recipe("fast")


def test_the_tutorial_preset_is_the_tutorial():
    recipe = load_recipe("tutorial")
    assert recipe.tokens == Tokens(max_length=384, truncation="cut", template="tutorial")
    assert recipe.lora == Lora(r=8, alpha=32, dropout=0.1, target_modules=list(PROJECTIONS))
    assert recipe.train == Train(batch_size=16, epochs=3, learning_rate=1e-4, log_every=10, checkpoint_every=100)


def test_a_file_goes_before_a_preset_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "demo").write_text("model: mine\ndata: d\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("demo").model == "mine"


# What a mistake is told


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.learnig_rate", "train.learning_rate"),
        ("trian", "train"),
        ("lorra", "lora"),
        ("r", "lora.r"),
        ("epochs", "train.epochs"),
        ("tokens.r", "lora.r"),
        ("modle", "model"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, meant):
    assert problems(LEAST, {key: 1}) == [f"{key}: unknown key; did you mean '{meant}'?"]


def test_an_unknown_key_like_no_other_is_not_guessed():
    assert problems({**LEAST, "xyzzy": 1}) == ["xyzzy: unknown key"]


def test_a_dotted_key_in_a_file_is_told_to_be_a_group():
    assert problems({**LEAST, "lora.r": 4}) == ["lora.r: unknown key; in a file, write 'r' in a group 'lora'"]


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("train.micro_tokens", "lots", "must be a whole number or 'auto'; found 'lots'"),
        ("train.micro_tokens", 0, "must be at least 1; found 0"),
        ("train.epochs", 1.5, "must be a whole number; found 1.5"),
        ("train.epochs", "three", "must be a whole number; found 'three'"),
        ("train.epochs", None, "must be a whole number; found nothing"),
        ("train.epochs", True, "must not be a boolean; found True"),
        ("train.learning_rate", "1e-4x", "must be a number or 'auto'; found '1e-4x'"),
        ("train.learning_rate", float("nan"), "must be a finite number or 'auto'; found nan"),
        ("train.learning_rate", 0, "must be greater than 0 or 'auto'; found 0"),
        ("train.batch_size", 0, "must be at least 1; found 0"),
        ("train.warmup_ratio", 2, "must be at most 1; found 2"),
        ("lora.dropout", 1, "must be less than 1; found 1"),
        ("train.schedule", "lin", "must be 'linear', 'cosine' or 'constant'; found 'lin'"),
        ("lora", 3, "must be a group of keys; found 3"),
        ("lora.target_modules", "", "must be a list with at least 1 entry; found ''"),
        ("tokens.template_args", [1], "must be a group of keys; found [1]"),
        ("system", False, "must be a string; found False (put it in quotes)"),
        ("revision", 2024, "must be a string; found 2024 (put it in quotes)"),
        ("model", "", "must be a string that is not empty; found ''"),
        ("data", {}, "must be a list; found {}"),
        ("data", [], "must be a list with at least 1 entry; found []"),
    ],
)
def test_a_wrong_value_says_what_it_must_be(key, value, line):
    assert problems(LEAST, {key: value}) == [f"{key}: {line}"]


def test_an_entry_of_a_list_is_named_by_its_place():
    assert problems({**LEAST, "data": ["a.json", 3]}) == ["data.1: must be a string; found 3 (put it in quotes)"]


def test_a_key_below_an_open_mapping_is_named():
    line = "columns.user: must be a string; found 3 (put it in quotes)"
    assert problems({**LEAST, "columns": {"user": 3}}) == [line]


def test_a_missing_key():
    assert problems({"model": "m"}) == ["data: missing, and has no default"]


def test_a_key_that_is_not_a_string():
    assert problems({**LEAST, 3: 4}) == ["3: a key must be a string; put it in quotes"]


def test_a_long_value_is_shortened():
    (line,) = problems({**LEAST, "hub": "z" * 300})
    assert len(line) < 120


def test_all_problems_come_together():
    lines = problems({"model": 3, "train": {"epochs": 0, "precison": "x"}}, {"lora.r": "many"})
    assert [line.split(":")[0] for line in lines] == ["model", "data", "lora.r", "train.epochs", "train.precison"]


@pytest.mark.parametrize(
    "other",
    [
        {"lora": "none"}, {"lora.dora": True}, {"lora.init": "pissa"}, {"lora.init": "eva"}, {"train.storage": "nf4"},
        {"lora.modules_to_save": ["lm_head"]}, {"lora.train_tokens": ["<a>"]},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_divided_base_cannot_do(other):
    build_recipe(LEAST, other)
    (line,) = problems(LEAST, {**other, "train.shard": True})
    assert line.startswith("train.shard: ")


@pytest.mark.parametrize("value", [1j, {"a": 1}, [None], -1, b"x", True, ""], ids=repr)
@pytest.mark.parametrize("key", [key for key, _ in fields()])
def test_no_message_speaks_the_language_of_the_validator(key, value):
    least = {**LEAST, "preference": {"method": "dpo"}} if key.startswith("preference.") else LEAST
    try:
        build_recipe(least, {key: value})
    except RecipeError as error:
        for line in error.message.split("\n  ")[1:]:
            assert line.startswith(key)
            assert not any(word in line for word in ("Input", "instance of", "items after", "Value error"))


@pytest.mark.parametrize(("given", "share"), [(0.2, 0.2), (None, 0.1), ({"share": 0.3}, 0.3)], ids=str)
def test_keys_are_laid_over_a_number_that_stands_for_a_group(given, share):
    keep = build_recipe({**LEAST, "keep": given}, {"keep.max_answer_tokens": 5}).keep
    assert (keep.share, keep.max_answer_tokens) == (share, 5)


def test_an_override_below_a_value():
    with pytest.raises(RecipeError, match=r"lora\.r cannot be set: 'lora' is a number, not a group of keys"):
        build_recipe({**LEAST, "lora": 3}, {"lora.r": 4})


def test_no_such_recipe_names_the_presets():
    with pytest.raises(RecipeError, match=r"no recipe file 'nowhere\.yaml'") as caught:
        load_recipe("nowhere.yaml")
    assert "demo, fast, tutorial" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [1", r"recipe\.yaml, line 1, column 10: expected ',' or '\]'"),
        ("\tmodel: m", "line 1, column 1: found character"),
        ("model: m\ndata: d\nmodel: n\n", "line 3, column 1: the key 'model' is given twice"),
        ("lora: {r: 1, r: 2}", "line 1, column 14: the key 'r' is given twice"),
        ("model: !!python/object:os.system {}", "line 1, column 8: could not determine a constructor"),
        ("revision: 2024-99-99", "is not valid YAML: month must be in 1..12"),
        ("model: \x07", "is not valid YAML: unacceptable character"),
        ("", "holds nothing, but a recipe is a mapping"),
        ("- a", "holds a list, but"),
        ("1.5", "holds a number, but"),
    ],
)
def test_a_file_that_is_no_recipe(recipe_file, text, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file(text))


def test_a_file_that_is_not_utf8(recipe_file):
    with pytest.raises(RecipeError, match=r"recipe\.yaml is not UTF-8 text"):
        load_recipe(recipe_file("model: 模型".encode("gbk")))


# Writing and reading are inverse

texts = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1)
recipes = st.builds(
    Recipe,
    model=texts,
    data=st.lists(texts, min_size=1),
    revision=st.none() | texts,
    columns=st.none() | st.dictionaries(texts, texts),
    system=st.none() | texts,
    output=st.none() | texts,
    tokens=st.builds(
        Tokens,
        max_length=st.integers(2, 10**9),
        truncation=st.sampled_from(["drop", "cut", "error"]),
        template_args=st.none() | st.dictionaries(texts, st.none() | st.booleans() | st.integers() | texts),
    ),
    lora=st.builds(Lora, alpha=st.floats(0, 1e300, exclude_min=True), target_modules=st.lists(texts, min_size=1)),
    train=st.builds(
        Train,
        learning_rate=st.just("auto") | st.floats(0, 1, exclude_min=True),
        seed=st.integers(0, 2**63 - 1),
        micro_tokens=st.just("auto") | st.integers(1, 10**9),
        max_steps=st.none() | st.integers(1),
    ),
)


@settings(deadline=None)
@given(recipes)
def test_a_recipe_written_and_read_is_the_same(recipe):
    assert build_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    assert dump_recipe(build_recipe(yaml.safe_load(dump_recipe(recipe)))) == dump_recipe(recipe)


def test_a_record_of_an_earlier_version_says_what_that_version_did():
    assert not build_recipe(LEAST).tokens.learn_empty_reasoning
    for tokens in ({}, {"tokens": None}, {"tokens": {"max_length": 20}}):
        recipe = build_recipe(recorded({**LEAST, **tokens}))
        assert recipe.tokens.learn_empty_reasoning
        assert recipe.tokens.max_length == (20 if tokens.get("tokens") else 1024)
    now = build_recipe(LEAST)
    assert build_recipe(recorded(now.model_dump(mode="json"))) == now
    assert problems(recorded({**LEAST, "tokens": 3}))


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("{today: 2025-01-01, at: [2025-01-01T10:00:00]}", {"today": "2025-01-01", "at": ["2025-01-01T10:00:00"]}),
        ("{x: {y: [1, 2.5, null, true, text]}}", {"x": {"y": [1, 2.5, None, True, "text"]}}),
    ],
)
def test_arguments_of_a_template_are_json(given: str, read: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: m\ndata: d\ntokens:\n  template_args: {given}\n", encoding="utf-8")
    recipe = load_recipe(str(path))
    assert recipe.tokens.template_args == read
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens.template_args", {"x": float("nan")}),
        ("tokens.template_args", {"x": [float("inf")]}),
        ("tokens.template_args", {"x": {1, 2}}),
        ("lora.rank_pattern", {"*.down_proj": 16}),
        ("lora.alpha_pattern", {"(": 16}),
    ],
)
def test_values_that_would_fail_later_are_refused(key: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=key.replace(".", r"\.")):
        build_recipe({"model": "m", "data": "d"}, {key: value})
