"""Options of the recipe's keys: what a list is on the command line."""

from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from weitune.cli.shared.recipe_options import overrides_from, recipe_options
from weitune.recipe.load import load_recipe


def overrides(*arguments: str) -> dict[str, Any]:
    given: dict[str, Any] = {}

    @click.command()
    @recipe_options
    def command(**options: Any) -> None:
        given.update(overrides_from(options))

    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return given


@pytest.mark.parametrize(
    ("texts", "prompts"),
    [
        (["[]"], []),
        ([""], []),
        (["none"], None),
        (["Who are you?", "[]"], ["Who are you?", "[]"]),
        (["One, two"], ["One, two"]),
    ],
)
def test_a_list_that_is_given_item_by_item(texts: list[str], prompts: list[str] | None) -> None:
    given = overrides(*(argument for text in texts for argument in ("--train.sample_prompts", text)))
    recipe = load_recipe("demo", given)
    assert recipe.train.sample_prompts == prompts


@pytest.mark.parametrize(("text", "trackers"), [("[]", []), ("", []), ("wandb,swanlab", ["wandb", "swanlab"])])
def test_a_list_of_names(text: str, trackers: list[str]) -> None:
    assert load_recipe("demo", overrides("--log.trackers", text)).log.trackers == trackers
