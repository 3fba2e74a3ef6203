"""System prompts of every kind come through a Modelfile, a Go template and a Jinja template, character by character.

There is no Ollama here. What it does with a Modelfile is written down again, from its parser's rules, in
:func:`read_modelfile`, and what Go does with the templates that weitune writes in ``go_template``.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.export.formats import go_template
from tests.export.runs import save_run
from tests.tiny import tiny_tokenizer
from weitune.data.conversation import Conversation, Turn
from weitune.data.frame.choose import framing_for
from weitune.errors import ModelError
from weitune.export.formats.modelfile import can_hold, go_action, quoted
from weitune.export.formats.ollama import modelfile, turn_frames
from weitune.export.options import ExportOptions
from weitune.export.run import export
from weitune.export.source.chat_template import self_contained_template
from weitune.recipe.schema import Tokens

ODD = (
    "\N{NO-BREAK SPACE}\N{IDEOGRAPHIC SPACE}\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}\N{SOFT HYPHEN}"
    "\N{ZERO WIDTH NO-BREAK SPACE}\N{LINE SEPARATOR}\N{NEXT LINE}\N{RIGHT-TO-LEFT MARK}\x01\x0b\x0c\x1c\x7f\ue000"
    "\U000e0067\N{THIN SPACE}\N{WORD JOINER}\u0378\U0002ebf0"
)
PIECES = (
    *ODD, '"', '""', '"""', "'", "\\", "\n", "\r\n", "\r", "\t", " ", "{{", "}}", "{{ .System }}", "{%", "%}", "{#",
    "`", "#", "\\n", "\\u0041", "甄嬛", "👩\N{ZERO WIDTH JOINER}💻", "é", "e\N{COMBINING ACUTE ACCENT}",
    "SYSTEM", "FROM x", "word",
)  # fmt: skip
SYSTEMS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join)
FAMILIES = ("chatml", "chatml-default", "llama3")


def prints(char: str) -> bool:
    """Go's strconv.IsPrint, by its documentation: letters, marks, numbers, punctuation, symbols, and the space."""
    return char == " " or unicodedata.category(char)[0] in "LMNPS"


def unquoted(text: str) -> str | None:
    for quote in ('"""', '"'):
        if text.startswith(quote):
            closed = len(text) >= 2 * len(quote) and text.endswith(quote)
            return text[len(quote) : -len(quote)] if closed else None
    return text


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Return (command, value) of every line as Ollama's parser reads them; PARAMETER's name belongs to the command."""
    commands, rest = [], iter(text)
    for first in rest:
        if first in " \t\r\n":
            continue
        name, read = first, ""
        for char in rest:
            if char in " \t":
                if name.lower() != "parameter":
                    break
                name += " "
            else:
                assert char.isascii() and (char.isalnum() or char == "_"), "Ollama refuses this file"  # noqa: PT018
                name += char
            if name.lower().startswith("parameter ") and name.endswith(" ") and len(name.split()) == 2:
                break
        for char in rest:
            if char in "\r\n" and unquoted(read.strip()) is not None:
                break
            if char in "\r\n\t " or prints(char):
                read += char
        ended = unquoted(read.strip())
        assert ended is not None, "the file ends within a value"
        commands.append((name.strip().lower(), ended))
    return commands


def as_ollama(text: str, question: str, own: str | None = None) -> str:
    """Return the prompt that Ollama makes of a question with the Modelfile ``text``."""
    commands = dict(read_modelfile(text))
    system = own if own is not None else commands.get("system") or None
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": question})
    said = [{"Role": each["role"], "Content": each["content"]} for each in messages]
    return go_template.render(commands["template"], {"Messages": said})


def framed(family: str, system: str | None) -> tuple[str, Any]:
    """Return the Modelfile of a run with ``system``, and what renders as it was trained."""
    tokenizer = tiny_tokenizer(family)
    template = self_contained_template(framing_for(tokenizer, Tokens()), None, "")

    def render(messages: list[dict[str, str]], ask: bool) -> str:
        return str(
            tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=ask)
        )

    frames = turn_frames(render, tokenizer.bos_token or "", system)
    return modelfile("run-Q8_0.gguf", frames, ["<|im_end|>"], 512), lambda messages: render(
        messages, True
    ).removeprefix(tokenizer.bos_token or "")


@given(family=st.sampled_from(FAMILIES), system=st.none() | SYSTEMS)
@example("chatml", 'ends with a quote"\nand goes on')
@example("chatml", 'three """\nquotes')
@example("chatml", ' """ \t\r\nquotes')
@example("chatml", "你是甄嬛。\N{IDEOGRAPHIC SPACE}请\N{NO-BREAK SPACE}说")
@example("llama3", "  trimmed by the template \n")
@example("chatml-default", "")
@settings(max_examples=150)
def test_ollama_asks_as_training_did(family: str, system: str | None) -> None:
    text, trained = framed(family, system)
    user = {"role": "user", "content": "你是谁？"}
    asked = [{"role": "system", "content": system}, user] if system is not None else [user]
    assert as_ollama(text, "你是谁？") == trained(asked)
    own = [{"role": "system", "content": "Mine."}, user]
    assert as_ollama(text, "你是谁？", own="Mine.") == trained(own)


@given(SYSTEMS)
def test_what_a_modelfile_is_said_to_hold_it_holds(text: str) -> None:
    read = (
        read_modelfile(f"FROM ./x\nSYSTEM {quoted(text)}\nPARAMETER stop {quoted('end')}\n") if can_hold(text) else None
    )
    assert read is None or read == [("from", "./x"), ("system", text), ("parameter stop", "end")]


def test_plain_prompts_stay_in_sight() -> None:
    for system in ("Be brief.", "你是甄嬛。", 'Say "yes".\nOr "no"', "two\n\nlines  ", "emoji 😀"):
        text, _ = framed("chatml", system)
        assert dict(read_modelfile(text))["system"] == system
    text, _ = framed("chatml", "a\N{NO-BREAK SPACE}b")
    assert "SYSTEM" not in text
    assert "a\\u00a0b" in text


@given(st.text() | SYSTEMS)
def test_a_go_literal_is_the_text_and_prints(text: str) -> None:
    action = go_action(text)
    assert all(prints(char) for char in action)
    assert not text or go_template.string(action.removeprefix("{{ ").removesuffix(" }}")) == text


def test_names_and_stops_that_a_modelfile_cannot_hold_are_refused() -> None:
    frames = turn_frames(lambda messages, ask: "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<a>" * ask)
    for model, stop in (("my\N{IDEOGRAPHIC SPACE}run.gguf", "x"), ("a\nb.gguf", "x"), ("run.gguf", "\N{SOFT HYPHEN}")):
        with pytest.raises(ModelError, match="a Modelfile cannot hold"):
            modelfile(model, frames, [stop], 8)


@given(family=st.sampled_from([*FAMILIES, "qwen3", "mistral"]), system=SYSTEMS)
@example("chatml", 'It\'s {{ "odd" }}\r\n{% raw %}\\')
def test_a_template_with_the_prompt_in_it_asks_as_training_did(family: str, system: str) -> None:
    """For merged exports, for vLLM's --chat-template, which is read from a file, and for GGUF's metadata."""
    tokenizer = tiny_tokenizer(family)
    framing = framing_for(tokenizer, Tokens())
    template = self_contained_template(framing, system, "")
    messages = [{"role": "user", "content": "?"}]
    asked = tokenizer.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, return_dict=False
    )
    expected = framing.prompt(Conversation((Turn("user", "?"),)).with_system(system))
    if not any(token in system for token in tokenizer.get_added_vocab()):
        assert list(asked) == list(expected)


@settings(max_examples=25)
@given(SYSTEMS)
def test_templates_come_back_from_files(tmp_path_factory: pytest.TempPathFactory, system: str) -> None:
    from gguf import GGUFReader, GGUFWriter

    template = self_contained_template(framing_for(tiny_tokenizer("chatml"), Tokens()), system, "")
    folder = tmp_path_factory.mktemp("files")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert (folder / "chat_template.jinja").open(
        encoding="utf-8"
    ).read() == template  # as vLLM and transformers read it
    writer = GGUFWriter(folder / "x.gguf", "llama")
    writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    field = GGUFReader(folder / "x.gguf").fields["tokenizer.chat_template"]
    assert bytes(field.parts[field.data[0]]).decode() == template


SOME = (
    "a\N{NO-BREAK SPACE}b\N{IDEOGRAPHIC SPACE}c",
    'quotes"\nat """\nends"',
    "👩\N{ZERO WIDTH JOINER}💻\\n \\",
    " \r\n{{ x }}\t",
)


@pytest.mark.parametrize("system", SOME)
def test_llama_cpp_asks_as_training_did(system: str, tmp_path: Path) -> None:
    """The file's own template, rendered by llama.cpp, gives training's prompt token by token; so says the verdict."""
    pytest.importorskip("xllamacpp")
    run = save_run(tmp_path / "run", "qwen2", system=system)
    exported = export(run, tmp_path / "out", ExportOptions("ollama", "F32", prompts=1))
    assert exported.verdict is not None
    assert next(check for check in exported.verdict.checks if check.name == "tokens").passed
    commands = dict(read_modelfile((tmp_path / "out" / "Modelfile").read_bytes().decode()))
    assert commands["from"] == "./run-F32.gguf"
    assert commands.get("system") in {None, system}


def test_llama_cpp_ends_a_text_at_nul_and_that_is_said(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "qwen2", system="a\0b")
    for form in ("gguf", "ollama"):
        with pytest.raises(ModelError, match="U\\+0000"):
            export(run, tmp_path / "out", ExportOptions(form, "F32", prompts=0))  # type: ignore[arg-type]
