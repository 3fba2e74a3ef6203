"""``weitune chat``: one answer, a pipe of questions, and a person at a terminal."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.limits import HANG_SECONDS
from tests.tiny import save_tiny_run
from weitune import Run
from weitune.cli import main

LENGTH = ["--max-new-tokens", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs") / "tiny", checkpoints=(5,), system="你是甄嬛。")


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return Run(folder)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that pipes lines into the chat and returns (exit code, standard output, standard error)."""

    def send(*lines: str, options: list[str] = LENGTH) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        code = main(["chat", str(folder), *options])
        return code, *capsys.readouterr()

    return send


def test_a_prompt_prints_the_answer_and_nothing_else(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(run.path), "--prompt", "你是谁？", *LENGTH]) == 0
    shown = capsys.readouterr()
    assert shown.out == run.chat("你是谁？", max_new_tokens=8) + "\n"
    noted, *others = shown.err.splitlines()
    assert noted.startswith(f"note: '{run.path}' has no fingerprint of its base model")
    assert others == ["(cut after 8 tokens)"]


@pytest.mark.parametrize("which", ["5", "checkpoint-5", "base", "last"])
def test_an_adapter_can_be_chosen(which: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(run.path), "--prompt", "x", "--checkpoint", which, *LENGTH]) == 0
    step = 5 if "5" in which else which
    assert capsys.readouterr().out == run.chat("x", checkpoint=step, max_new_tokens=8) + "\n"  # type: ignore[arg-type]


def test_system_prompt_and_sampling_can_be_set(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--system", "Be kind.", "--temperature", "0.9", "--top-p", "0.8", "--top-k", "40", "--seed", "3"]
    assert main(["chat", str(run.path), "--prompt", "x", *options, "--repetition-penalty", "1.2", *LENGTH]) == 0
    sampling = {"temperature": 0.9, "top_p": 0.8, "top_k": 40, "seed": 3, "repetition_penalty": 1.2}
    assert capsys.readouterr().out == run.chat("x", system="Be kind.", max_new_tokens=8, **sampling) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message", "fix"),
    [
        (["no-such-folder"], "there is no folder 'no-such-folder'", "weitune train"),
        (["{run}/checkpoint-5"], "is a checkpoint of the run", "--checkpoint 5"),
        (["{run}", "--checkpoint", "7"], "has no checkpoint 7", "It has 5."),
        (["{run}", "--checkpoint", "x"], "'x' is neither a step nor 'last', 'best' or 'base'", ""),
        (["{run}", "--top-p", "2"], "top_p must be above 0 and at most 1; found 2.0", "default"),
        (["{run}", "--prompt", "long " * 2000], "the model takes 1,024 at most", "Shorten it"),
    ],
)
def test_wrong_input_exits_with_2_and_a_cure(
    arguments: list[str], message: str, fix: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "environment.json").write_text("{}")
    assert main(["chat", *(part.format(run=folder) for part in arguments)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert fix in shown.err
    assert "Traceback" not in shown.err


def test_a_pipe_is_a_dialogue(pipe: Any, run: Run) -> None:
    code, out, err = pipe("你是谁？", "", "And I?")
    first = run.chat("你是谁？", max_new_tokens=8)
    history = [{"role": "user", "content": "你是谁？"}, {"role": "assistant", "content": first}]
    assert code == 0
    assert out == f"{first}\n{run.chat('And I?', history=history, max_new_tokens=8)}\n"
    assert err.count("cut after 8 tokens") == 2


def test_reset_forgets_the_dialogue(pipe: Any, run: Run) -> None:
    _, out, err = pipe("Who?", "/reset", "Who?")
    assert out == f"{run.chat('Who?', max_new_tokens=8)}\n" * 2
    assert "forgotten" in err


def test_base_answers_the_last_question_or_another(pipe: Any, run: Run) -> None:
    code, out, _ = pipe("Who?", "/base", "/base x", "x")
    tuned, base = (run.chat("Who?", checkpoint=which, max_new_tokens=8) for which in ("last", "base"))
    history = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": tuned}]
    base_x, tuned_x = (run.chat("x", checkpoint=which, history=history, max_new_tokens=8) for which in ("base", "last"))
    assert code == 0
    assert out == f"{tuned}\n{base}\n{base_x}\n{tuned_x}\n"


def test_base_without_a_question_asks_for_one(pipe: Any) -> None:
    code, out, err = pipe("/base")
    assert (code, out) == (0, "")
    assert "There is no question yet" in err


def test_system_shows_and_sets_the_system_prompt(pipe: Any, run: Run) -> None:
    _, out, err = pipe("/system", "/system Be kind.", "x", "/system ''", "x", "/system")
    assert out == "".join(f"{run.chat('x', system=system, max_new_tokens=8)}\n" for system in ("Be kind.", ""))
    assert "你是甄嬛。" in err
    assert "(no system prompt)" in err


def test_help_quit_and_unknown_commands(pipe: Any) -> None:
    code, out, err = pipe("/help", "/jump", "/quit", "never asked")
    assert (code, out) == (0, "")
    for command in ("/reset", "/system", "/base", "/quit", "There is no command /jump"):
        assert command in err


def test_forgotten_turns_are_announced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoConfig

    small = save_tiny_run(tmp_path / "small")
    config = AutoConfig.from_pretrained(tmp_path / "small-model")
    config.max_position_embeddings = 96
    config.save_pretrained(tmp_path / "small-model")
    monkeypatch.setattr(sys, "stdin", io.StringIO("How do I cook rice?\n" * 6))
    assert main(["chat", str(small), *LENGTH]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) >= 6
    assert shown.err.count("its oldest turns are forgotten") == 1


def test_broken_utf8_in_a_pipe_is_replaced(pipe: Any) -> None:
    assert pipe("caf\udce9")[0] == 0


class Terminal:
    """``weitune chat`` on a pseudo terminal, as a person has it."""

    def __init__(self, *arguments: str) -> None:
        import pty

        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # as in a terminal, also where the tests run in the background
            os.environ |= {"TERM": "xterm-256color", "COLUMNS": "200"}
            os.execv(sys.executable, [sys.executable, "-m", "weitune", "chat", *arguments])  # noqa: S606
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait_for(self, pattern: str, seconds: float = HANG_SECONDS) -> str:
        """Return what the screen got up to ``pattern``, and forget it."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen!r}"
            if select.select([self.terminal], [], [], 0.1)[0]:
                self._read()
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def _read(self) -> None:
        chunk = os.read(self.terminal, 65536).decode(errors="replace")
        if "\x1b[6n" in chunk:  # prompt_toolkit asks where the cursor is
            os.write(self.terminal, b"\x1b[1;1R")
        self.seen += chunk

    def exit_code(self, seconds: float = HANG_SECONDS) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    self._read()
                except OSError:  # the other side has closed
                    break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self.terminal)


@pytest.fixture
def long_winded(tmp_path: Path) -> Iterator[Terminal]:
    """A chat with a model that would speak for minutes."""
    from transformers import AutoConfig

    folder = save_tiny_run(tmp_path / "run")
    config = AutoConfig.from_pretrained(tmp_path / "run-model")
    config.max_position_embeddings = 1_000_000
    config.save_pretrained(tmp_path / "run-model")
    terminal = Terminal(str(folder), "--max-new-tokens", "100000")  # greedy, it repeats itself without end
    yield terminal
    terminal.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_a_person_stops_an_answer_and_leaves(long_winded: Terminal) -> None:
    chat = long_winded
    opening = chat.wait_for("› ")
    assert "/help lists the commands" in opening
    chat.type("你是谁？\r")
    chat.wait_for("你是谁？")
    chat.wait_for(r"loading [^\x1b]*\x1b.*?\x1b\[2K")  # the model is there, and the line about it gone
    chat.wait_for(r"reading the question[^\x1b]*\x1b.*?\x1b\[2K")
    chat.wait_for(r"[^\W\d_]{3}")  # into the answer: no control sequence has three letters in a row
    chat.type("\x03")
    chat.wait_for(r"\(stopped\)")
    chat.wait_for("› ")
    chat.type("/help\r")
    chat.wait_for("Alt-Enter begins a new line")
    chat.wait_for("› ")
    chat.type("first\x1b\rsecond")  # Alt-Enter does not send
    chat.wait_for("… ")
    chat.type("\x15\x7f\x15")  # take it back
    chat.type("\x04")
    assert chat.exit_code() == 0
    assert "Traceback" not in chat.seen


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_ctrl_c_at_the_prompt_leaves_with_130(long_winded: Terminal) -> None:
    long_winded.wait_for("› ")
    long_winded.type("half a question\x03")
    assert long_winded.exit_code() == 130
    assert "Traceback" not in long_winded.seen


def test_a_model_cannot_steer_the_terminal() -> None:
    from weitune.cli.talk.session import _harmless

    assert _harmless("a\x1b[2Jb\x07\x9b31m甄嬛\n\t😀\u200d") == "a[2Jb31m甄嬛\n\t😀\u200d"


@pytest.fixture
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.usefixtures("_own_cache")
def test_llama_cpp_answers_as_transformers_do(pipe: Any, run: Run) -> None:
    engine = ["--engine", "llama.cpp", "--type", "F32", *LENGTH]
    lines = ("你是谁？", "/base", "And I?")
    code, out, err = pipe(*lines, options=engine)
    assert code == 0
    assert (out, err) == pipe(*lines)[1:]
    code, out, _ = pipe(*lines, options=["--checkpoint", "5", *engine])
    assert out == pipe(*lines, options=["--checkpoint", "5", *LENGTH])[1]
    code, out, _ = pipe("你是谁？", options=["--checkpoint", "base", *engine])
    assert out == run.chat("你是谁？", checkpoint="base", max_new_tokens=8) + "\n"


SCHEMA = {"enum": ["涨潮", "low"]}


@pytest.fixture
def schema(tmp_path: Path) -> list[str]:
    pytest.importorskip("llguidance")
    (tmp_path / "tide.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    return ["--schema", str(tmp_path / "tide.json")]


def test_answers_are_kept_to_a_schema(pipe: Any, schema: list[str], run: Run) -> None:
    code, out, err = pipe("Which?", "/base", options=schema)
    assert code == 0
    assert "(cut" not in err
    form = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    assert out.splitlines() == [
        run.chat("Which?", checkpoint=which, response_format=form) for which in ("last", "base")
    ]
    assert {json.loads(line) for line in out.splitlines()} <= set(SCHEMA["enum"])
    _, out, _ = pipe("Which?", options=["--json-object", "--max-new-tokens", "40"])
    assert out.startswith("{")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "there is no JSON schema that can be read in '{file}': No such file"),
        ("{", "there is no JSON schema that can be read in '{file}'"),
        ("[1]", "the JSON schema in '{file}' is not an object"),
        ('{"uniqueItems": true, "type": "array"}', "the JSON schema cannot be kept to"),
    ],
)
def test_a_schema_that_cannot_be_kept_to_is_refused_before_the_model_loads(
    contents: str | None, message: str, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llguidance")
    file = tmp_path / "schema.json"
    if contents is not None:
        file.write_text(contents, encoding="utf-8")
    assert main(["chat", str(folder), "--prompt", "x", "--schema", str(file)]) == 2
    assert message.format(file=file) in capsys.readouterr().err
    assert main(["chat", str(folder), "--prompt", "x", "--schema", str(file), "--json-object"]) == 2
    assert "give --schema or --json-object, not both" in capsys.readouterr().err


def test_without_the_extra_its_name_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["chat", str(folder), "--prompt", "x", "--json-object"]) == 2
    assert "weitune[json]" in capsys.readouterr().err


@pytest.mark.usefixtures("_own_cache")
def test_llama_cpp_and_servers_keep_to_schemas_too(
    pipe: Any, schema: list[str], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.serve.live import live, llama_models, silent

    expected = pipe("Which?", "/base", options=schema)
    assert pipe("Which?", "/base", options=["--engine", "llama.cpp", "--type", "F32", *schema]) == expected
    with llama_models({"tiny": run}, "F32", silent) as models, live(models) as server:
        assert main(["chat", "tiny", "--url", server.url, "--prompt", "Which?", *schema]) == 0
        assert capsys.readouterr().out == expected[1].splitlines()[0] + "\n"
        (Path(schema[1])).write_text('{"not": {}}', encoding="utf-8")
        assert main(["chat", "tiny", "--url", server.url, "--prompt", "Which?", *schema]) == 2
        assert "the JSON schema cannot be kept to" in capsys.readouterr().err


@pytest.mark.usefixtures("_own_cache")
def test_a_server_answers_as_the_run_does(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.serve.live import live, llama_models, silent

    with llama_models({"tiny": run}, "F32", silent) as models, live(models) as server:
        for name in ("tiny", str(run.path)):
            assert main(["chat", name, "--url", server.url, "--prompt", "你是谁？", *LENGTH]) == 0
            shown = capsys.readouterr()
            assert shown.out == run.chat("你是谁？", max_new_tokens=8) + "\n"
            assert shown.err == "(cut)\n"
        assert main(["chat", "tiny", "--url", server.url, "--prompt", "x", "--checkpoint", "base", *LENGTH]) == 0
        assert capsys.readouterr().out == run.chat("x", checkpoint="base", system="", max_new_tokens=8) + "\n"
        assert main(["chat", "other", "--url", server.url, "--prompt", "x"]) == 2
        assert "has no model 'other'\nGive one of its models: base, tiny." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "llama.cpp"], "--engine cannot be used with --url"),
        (["--checkpoint", "5"], "the server has chosen the checkpoint"),
        (["--system", ""], "not remove it"),
        ([], "cannot be reached"),
    ],
)
def test_what_a_server_cannot_be_told_is_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "tiny", "--url", "http://127.0.0.1:1", "--prompt", "x", *options]) == 2
    assert message in capsys.readouterr().err
