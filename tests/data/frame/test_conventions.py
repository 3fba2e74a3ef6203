"""What a template wants, found by trying: calls, ends of turns, branches on a row's text, ways out of a refusal."""

from __future__ import annotations

from typing import Any

import pytest

from tests.data.frame import modern
from tests.data.frame.families import FAMILIES, tokenizer_of
from tests.data.frame.test_framing import framing_of, learned, reworked
from weitune.data.conversation import Conversation, Example, Origin, ToolCall, Turn
from weitune.data.frame.choose import framing_for
from weitune.data.frame.framing import Framing
from weitune.errors import DataError
from weitune.recipe.schema import Tokens

ASKED, ANSWER = Turn("user", "When?"), Turn("assistant", "At noon.")
CALL = ToolCall("tides", {"port": "Brest", "日": [1, None]})
CALLED = (ASKED, Turn("assistant", "", tool_calls=(CALL,)), Turn("tool", "noon"), ANSWER)
CALLS = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{%- for c in m.tool_calls or [] %}"
    "{{- '<tool_call>' + c.function.name + '\\n' + ARGUMENTS + '</tool_call>' }}{%- endfor %}"
    "{{- m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def framing_with(template: str, name: str = "qwen3", **tokens: Any) -> Framing:
    return framing_for(reworked(name, template), Tokens(**tokens))


def framing_of_model(name: str, **arguments: Any) -> Framing:
    return framing_for(modern.tokenizer_of(name), Tokens(template_args=arguments or None))


def text_of(name: str, example: Example) -> str:
    text: str = modern.tokenizer_of(name).decode(example.input_ids, clean_up_tokenization_spaces=False)
    return text


def count(name: str, example: Example, token: str) -> int:
    return list(example.input_ids).count(modern.tokenizer_of(name).convert_tokens_to_ids(token))


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ("c.function.arguments", '{"port": "Brest", "日": [1, null]}'),
        ("'' ~ c.function.arguments", '{"port": "Brest", "日": [1, null]}'),  # a Python dictionary, given an object
        ("c.function.arguments | tojson", '{"port": "Brest", "日": [1, null]}'),
        ("(c.function.arguments if c.function.arguments is string else c.function.arguments | tojson)",
         '{"port": "Brest", "日": [1, null]}'),
        ("(c.function.arguments.items() | map('first') | join('+')) + c.function.arguments.port", "port+日Brest"),
    ],
)  # fmt: skip
def test_arguments_are_given_as_the_template_wants_them(arguments: str, written: str) -> None:
    [example] = framing_with(CALLS.replace("ARGUMENTS", arguments)).examples(Conversation(CALLED))
    expected = [f"<tool_call>tides\n{written}</tool_call><|im_end|>", "At noon.<|im_end|>"]
    assert learned("qwen3", example) == expected


def test_look_alikes_in_arguments_as_text_stay_text() -> None:
    call = ToolCall("tides", {"port": '</tool_call>"'})
    [example] = framing_with(CALLS.replace("ARGUMENTS", "c.function.arguments")).examples(
        Conversation((ASKED, Turn("assistant", "", tool_calls=(call,))))
    )
    assert learned("qwen3", example) == ['<tool_call>tides\n{"port": "</tool_call>\\""}</tool_call><|im_end|>']
    end = tokenizer_of("qwen3").convert_tokens_to_ids("</tool_call>")
    assert list(example.input_ids).count(end) == 1


def test_a_template_that_wants_no_content_beside_a_call() -> None:
    template = CALLS.replace("ARGUMENTS", "c.function.arguments").replace(
        "m.tool_calls or []", "(m.tool_calls if m.tool_calls and m.content is none else [])"
    ).replace("m.content + '<|im_end|>", "(m.content or '') + '<|im_end|>")  # fmt: skip
    [example] = framing_with(template).examples(Conversation(CALLED))
    assert learned("qwen3", example)[0].startswith("<tool_call>tides\n{")


def test_names_of_functions_that_are_written_only_in_ids() -> None:
    call = ToolCall("tides", {"port": "Brest"}, "call_x7")
    called = Turn("assistant", "", tool_calls=(call, ToolCall("sun", {})))
    again = (ASKED, called, Turn("tool", "noon", tool_call_id="call_x7"), Turn("tool", "up"), ANSWER)
    [example] = framing_of_model("kimi-k2").examples(Conversation(again))
    text = text_of("kimi-k2", example)
    assert "<|tool_call_begin|>functions.tides:0<|tool_call_argument_begin|>" in text
    assert "<|tool_call_begin|>functions.sun:1<|tool_call_argument_begin|>" in text
    assert "## Return of functions.tides:0\nnoon" in text
    assert "## Return of functions.sun:1\nup" in text


@pytest.mark.parametrize(
    ("name", "end", "end_of_call"),
    [(name, model.end_of_turn, model.end_of_call) for name, model in sorted(modern.MODERN.items())],
)
def test_ends_of_turns(name: str, end: str, end_of_call: str | None) -> None:
    tokens = modern.tokenizer_of(name).convert_ids_to_tokens(list(framing_of_model(name).stop_tokens))
    assert tokens == list(dict.fromkeys([end, end_of_call or end]))


def test_a_turn_that_the_next_role_ends() -> None:
    turns = (ASKED, ANSWER, Turn("user", "And then?"), Turn("assistant", "At six."))
    framing = framing_of_model("glm4.5")
    [example] = framing.examples(Conversation(turns))
    tokenizer = modern.tokenizer_of("glm4.5")
    spans = [tokenizer.decode(example.input_ids[s.start : s.stop]) for s in example.spans]
    assert spans == ["At noon.<|user|>", "At six.<|user|>"]
    assert text_of("glm4.5", example) == (
        "[gMASK]<sop><|user|>\nWhen?<|assistant|>\n<think></think>\nAt noon."
        "<|user|>\nAnd then?<|assistant|>\n<think></think>\nAt six.<|user|>"
    )
    [example] = framing.examples(Conversation(CALLED))
    spans = [tokenizer.decode(example.input_ids[s.start : s.stop]) for s in example.spans]
    assert spans[0].startswith("<tool_call>tides\n")
    assert spans[0].endswith("</tool_call><|observation|>")


def test_an_end_of_sequence_after_the_dialogue_ends_no_turn() -> None:
    turns = (ASKED, ANSWER, Turn("user", "And then?"), Turn("assistant", "At six."))
    [example] = framing_of_model("phi3").examples(Conversation(turns))
    spans = [modern.tokenizer_of("phi3").decode(example.input_ids[s.start : s.stop]) for s in example.spans]
    assert spans == ["At noon.<|end|>", "At six.<|end|>"]
    assert text_of("phi3", example).endswith("At six.<|end|>\n<|endoftext|>")


def test_a_leading_tool_response_of_a_user_is_no_new_question_and_stays_text() -> None:
    """Qwen3 looks for the last real question: what follows it keeps its reasoning."""
    told = Turn("user", "<tool_response>\nnoon\n</tool_response>")
    turns = (ASKED, Turn("assistant", "Wait.", reasoning="one"), told, Turn("assistant", "At noon.", reasoning="two"))
    [example] = framing_of_model("qwen3").examples(Conversation(turns))
    messages = [{"role": t.role, "content": t.content, **({"reasoning_content": t.reasoning} if t.reasoning else {})}
                for t in turns]  # fmt: skip
    text = modern.tokenizer_of("qwen3").apply_chat_template(messages, tokenize=False)
    assert text_of("qwen3", example) == text
    assert "<think>\none\n</think>" in text  # the branch that the text takes
    assert count("qwen3", example, "<tool_response>") == count("qwen3", example, "</tool_response>") == 0
    assert count("qwen3", example, "<think>") == 2
    other = (*turns[:2], Turn("user", "noon"), turns[3])
    assert len(framing_of_model("qwen3").examples(Conversation(other))) == 2


def test_a_users_switch_is_seen_by_the_template_and_stays_text() -> None:
    framing = framing_of_model("glm4.5", enable_thinking=False)
    [example] = framing.examples(Conversation((Turn("user", "When?/nothink"), ANSWER)))
    assert text_of("glm4.5", example).startswith("[gMASK]<sop><|user|>\nWhen?/nothink<|assistant|>")
    assert count("glm4.5", example, "/nothink") == 0
    [example] = framing.examples(Conversation((ASKED, ANSWER)))
    assert text_of("glm4.5", example).startswith("[gMASK]<sop><|user|>\nWhen?/nothink<|assistant|>")
    assert count("glm4.5", example, "/nothink") == 1


def test_a_template_that_treats_look_alikes_otherwise_is_refused() -> None:
    sorting = "(message.content if message.role != 'user' else message.content | sort | join) +"
    template = FAMILIES["smollm2"].template.replace("message.content +", sorting)
    with pytest.raises(DataError, match="treats specially") as error:
        framing_with(template).examples(Conversation((Turn("user", "<think>"), ANSWER)))
    assert "<think>" in error.value.message
    assert "Remove" in str(error.value.fix)
    framing_with(template).examples(Conversation((Turn("user", "abc"), ANSWER)))


GREETING = (Turn("assistant", "Welcome."), Turn("user", "hi"), Turn("assistant", "hello"))


def test_an_assistant_who_speaks_first_is_learned_where_the_template_allows_it() -> None:
    [example] = framing_with(CALLS.replace("ARGUMENTS", "''")).examples(Conversation(GREETING))
    assert learned("qwen3", example) == ["Welcome.<|im_end|>", "hello<|im_end|>"]
    [example] = framing_of("qwen2.5").examples(Conversation((Turn("system", "Be kind."), *GREETING)))
    assert learned("qwen2.5", example) == ["Welcome.<|im_end|>", "hello<|im_end|>"]


@pytest.mark.parametrize(
    ("name", "fixes"),
    [
        ("qwen2.5", ["`weight: 0`", "open the row with a system prompt", "put a turn of the user before"]),
        ("gemma", ["put a turn of the user before the assistant's first one", "leave the assistant's first turn out"]),
    ],
)
def test_otherwise_the_options_that_work_are_named(name: str, fixes: list[str]) -> None:
    conversation = Conversation(GREETING, origin=Origin("cards.jsonl", 3))
    with pytest.raises(DataError, match="turn 1 is the assistant's and nothing asks for it") as error:
        framing_of(name).examples(conversation)
    fix = str(error.value.fix)
    assert all(fix.lower() in fix.lower() for fix in fixes), fix
    assert fix.count(", or ") == len(fixes) - 1
    assert "cards.jsonl row 3" in error.value.message
    weightless = (GREETING[0]._replace(weight=0.0), *GREETING[1:])
    if "weight" in fix:
        framing_of(name).examples(Conversation(weightless))


def test_an_argument_that_the_template_asks_for_is_tried_before_it_is_named() -> None:
    """As Gemma 4's larger models: the prompt opens an answer with an empty thought that finished turns do not have."""
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if not SWITCH | default(false) %}"
        "{{- '<think>\\n</think>' }}{%- endif %}{%- endif %}{%- if other %}{%- endif %}"
    )
    for switch in ("enable_thinking", "ponder"):
        with pytest.raises(DataError, match="never sees later") as error:
            framing_with(template.replace("SWITCH", switch)).examples(Conversation((ASKED, ANSWER)))
        assert str(error.value.fix) == f"Set `tokens.template_args: {{{switch}: true}}`."
        framing_with(template.replace("SWITCH", switch), template_args={switch: True}).examples(
            Conversation((ASKED, ANSWER))
        )


def test_an_argument_with_another_value_than_true_or_false_is_tried_too() -> None:
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if effort not in ['low', 'none'] %}"
        "{{- '<think>\\n' }}{%- endif %}{%- endif %}"
    )
    with pytest.raises(DataError, match="never sees later") as error:
        framing_with(template).examples(Conversation((ASKED, ANSWER)))
    assert str(error.value.fix).startswith('Set `tokens.template_args: {effort: "low"}`, or give such turns')
    framing_with(template, template_args={"effort": "low"}).examples(Conversation((ASKED, ANSWER)))


def test_an_answer_is_learned_after_what_every_prompt_has_of_it() -> None:
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n</think>' }}{%- endif %}"
    )
    framing = framing_with(template)
    turns = (ASKED, ANSWER, Turn("user", "And then?"), Turn("assistant", "At six."))
    first, second = framing.examples(Conversation(turns))
    assert (learned("qwen3", first), learned("qwen3", second)) == (["At noon.<|im_end|>"], ["At six.<|im_end|>"])
    for example, before in ((first, turns[:1]), (second, turns[:3])):
        assert list(example.input_ids[: example.spans[0].start]) == framing.prompt(Conversation(before))


@pytest.mark.parametrize(
    ("name", "turns", "fix"),
    [
        ("gemma", (ASKED, ASKED, ANSWER), "Join neighbouring turns of the same role."),
        ("mistral", (ASKED, ANSWER, ANSWER), "Join neighbouring turns of the same role."),
        ("no-system", (Turn("system", "s"), ASKED, ANSWER),
         "Put the system prompt at the beginning of the user's first turn."),
        ("no-system", (Turn("system", "s"), ASKED, ASKED, ANSWER), None),
    ],
)  # fmt: skip
def test_turns_that_a_template_refuses(name: str, turns: tuple[Turn, ...], fix: str | None) -> None:
    if name == "no-system":
        refusing = "{%- if messages[0].role == 'system' %}{{- raise_exception('no system role') }}{%- endif %}"
        refusing += (
            "{%- if messages[1:] and messages[0].role == messages[1].role %}{{- raise_exception('x') }}{%- endif %}"
        )
        framing = framing_with(refusing + FAMILIES["smollm2"].template)
    else:
        framing = framing_of(name)
    with pytest.raises(DataError, match="turns that the chat template accepts") as error:
        framing.examples(Conversation(turns))
    assert str(error.value.fix) == (fix or "Give the conversation the turns this model's template knows, or set "
                                     "`tokens.template_args` as it asks.")  # fmt: skip


def test_tools_that_a_template_leaves_out() -> None:
    tool = {"type": "function", "function": {"name": "sun", "parameters": {}}}
    with pytest.raises(DataError, match="leaves out the tool 'sun'") as error:
        framing_of("smollm2").examples(Conversation((ASKED, ANSWER), (tool,)))
    assert str(error.value.fix) == "Remove `tools`."


def test_changes_are_tried_for_a_few_shapes_of_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from weitune.data.frame import fixes

    monkeypatch.setattr(fixes, "_SHAPES_TRIED", 1)
    framing = framing_of("qwen2.5")
    fixes = []
    for turns in (GREETING, GREETING, GREETING[:1]):
        with pytest.raises(DataError) as error:
            framing.examples(Conversation(turns))
        fixes.append(error.value.fix)
    assert fixes[0] == fixes[1] != fixes[2] == "Open the row with a turn of the user."


EMPTY_THOUGHT = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' and not m.tool_calls %}{{- BLOCK }}{%- endif %}"
    "{{- m.content.split('</think>')[-1] if m.content else '' }}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' + PROMPT }}{%- endif %}"
)
"""Writes an empty thought in every finished answer, and in prompts too if told so."""


@pytest.mark.parametrize(
    ("block", "reasoning", "written"),
    [
        ("<think></think>", "Noon?", "<think>Noon?</think>At noon.<|im_end|>"),
        ("<think></think>", "", "<think></think>At noon.<|im_end|>"),
        ("<think>\\n\\n</think>\\n\\n", "Noon?", "<think>\nNoon?\n</think>\n\nAt noon.<|im_end|>"),
        ("<think></think>", None, "At noon.<|im_end|>"),
    ],
)
def test_reasoning_stands_where_the_template_writes_an_empty_thought(
    block: str, reasoning: str | None, written: str
) -> None:
    framing = framing_with(EMPTY_THOUGHT.replace("BLOCK", f"'{block}'").replace("PROMPT", "''"))
    [example] = framing.examples(Conversation((ASKED, ANSWER._replace(reasoning=reasoning))))
    assert learned("qwen3", example) == [written]


@pytest.mark.parametrize("block", ["<think></think>", "<think>\\n\\n</think>\\n", "</think>"])
@pytest.mark.parametrize("reasoning", [None, ""])
def test_an_empty_thought_of_the_prompt_is_not_written_again(block: str, reasoning: str | None) -> None:
    framing = framing_with(EMPTY_THOUGHT.replace("BLOCK", f"'{block}'").replace("PROMPT", f"'{block}'"))
    [example] = framing.examples(Conversation((ASKED, ANSWER._replace(reasoning=reasoning))))
    assert learned("qwen3", example) == ["At noon.<|im_end|>"]


@pytest.mark.parametrize("reasoning", [None, ""])
@pytest.mark.parametrize("said", ["{{- m.content }}", "{% generation %}{{- m.content }}{% endgeneration %}"])
def test_an_empty_thought_that_only_prompts_have_is_not_written_again(said: str, reasoning: str | None) -> None:
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' %}SAID"
        "{%- else %}{{- m.content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think></think>' }}{%- endif %}"
    )
    framing = framing_with(template.replace("SAID", said))
    [example] = framing.examples(Conversation((ASKED, ANSWER._replace(reasoning=reasoning))))
    assert learned("qwen3", example) == ["At noon.<|im_end|>"]
    tokenizer = tokenizer_of("qwen3")
    assert tokenizer.decode(example.input_ids).endswith("assistant\n<think></think>At noon.<|im_end|>\n")


@pytest.mark.parametrize("reasoning", ["One line.", ""])
@pytest.mark.parametrize("supervise", ["last", "all"])
def test_an_answer_keeps_its_indentation_where_only_reasoning_in_tags_keeps_it(supervise: str, reasoning: str) -> None:
    tokenizer = modern.tokenizer_of("qwen3.5")
    raw = f"<think>\n{reasoning}\n</think>\n\n    return 1\n"
    [example] = framing_for(tokenizer, Tokens(supervise=supervise)).examples(
        Conversation((ASKED, Turn("assistant", "    return 1\n", reasoning=reasoning)))
    )
    messages = [{"role": "user", "content": ASKED.content}, {"role": "assistant", "content": raw}]
    assert list(example.input_ids) == tokenizer.apply_chat_template(messages, return_dict=False)
    [span] = example.spans
    text = tokenizer.decode(example.input_ids[span.start : span.stop], clean_up_tokenization_spaces=False)
    assert text == f"{reasoning}\n</think>\n\n    return 1<|im_end|>"


def test_a_tag_in_an_indented_answer_stays_text() -> None:
    [example] = framing_of_model("qwen3.5").examples(
        Conversation((ASKED, Turn("assistant", "  See </think>.", reasoning="Tags.")))
    )
    assert text_of("qwen3.5", example).endswith("<think>\nTags.\n</think>\n\nSee </think>.<|im_end|>\n")
    assert count("qwen3.5", example, "</think>") == 1


@pytest.mark.parametrize("supervise", ["last", "all"])
def test_a_call_that_the_template_leaves_out_is_missed_although_the_tools_name_it(supervise: str) -> None:
    template = (
        "{{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}"
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    tool = {"type": "function", "function": {"name": "tides", "parameters": {}}}
    with pytest.raises(DataError, match=r"leaves out the call of tides of turn 2 \(assistant\)"):
        framing_with(template, supervise=supervise).examples(Conversation(CALLED, (tool,)))


ONE_CALL = (
    "{%- for m in messages if m.role != 'system' %}{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.tool_calls %}{%- if m.tool_calls | length > 1 %}{{- raise_exception('one call at once') }}{%- endif %}"
    "{{- m.tool_calls[0].function | tojson }}{%- else %}{{- m.content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""Like Llama 3.1 with calls, and like Phi-4-reasoning without a place for a system prompt."""


@pytest.mark.parametrize(
    ("turns", "fix"),
    [
        (
            (ASKED, Turn("assistant", "", tool_calls=(CALL, CALL)), Turn("tool", "noon"), Turn("tool", "nine"), ANSWER),
            "Give each call a turn of its own, before its answer.",
        ),
        (
            (ASKED, Turn("assistant", "Let me look.", tool_calls=(CALL,)), Turn("tool", "noon"), ANSWER),
            "Remove the text of turns with calls.",
        ),
        (
            (Turn("system", "Be kind."), ASKED, ANSWER),
            "Put the system prompt at the beginning of the user's first turn.",
        ),
    ],
)
def test_fixes_for_what_a_template_cannot_write(turns: tuple[Turn, ...], fix: str) -> None:
    with pytest.raises(DataError) as error:
        framing_with(ONE_CALL).examples(Conversation(turns, (), Origin("f.json", 1)))
    assert error.value.fix == fix


@pytest.mark.parametrize("reasoning", ["Noon?", "  <|im_end|> ", ""])
def test_reasoning_is_learned_where_the_template_marks_only_what_is_said(reasoning: str) -> None:
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
        "{%- if m.reasoning_content %}{{- '<think>' + m.reasoning_content + '</think>' }}{%- endif %}"
        "{%- if m.role == 'assistant' %}{% generation %}{{- m.content }}{% endgeneration %}"
        "{%- else %}{{- m.content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    [example] = framing_with(template).examples(Conversation((ASKED, ANSWER._replace(reasoning=reasoning))))
    thought = f"<think>{reasoning}</think>" if reasoning else ""
    assert learned("qwen3", example) == [f"{thought}At noon.<|im_end|>"]
