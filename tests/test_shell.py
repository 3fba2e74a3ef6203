"""Commands that are printed for copying do what they say, whatever a folder is called."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.export.runs import save_run
from weitune.errors import InputError, RunError
from weitune.report.next_steps import later_commands, next_commands
from weitune.report.run_record import RunRecord
from weitune.run.create import check_free
from weitune.run.disk_retry import refusals_explained
from weitune.run.events import Event
from weitune.serve.named_runs import named_runs
from weitune.shell import shell_command

NAMES = ["my run", "甄嬛", "it's", 'a"b', "$(touch x)", "a;b&c", "`x`", "#1", "~", "tab\there", "a\nb", "*"]


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1))
def test_a_shell_reads_each_word_as_it_was(word: str) -> None:
    assert shlex.split(shell_command("chat", word)) == ["weitune", "chat", word]
    command = shell_command("chat", Path(word)).removeprefix("weitune")
    if "\r" not in word:
        echoed = subprocess.run(["bash", "-c", f"printf '%s\\0'{command}"], capture_output=True, check=True).stdout
        shown = str(Path(word)) if not str(Path(word)).startswith("-") else f"./{Path(word)}"
        assert echoed.decode() == f"chat\0{shown}\0"


def test_a_folder_that_looks_like_an_option() -> None:
    assert shell_command("chat", Path("-x")) == "weitune chat ./-x"
    assert shell_command("train", "--resume", Path("runs/a")) == "weitune train --resume runs/a"


@pytest.mark.parametrize("name", NAMES)
def test_hints_and_reports_can_be_copied(name: str, tmp_path: Path) -> None:
    run = save_run(tmp_path / name)
    with pytest.raises(RunError) as taken:
        check_free(run.path)
    with pytest.raises(RunError) as refused, refusals_explained(run.path):
        raise OSError
    for error in (taken.value, refused.value):
        command = re.search(r"`(weitune train --resume .*)`", error.fix, re.DOTALL)
        assert command
        assert shlex.split(command[1]) == ["weitune", "train", "--resume", str(run.path)]
    (run.path / "adapter").rename(tmp_path / "away")
    with pytest.raises(RunError) as empty:
        run.adapter_folder()
    assert shlex.split(empty.value.fix.partition("  ")[2]) == ["weitune", "train", "--resume", str(run.path)]
    record = RunRecord(run.path, run.recipe, {}, None, (Event(kind="end"),), None)
    [chat], [export, serve] = next_commands(record), later_commands(record)
    assert shlex.split(chat) == ["weitune", "chat", str(run.path)]
    assert shlex.split(export)[-1] == str(run.path / "merged")
    assert shlex.split(serve) == ["weitune", "serve", str(run.path)]


def test_a_name_for_a_second_run_can_be_copied(tmp_path: Path) -> None:
    first, second = save_run(tmp_path / "a" / "my run"), save_run(tmp_path / "b" / "my run")
    with pytest.raises(InputError) as error:
        named_runs([str(first.path), str(second.path)])
    assert shlex.split(error.value.fix.partition("  ")[2]) == [f"another-name={second.path}"]
