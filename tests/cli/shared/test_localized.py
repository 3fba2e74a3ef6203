"""Every command, option and key has its help in Chinese, and click's own texts are told in it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator

import click
import pytest

from weitune.cli import COMMANDS, command_line, main
from weitune.cli.shared.help_page import columns, wrapped
from weitune.cli.shared.localized import localized, option_help
from weitune.messages import catalogue
from weitune.messages.language import choose_language, speaking
from weitune.recipe.load import fields

CHINESE = re.compile(r"[\u4e00-\u9fff]")


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its name, dots between its parts."""
    waiting: list[tuple[str, click.Command]] = [("weitune", command_line)]
    waiting += [(name, importlib.import_module(entry.module).command) for name, entry in COMMANDS.items()]
    while waiting:
        name, command = waiting.pop(0)
        yield name, command
        if isinstance(command, click.Group) and name != "weitune":
            waiting += [(f"{name}.{each}", child) for each, child in command.commands.items()]


def test_every_command_and_option_has_its_help_in_chinese() -> None:
    with speaking("zh"):
        for name, command in commands():
            told = localized(command, name)
            assert CHINESE.search(told.help or ""), name
            assert name == "weitune" or "." not in name or CHINESE.search(told.short_help or ""), name
            for option in (each for each in command.params if isinstance(each, click.Option) and each.help):
                if option.name != "version":
                    assert CHINESE.search(option_help(option, name)), (name, option.opts)


def test_every_help_in_chinese_is_of_a_command_or_an_option() -> None:
    options = {(name, each) for name, command in commands() for option in command.params for each in option.opts}
    names = {name for name, _ in commands()}
    for entry in catalogue("help", "zh"):
        command, _, option = entry.partition(" ")
        if option:
            assert (command, option) in options or (command == "*" and any(option == each for _, each in options)), (
                entry
            )
        else:
            assert command.removesuffix(".summary") in names, entry


def test_every_key_of_the_recipe_has_its_help_in_chinese() -> None:
    assert list(catalogue("keys", "zh")) == [dotted for dotted, _ in fields()]


def test_code_in_the_help_of_a_key_is_the_same_in_both_languages() -> None:
    """Values such as `nf4`, and the numbers of papers, are not translated."""
    told = catalogue("keys", "zh")
    for dotted, info in fields():
        for pattern in (r"arXiv \d+\.\d+", r"`([a-z0-9_.-]+)`"):
            english = set(re.findall(pattern, " ".join((info.description or "").split())))
            chinese = set(re.findall(pattern, str(told[dotted])))
            assert english == chinese, (dotted, english ^ chinese)


def test_an_option_that_shares_its_name_with_a_key_has_its_own_help() -> None:
    with speaking("zh"):
        by_name = dict(commands())
        assert "导出" not in option_of(by_name["train"], "--output", "train")
        assert option_of(by_name["train"], "--output", "train").startswith("运行目录")
        assert option_of(by_name["export"], "--output", "export").startswith("写到哪个目录")
        assert option_of(by_name["train"], "--train.epochs", "train").endswith("  [default: 3]")


def option_of(command: click.Command, flag: str, name: str) -> str:
    (option,) = (each for each in command.params if isinstance(each, click.Option) and flag in each.opts)
    return option_help(option, name)


def test_the_help_page_is_chinese_and_fits_its_width(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["train", "--help"], ["data", "answer", "--help"], ["cache", "clear", "--help"]):
        main(["--language", "zh", *arguments])
        page = capsys.readouterr().out
        assert page.startswith("用法：weitune")
        assert "选项：" in page
        assert "[default" not in page
        assert "Show" not in page
        assert max(map(columns, page.splitlines())) <= 102  # a name that is wider than its column has no help beside it
    choose_language(None)


def test_the_commands_themselves_stay_in_english(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--language", "zh", "chat", "--help"])
    main(["chat", "--help"])
    assert "Answer TEXT on standard output" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["chat"], "错误：缺少参数 'RUN'。"),
        (["chat", "x", "--promt", "y"], "错误：没有选项 '--promt'。是不是想写 '--prompt'？"),
        (["chat", "x", "--prompt"], "错误：选项 '--prompt' 需要一个值。"),
        (["chat", "x", "--top-k", "many"], "错误：'--top-k' 的值无效：'many' 不是有效的数字（integer）。"),
        (
            ["chat", "x", "--engine", "q"],
            "错误：'--engine' 的值无效：'q' 不在可选值之中：'transformers', 'llama.cpp'。",
        ),
        (
            ["chat", "x", "--checkpoint", "q"],
            "错误：'--checkpoint' 的值无效：'q' 既不是步数，也不是 'last', 'best' 或 'base'",
        ),
        (["serve", "x", "--port", "70000"], "错误：'--port' 的值无效：70000 超出范围 0<=x<=65535。"),
        (["export", "x"], "错误：缺少选项 '--format'。可选："),
        (["train", "a", "b"], "错误：多出了参数（b）"),
        (["data", "chek"], "错误：没有命令 'chek'。"),
        (["trian"], "错误：没有命令 'trian'。是不是想写 'train'？"),
        (["compare", "x"], "错误：至少给出两次运行。"),
    ],
)
def test_a_wrong_use_is_told_in_chinese(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--language", "zh", *arguments]) == 2
    choose_language(None)
    said = capsys.readouterr().err
    assert expected in said
    assert not re.search(r"[A-Za-z]{3,} [a-z]{2,} [a-z]{2,}", said), said


def test_a_line_breaks_between_characters_and_never_before_a_closing_mark() -> None:
    assert wrapped("一二三四五，六七", 10) == ["一二三四五，", "六七"]
    assert wrapped("用 transformers 运行", 10) == ["用", "transformers", "运行"]
    assert wrapped("一二三四（五", 10) == ["一二三四", "（五"]
    assert wrapped("", 10) == []
