"""Every command that a page shows is one that weitune, a benchmark, make or pip would take. Nothing is run."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import pytest

from tests.documents.pages import PAGES, ROOT, code_of, inline_of, name_of, text_of
from weitune.cli import COMMANDS, command_line, split_language

STARTS = r"(?:torchrun .*-m |accelerate launch .*--module |python -m |srun bash -c 'exec )?weitune "
PLACEHOLDER = re.compile(r"…|[A-Z]+…?|[一-鿿]+…?|\S*…")


def lines_of(page: Path) -> Iterator[str]:
    """Yield the lines of all blocks of code, those that end in a backslash joined with the next."""
    for block in code_of(page):
        yield from re.sub(r"\\\n\s*", "", block).splitlines()


def commands_of(page: Path) -> list[str]:
    """Return the weitune commands in the blocks of code, from the word weitune on."""
    found = (re.match(rf"\s*{STARTS}(.+)", line) for line in lines_of(page))
    return [match[1].partition("\"' ")[0] + '"' * ("\"' " in match[1]) for match in found if match]


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that ``words`` name, in a group or not, and the words that follow its name."""
    context = click.Context(command_line)
    command: click.Command = command_line
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, inner, words = command.resolve_command(context, words)
        assert inner is not None, name
        command, context = inner, click.Context(inner, parent=context)
    return command, words


def options_of(command: click.Command) -> set[str]:
    """Return every spelling of every option of ``command``."""
    context = click.Context(command)
    return {flag for parameter in command.get_params(context) for flag in [*parameter.opts, *parameter.secondary_opts]}


ALL = sorted({(name_of(page), command) for page in PAGES for command in commands_of(page)})


def test_there_are_commands() -> None:
    assert len(ALL) >= 90
    named = {text.split()[1] for page in PAGES for text in inline_of(page) if re.match("weitune [a-z]", text)}
    assert {command.split()[0] for _, command in ALL} | named >= set(COMMANDS)


@pytest.mark.parametrize(("page", "line"), ALL, ids=lambda part: part)
def test_weitune_takes_it(page: str, line: str) -> None:
    words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"…|\$\w+|[&;]", word)]
    _, words = split_language([re.sub(r"^\$\w+$|^\$0(?=:)", "1", word) for word in words])
    command, rest = resolve(words)
    assert not isinstance(command, click.Group) or command.invoke_without_command, page
    if "$" in line:  # the number that a cluster's variable stands for is not known here
        assert set(re.findall(r"(?<!\S)--?[\w.-]+", " ".join(rest))) <= options_of(command)
    else:
        with suppress(click.exceptions.Exit):  # of --help
            command.make_context(command.name, rest)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_within_sentences_exist_with_their_options(page: Path) -> None:
    for text in inline_of(page):
        if not text.startswith("weitune ") or text == "weitune --help":
            continue
        words = re.sub(r"[\[\]]", " ", text).split()[1:]
        for name in words[0].split("|"):
            command, _ = resolve([name, *(word for word in words[1:] if not PLACEHOLDER.fullmatch(word))])
            named = {word.partition("=")[0] for word in words if word.startswith("-")} - {"--KEY", "--键"}
            assert named <= options_of(command), text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_benchmarks_exist_with_their_options(page: Path) -> None:
    for module, rest in re.findall(r"(?:python -m |`)bench\.(\w+)((?: [^\n`]*)?)", text_of(page)):
        source = (ROOT / "bench" / f"{module}.py").read_text(encoding="utf-8")
        for option in re.findall(r"(?<!\S)--[\w-]+", rest):
            assert f'"{option}"' in source, f"{module} {option}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_targets_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = [line.strip() for line in lines_of(page)]
    named = {match[1] for text in [*lines, *inline_of(page)] if (match := re.match(r"make ([a-z-]+)", text))}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_extras_exist(page: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"^([\w-]+) = ", project.partition("[project.optional-dependencies]")[2], re.MULTILINE)
    named = re.findall(r"pip install [^\n`]*?(?:weitune|\.)\[([\w,-]+)\]", text_of(page))
    assert {extra for group in named for extra in group.split(",")} <= set(extras)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_can_be_parsed(page: Path) -> None:
    for block in code_of(page):
        if re.match(r"(?:import|from) \w", block):
            ast.parse(block)
