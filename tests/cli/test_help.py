"""The frame of the command line: help at once, and an exit code for every ending."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import click
import pytest

import weitune
from weitune import cli
from weitune.errors import InputError, Interrupted, NonFiniteError

HEAVY = ("torch", "transformers", "pydantic", "numpy", "rich", "yaml", "prompt_toolkit", "datasets")


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time\n"
        "from weitune.cli import main\n"
        "status = main(['--help'])\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert status == 0 and not loaded, loaded\n"
        "assert time.process_time() < 0.5, time.process_time()\n"  # of the whole process, its start included
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    for name, entry in cli.COMMANDS.items():
        assert f"{name} " in shown.stdout
        assert entry.summary in shown.stdout


def commands_below(name: str, command: click.Command) -> dict[str, click.Command]:
    """Return ``command`` and, for a group, every command under it, by full name."""
    if not isinstance(command, click.Group):
        return {name: command}
    context = click.Context(command)
    below = {each: command.get_command(context, each) for each in command.list_commands(context)}
    found = {name: command}
    for each, sub in below.items():
        assert sub is not None
        found |= commands_below(f"{name} {each}", sub)
    return found


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_and_option_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = cli.command_line.get_command(click.Context(cli.command_line), name)
    assert command is not None
    for full_name, each in commands_below(name, command).items():
        assert each.help, full_name
        undocumented = [p.name for p in each.params if isinstance(p, click.Option) and not p.help]
        assert undocumented == [], full_name
        assert cli.main([*full_name.split(), "--help"]) == 0
        assert f"Usage: weitune {full_name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"weitune {weitune.__version__}\n"


def test_module_is_the_same_command() -> None:
    shown = subprocess.run([sys.executable, "-m", "weitune", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"weitune {weitune.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "hint"), [("chta", "Did you mean 'chat'?"), ("dance", "There is no command 'dance'.")]
)
def test_an_unknown_command_names_the_nearest(typed: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([typed]) == 2
    assert hint in capsys.readouterr().err


@pytest.fixture
def run_as_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], int]:
    """Return a function that runs its argument as the command ``act`` and returns the exit code."""

    def run(action: Callable[[], Any]) -> int:
        module = ModuleType("acting")
        module.command = click.Command("act", callback=action)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "acting", module)
        monkeypatch.setitem(cli.COMMANDS, "act", cli.Entry("acting", "Act."))
        return cli.main(["act"])

    return run


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("run.run_folder.no_folder", path="x"), 2),
        (NonFiniteError("run.run_folder.no_folder", path="z"), 3),
        (Interrupted("run.run_folder.no_folder", path="y"), 130),
    ],
)
def test_errors_of_ours_become_text_without_traceback(
    error: Exception, code: int, run_as_command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_as_command(raising(error)) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"error: {error}\n"


def test_a_long_path_in_an_error_is_not_broken_into_lines(
    run_as_command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/data/" + "[deep]/" * 40 + "file.json"
    run_as_command(raising(InputError("run.run_folder.no_folder", path=path)))
    assert path in capsys.readouterr().err


def test_interruption_is_130(run_as_command: Any) -> None:
    assert run_as_command(raising(KeyboardInterrupt())) == 130


def test_a_bug_shows_its_traceback_and_where_to_report_it(
    run_as_command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_as_command(raising(ZeroDivisionError("division by zero"))) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "ZeroDivisionError" in shown
    assert "Please report it" in shown


def test_a_command_may_return_its_exit_code(run_as_command: Any) -> None:
    assert run_as_command(lambda: 5) == 5
    assert run_as_command(lambda: None) == 0


def test_progress_draws_nothing_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from weitune.cli.shared.terminal import progress

    with progress("training", total=3) as bar:
        bar.advance(note="loss 1.0")
        bar.update(3)
    assert capsys.readouterr() == ("", "")


def test_rates_are_readable() -> None:
    from weitune.cli.shared.terminal import rate

    shown = [rate(speed, "step") for speed in (None, 12.345, 0.25, 45_678.9)]
    assert shown == ["", "12.3 step/s", "4 s/step", "45679 step/s"]


def test_the_public_names_are_there_and_lazy() -> None:
    assert set(weitune.__all__) == {"Recipe", "Run", "__version__", "is_training", "load_recipe", "train"}
    for name in weitune.__all__:
        assert getattr(weitune, name) is not None
        assert name in dir(weitune)
    with pytest.raises(AttributeError, match="no attribute 'tain'"):
        weitune.tain  # noqa: B018
    code = "import sys, weitune; assert not [m for m in ('torch', 'pydantic', 'click') if m in sys.modules]"
    subprocess.run([sys.executable, "-c", code], check=True)
