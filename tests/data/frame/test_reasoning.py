"""Reasoning: learned in the template's or the tokenizer's own tokens, never lost, and not unlearned."""

from __future__ import annotations

from typing import Any

import pytest

from tests.data.frame import modern
from tests.data.frame.families import FAMILIES, tokenizer_of
from tests.data.frame.test_framing import decoded, framing_of, learned, reworked
from weitune.data.conversation import Conversation, Example, ToolCall, Turn
from weitune.data.frame.choose import framing_for
from weitune.data.frame.framing import Framing
from weitune.errors import DataError
from weitune.recipe.schema import Tokens

ASKED = Turn("user", "When is high tide?")
THOUGHT = Turn("assistant", "At noon.", reasoning="The moon is full.")
CALL = ToolCall("tides", {"port": "Brest"})
PROMPT = "<|im_start|>user\nWhen is high tide?<|im_end|>\n<|im_start|>assistant\n"
READS_BOTH = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{%- set thought = m.reasoning_content | default('') %}"
    "{%- set said = m.content %}{%- if not thought and '</think>' in said %}"
    "{%- set thought = said.split('</think>')[0].split('<think>')[-1] %}{%- set said = said.split('</think>')[1] %}"
    "{%- endif %}{{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}"
    "{{- said.strip('\\n') + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
)
"""Opens a thought in the prompt; takes reasoning from its field, or from the content up to `</think>`."""
DROPS = (
    "{%- for m in messages %}{%- set said = m.content.split('</think>')[-1] if m.role == 'assistant' else m.content %}"
    "{{- '<|im_start|>' + m.role + '\\n' + said + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""Has no place for reasoning at all."""
DROPS_AND_OPENS = DROPS.replace("'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}")
BESIDE_CALLS = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{%- if m.tool_calls %}{%- if m.reasoning_content %}"
    "{{- '<think>\\n' + m.reasoning_content + '\\n</think>\\n' }}{%- endif %}{%- for c in m.tool_calls %}"
    "{{- '<tool_call>' + c.function.name + (c.function.arguments | tojson) + '</tool_call>' }}{%- endfor %}{%- endif %}"
    "{{- m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""Writes reasoning only in turns with a call, and contents after calls."""


def framing_with(template: str, name: str = "qwen3", **tokens: Any) -> Framing:
    return framing_for(reworked(name, template), Tokens(**tokens))


def ids_of(*tokens: str) -> list[int]:
    return [tokenizer_of("qwen3").convert_tokens_to_ids(token) for token in tokens]


def thoughts_in(example: Example) -> list[int]:
    """Return the tokens that open and close thoughts, in order."""
    return [token for token in example.input_ids if token in ids_of("<think>", "</think>")]


@pytest.mark.parametrize(
    ("template", "prompt", "answer"),
    [
        (READS_BOTH, PROMPT + "<think>\n", "The moon is full.\n</think>\n\nAt noon.<|im_end|>"),
        (DROPS, PROMPT, "<think>\nThe moon is full.\n</think>\n\nAt noon.<|im_end|>"),
        (DROPS_AND_OPENS, PROMPT + "<think>\n", "The moon is full.\n</think>\n\nAt noon.<|im_end|>"),
        (BESIDE_CALLS, PROMPT, "<think>\nThe moon is full.\n</think>\nAt noon.<|im_end|>"),
        (FAMILIES["smollm2"].template.replace("You are SmolLM.", ""), None,
         "<think>\nThe moon is full.\n</think>\n\nAt noon.<|im_end|>"),
    ],
    ids=["reads both", "drops", "drops and opens", "beside calls", "copies"],
)  # fmt: skip
def test_reasoning_is_learned_in_tokens(template: str, prompt: str | None, answer: str) -> None:
    framing = framing_with(template)
    [example] = framing.examples(Conversation((ASKED, THOUGHT)))
    assert learned("qwen3", example) == [answer]
    assert thoughts_in(example) == ids_of("<think>", "</think>")
    start = example.spans[0].start
    assert list(example.input_ids[:start]) == framing.prompt(Conversation((ASKED,)))
    assert prompt is None or decoded("qwen3", example.input_ids[:start]) == prompt


def test_a_closing_tag_in_the_content_is_read_as_the_template_reads_it() -> None:
    turn = Turn("assistant", "The moon is full.\n</think>\n\nAt noon.")
    [example] = framing_with(READS_BOTH).examples(Conversation((ASKED, turn)))
    assert learned("qwen3", example) == ["The moon is full.\n</think>\n\nAt noon.<|im_end|>"]
    assert thoughts_in(example) == ids_of("<think>", "</think>")


def test_a_look_alike_in_the_reasoning_stays_text() -> None:
    turn = THOUGHT._replace(reasoning="Should I write <think> or </think>?")
    for template in (READS_BOTH, DROPS, DROPS_AND_OPENS, BESIDE_CALLS):
        [example] = framing_with(template).examples(Conversation((ASKED, turn)))
        assert thoughts_in(example) == ids_of("<think>", "</think>")
        assert "Should I write <think> or </think>?" in decoded("qwen3", example.input_ids)


def test_earlier_reasoning_goes_where_the_template_has_no_place_for_it() -> None:
    turns = (ASKED, THOUGHT, Turn("user", "And then?"), Turn("assistant", "At six.", reasoning="Six hours."))
    first, second = framing_with(DROPS).examples(Conversation(turns))
    assert learned("qwen3", first) == ["<think>\nThe moon is full.\n</think>\n\nAt noon.<|im_end|>"]
    assert learned("qwen3", second) == ["<think>\nSix hours.\n</think>\n\nAt six.<|im_end|>"]
    assert "moon" not in decoded("qwen3", second.input_ids)


def test_indentation_after_a_thought_stays() -> None:
    turn = Turn("assistant", "    return 1\n", reasoning="One line.")
    for template in (FAMILIES["qwen3"].template, DROPS, BESIDE_CALLS):
        [example] = framing_with(template).examples(Conversation((ASKED, turn)))
        assert learned("qwen3", example)[0].split("</think>")[1].lstrip("\n") == "    return 1\n<|im_end|>"


def test_reasoning_beside_a_call() -> None:
    turns = (ASKED, Turn("assistant", "", reasoning="look it up", tool_calls=(CALL,)), Turn("tool", "noon"),
             Turn("assistant", "At noon."))  # fmt: skip
    [example] = framing_with(BESIDE_CALLS).examples(Conversation(turns))
    assert learned("qwen3", example) == [
        '<think>\nlook it up\n</think>\n<tool_call>tides{"port": "Brest"}</tool_call><|im_end|>',
        "At noon.<|im_end|>",
    ]
    assert thoughts_in(example) == ids_of("<think>", "</think>")


def test_reasoning_beside_a_call_where_the_template_knows_none() -> None:
    template = BESIDE_CALLS.replace("{%- if m.reasoning_content %}", "{%- if false %}")
    turns = (ASKED, Turn("assistant", "", reasoning="look it up", tool_calls=(CALL,)))
    [example] = framing_with(template).examples(Conversation(turns))
    assert learned("qwen3", example) == [
        '<think>\nlook it up\n</think>\n\n<tool_call>tides{"port": "Brest"}</tool_call><|im_end|>'
    ]
    assert thoughts_in(example) == ids_of("<think>", "</think>")


def test_reasoning_that_a_template_drops_from_a_learned_turn_is_refused_with_a_way_out() -> None:
    dropping = FAMILIES["qwen3"].template.replace("thought.strip('\\n')", "thought.split('!')[0].strip('\\n')")
    framing = framing_with(dropping)
    turn = THOUGHT._replace(reasoning="High! Then low.")
    with pytest.raises(DataError, match="leaves out the reasoning of turn 2") as error:
        framing.examples(Conversation((ASKED, turn)))
    assert str(error.value.fix) == "Remove the reasoning of such turns."
    later = (ASKED, turn._replace(weight=0.0), ASKED, Turn("assistant", "At six."))
    framing.examples(Conversation(later))  # as context, it may go


def test_a_thought_that_nothing_closes_is_refused() -> None:
    template = (
        FAMILIES["smollm2"]
        .template.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}")
        .replace("message.content +", "('<think>\\n' if message.role == 'assistant' else '') + message.content +")
    )
    framing = framing_with(template)
    with pytest.raises(DataError, match="an end of the reasoning") as error:
        framing.examples(Conversation((ASKED, Turn("assistant", "At noon."))))
    assert "reasoning_content" in str(error.value.fix)
    [example] = framing.examples(Conversation((ASKED, THOUGHT)))
    assert learned("qwen3", example) == ["The moon is full.\n</think>\n\nAt noon.<|im_end|>"]
    assert thoughts_in(example) == ids_of("<think>", "</think>")


def test_a_prompt_that_has_closed_the_thought_does_not_take_reasoning() -> None:
    name = "deepseek-v3.1"
    conversation = Conversation((ASKED, THOUGHT))
    with pytest.raises(DataError, match="has ended the reasoning already") as error:
        framing_for(modern.tokenizer_of(name), Tokens()).examples(conversation)
    assert "thinking: true" in str(error.value.fix)
    framing = framing_for(modern.tokenizer_of(name), Tokens(template_args={"thinking": True}))
    [example] = framing.examples(conversation)
    text = modern.tokenizer_of(name).decode(example.input_ids)
    assert text.endswith("<｜Assistant｜><think>The moon is full.</think>At noon.<｜end▁of▁sentence｜>")


@pytest.mark.parametrize(
    ("name", "raw", "answer"),
    [
        ("mistral7", "[THINK]The moon is full.[/THINK]At noon.", "[THINK]The moon is full.[/THINK]At noon.</s>"),
        ("gemma4", "<|channel>thought\nThe moon is full.\n<channel|>At noon.",
         "<|channel>thought\nThe moon is full.\n<channel|>At noon.<turn|>"),
        ("gpt-oss",
         "<|channel|>analysis<|message|>The moon is full.<|end|><|start|>assistant<|channel|>final<|message|>At noon.",
         "<|channel|>analysis<|message|>The moon is full.<|end|><|start|>assistant<|channel|>final<|message|>At noon."
         "<|return|>"),
    ],
)  # fmt: skip
def test_raw_outputs_in_the_templates_own_words_are_reasoning(name: str, raw: str, answer: str) -> None:
    tokenizer = modern.tokenizer_of(name)
    framing = framing_for(tokenizer, Tokens())
    [example] = framing.examples(Conversation((ASKED, ANSWER._replace(content=raw))))
    [span] = example.spans
    learned_ids = example.input_ids[span.start : span.stop]
    assert tokenizer.decode(learned_ids) == answer
    assert list(learned_ids) == tokenizer.encode(answer, add_special_tokens=False)
    asking = (ASKED, ANSWER._replace(content=raw), ASKED)
    split = (ASKED, THOUGHT, ASKED)
    assert framing.prompt(Conversation(asking)) == framing.prompt(Conversation(split))
    unclosed = raw.replace("[/THINK]", "").replace("<channel|>", "").replace("<|end|>", "")
    if name == "mistral7":  # not in its form: text, in letters
        [example] = framing.examples(Conversation((ASKED, ANSWER._replace(content=unclosed))))
        assert tokenizer.convert_tokens_to_ids("[THINK]") not in example.input_ids


def test_the_tutorials_framing_learns_reasoning_in_tokens() -> None:
    framing = framing_for(reworked("qwen3", DROPS), Tokens(template="chat"))
    assert framing.control_ids >= set(ids_of("<think>", "</think>"))
    tokenizer = reworked("qwen3", DROPS)
    tokenizer.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tutorial = framing_for(tokenizer, Tokens(template="tutorial"))
    [example] = tutorial.examples(Conversation((ASKED, THOUGHT._replace(reasoning="Is it </think>?"))))
    assert learned("qwen3", example) == ["<think>\nIs it </think>?\n</think>\n\nAt noon.<|endoftext|>"]
    assert thoughts_in(example) == ids_of("<think>", "</think>")


ANSWER = Turn("assistant", "At noon.")
EMPTY = "<think>\n\n</think>\n\n"


def test_an_empty_thought_of_the_template_is_context() -> None:
    framing = framing_of("qwen3")
    [example] = framing.examples(Conversation((ASKED, ANSWER)))
    assert learned("qwen3", example) == ["At noon.<|im_end|>"]
    assert decoded("qwen3", example.input_ids).endswith(EMPTY + "At noon.<|im_end|>\n")
    off = framing_of("qwen3-not-thinking").prompt(Conversation((ASKED,)))  # asked not to think, it sees just this
    assert list(example.input_ids[: example.spans[0].start]) == off


def test_learn_empty_reasoning_learns_it_as_before() -> None:
    [context] = framing_of("qwen3").examples(Conversation((ASKED, ANSWER)))
    [example] = framing_of("qwen3", learn_empty_reasoning=True).examples(Conversation((ASKED, ANSWER)))
    assert learned("qwen3", example) == [EMPTY + "At noon.<|im_end|>"]
    assert example.input_ids == context.input_ids


def test_an_empty_thought_of_the_row_is_learned() -> None:
    [example] = framing_of("qwen3").examples(Conversation((ASKED, ANSWER._replace(reasoning=""))))
    assert learned("qwen3", example) == [EMPTY + "At noon.<|im_end|>"]
    [example] = framing_with(DROPS).examples(Conversation((ASKED, ANSWER._replace(reasoning=""))))
    assert learned("qwen3", example) == [EMPTY + "At noon.<|im_end|>"]
    assert thoughts_in(example) == ids_of("<think>", "</think>")


def test_an_empty_thought_is_known_by_its_form_not_by_its_tokens() -> None:
    template = FAMILIES["qwen3"].template.replace("<think>", "<tool_call>").replace("</think>", "</tool_call>")
    [example] = framing_with(template).examples(Conversation((ASKED, ANSWER)))
    assert learned("qwen3", example) == ["At noon.<|im_end|>"]
    greeting = FAMILIES["smollm2"].template.replace("message.content +", "'<think>Hm.</think>' + message.content +")
    [example] = framing_with(greeting).examples(Conversation((ASKED, ANSWER)))  # no reasoning could stand there
    assert learned("qwen3", example) == ["<think>Hm.</think>At noon.<|im_end|>"]


def test_an_empty_thought_before_a_call_and_after_a_tool_is_context() -> None:
    turns = (ASKED, Turn("assistant", "", tool_calls=(CALL,)), Turn("tool", "noon"), ANSWER)
    call, answer = framing_of("qwen3").examples(Conversation(turns))
    assert "think" not in learned("qwen3", call)[0]
    assert learned("qwen3", answer) == ["At noon.<|im_end|>"]


def test_an_empty_thought_that_a_template_always_writes_makes_room_for_a_real_one() -> None:
    always = DROPS.replace("+ said +", "+ ('<think>\\n\\n</think>\\n\\n' if m.role == 'assistant' else '') + said +")
    for template in (always, always.replace("m.content.split('</think>')[-1] if m.role == 'assistant' else ", "")):
        framing = framing_with(template)
        [example] = framing.examples(Conversation((ASKED, ANSWER)))
        assert learned("qwen3", example) == ["At noon.<|im_end|>"]
        [example] = framing.examples(Conversation((ASKED, THOUGHT)))
        assert learned("qwen3", example) == ["<think>\nThe moon is full.\n</think>\n\nAt noon.<|im_end|>"]
        [example] = framing.examples(Conversation((ASKED, ANSWER._replace(reasoning=""))))
        assert learned("qwen3", example) == [EMPTY + "At noon.<|im_end|>"]


def test_an_empty_thought_that_the_prompt_opens_and_the_template_always_closes() -> None:
    always = DROPS_AND_OPENS.replace(
        "+ said +", "+ ('<think>\\n\\n</think>\\n\\n' if m.role == 'assistant' else '') + said +"
    )
    framing = framing_with(always)
    [example] = framing.examples(Conversation((ASKED, ANSWER)))
    assert learned("qwen3", example) == ["At noon.<|im_end|>"]
    [example] = framing.examples(Conversation((ASKED, THOUGHT)))
    assert learned("qwen3", example) == ["The moon is full.\n</think>\n\nAt noon.<|im_end|>"]
    assert thoughts_in(example) == ids_of("<think>", "</think>")


def test_reasoning_stands_after_the_opening_of_a_turn_that_the_model_writes() -> None:
    template = DROPS[: DROPS.index("{%- if add_generation_prompt")]
    [example] = framing_with(template).examples(Conversation((ASKED, THOUGHT)))
    opening = "<|im_start|>assistant\n"
    assert learned("qwen3", example) == [opening + "<think>\nThe moon is full.\n</think>\n\nAt noon.<|im_end|>"]
    template = FAMILIES["qwen3"].template
    template = template[: template.rindex("{%- if add_generation_prompt")]
    [example] = framing_with(template).examples(Conversation((ASKED, ANSWER)))
    assert learned("qwen3", example) == [opening + EMPTY + "At noon.<|im_end|>"]


def test_marked_generations_include_reasoning_that_the_template_has_no_place_for() -> None:
    marked = DROPS.replace("{{- '<|im_start|>' + m.role + '\\n' + said + '<|im_end|>\\n' }}", (
        "{{- '<|im_start|>' + m.role + '\\n' }}{% generation %}{{- said }}{% endgeneration %}{{- '<|im_end|>\\n' }}"
    ))  # fmt: skip
    [example] = framing_with(marked).examples(Conversation((ASKED, THOUGHT)))
    text = "".join(learned("qwen3", example))
    assert text == "<think>\nThe moon is full.\n</think>\n\nAt noon.<|im_end|>"


def test_a_second_template_for_conversations_with_tools_has_its_own_conventions() -> None:
    tool = {"type": "function", "function": {"name": "tides", "parameters": {}}}
    with_tools = FAMILIES["qwen3"].template
    tokenizer = reworked("qwen3", DROPS)
    tokenizer.chat_template = {"default": DROPS, "tool_use": with_tools}
    framing = framing_for(tokenizer, Tokens())
    for tools in ((), (tool,)):
        [example] = framing.examples(Conversation((ASKED, THOUGHT), tools))
        assert learned("qwen3", example) == ["<think>\nThe moon is full.\n</think>\n\nAt noon.<|im_end|>"]
        [example] = framing.examples(Conversation((ASKED, ANSWER), tools))
        assert learned("qwen3", example) == ["At noon.<|im_end|>"]
        assert (EMPTY in decoded("qwen3", example.input_ids)) == bool(tools)


def test_the_fingerprint_tells_both_apart_where_there_are_empty_thoughts() -> None:
    default, before = framing_of("qwen3").describe(), framing_of("qwen3", learn_empty_reasoning=True).describe()
    assert default == {**before, "empty_reasoning": "context"}
    assert "empty_reasoning" not in framing_of("qwen2.5").describe()
