"""Rendering, tokens and masks, for random conversations under the templates of six families."""

from __future__ import annotations

import threading
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.frame.families import FAMILIES, as_json, as_message, tokenizer_of
from tests.limits import HANG_SECONDS
from weitune.data.conversation import Conversation, Example, Origin, ToolCall, Turn
from weitune.data.frame.choose import framing_for
from weitune.data.frame.framing import Framing
from weitune.data.frame.template import ChatTemplate
from weitune.errors import DataError, ModelError
from weitune.recipe.schema import Tokens

NAMES = sorted(FAMILIES)
LOOK_ALIKES = [
    *("<|im_end|>", "<|im_start|>", "<|eot_id|>", "</s>", "<s>", "[INST]", "<end_of_turn>", "<think>", "</think>"),
    *("<|im_", "end|>", "<", ">", "|>", "[", "/INST]", "\n", "\n\n", " ", "  "),
]

EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


def framing_of(name: str, **tokens: Any) -> Framing:
    return framing_for(tokenizer_of(name), Tokens(template_args=FAMILIES[name].arguments or None, **tokens))


def texts(name: str) -> st.SearchStrategy[str]:
    """Any characters, emoji, blanks, and look-alikes. SentencePiece cannot tell its own blank from a space."""
    letters = st.characters(exclude_categories=("Cs",), exclude_characters="▁")
    words = st.one_of(st.text(letters, max_size=6), st.sampled_from(["😀", "👩‍👩‍👧", "你是谁？", "the end"]))
    lookalikes = [*LOOK_ALIKES, *FAMILIES[name].special, *FAMILIES[name].plain]
    return st.lists(st.one_of(words, st.sampled_from(lookalikes)), max_size=5).map("".join)


def ordinary_texts() -> st.SearchStrategy[str]:
    """Lines of words. None begins with a blank, where the whole text would be cut otherwise than the prompt alone."""
    letters = st.characters(exclude_categories=("C", "Z", "M"), exclude_characters="▁<>[]|/")
    return st.lists(st.text(letters, min_size=1, max_size=6), max_size=5).flatmap(
        lambda words: st.sampled_from([" ", "\n", ", "]).map(lambda space: space.join(words))
    )


@st.composite
def conversations(draw: st.DrawFn, name: str, text: st.SearchStrategy[str] | None = None) -> Conversation:
    """One to three questions and answers, perhaps with a system prompt, weights, and reasoning where there is room."""
    text = texts(name) if text is None else text
    turns = [Turn("system", draw(text))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        weight = draw(st.sampled_from([1.0, 1.0, 0.0, 0.5]))
        thought = draw(st.none() | text) if name == "qwen3" else None
        turns += [Turn("user", draw(text)), Turn("assistant", draw(text), weight, thought)]
    return Conversation(tuple(turns), origin=Origin("some.json", 7))


def content_as_written(name: str, turn: Turn) -> str:
    return turn.content.strip() if FAMILIES[name].trims else turn.content


def answer_as_written(name: str, turn: Turn) -> str:
    """Return what the model learns to write for ``turn`` when it is the last one, from the family's description."""
    end = FAMILIES[name].end_of_turn
    if name == "qwen3" and turn.reasoning is not None:
        return f"<think>\n{turn.reasoning.strip(chr(10))}\n</think>\n\n{turn.content.lstrip(chr(10))}{end}"
    if name.startswith("qwen3"):  # an empty thought is not learned
        return turn.content.lstrip("\n") + end
    return (" " if name.startswith("mistral") else "") + content_as_written(name, turn) + end


def decoded(name: str, ids: Any) -> str:
    text: str = tokenizer_of(name).decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def same_text(name: str, a: str, b: str) -> bool:
    """Compare texts; SentencePiece decodes spaces at the edges of its pieces as it likes."""
    return a == b if FAMILIES[name].style in {"bytes", "gemma"} else a.replace(" ", "") == b.replace(" ", "")


def learned(name: str, example: Example) -> list[str]:
    return [decoded(name, example.input_ids[span.start : span.stop]) for span in example.spans]


def rendered(name: str, turns: tuple[Turn, ...], *, prompting: bool = False) -> str:
    text: str = tokenizer_of(name).apply_chat_template(
        [as_message(turn) for turn in turns],
        tokenize=False,
        add_generation_prompt=prompting,
        **FAMILIES[name].arguments,
    )
    return text


def answers(conversation: Conversation) -> list[int]:
    return [i for i, turn in enumerate(conversation.turns) if turn.role == "assistant" and turn.weight]


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_tokens_spell_the_rendered_text(name: str, data: st.DataObject) -> None:
    conversation = data.draw(conversations(name))
    examples = framing_of(name).examples(conversation)
    ends = [len(conversation.turns)] if len(examples) != len(answers(conversation)) else None
    for example, last in zip(examples, ends or [i + 1 for i in answers(conversation)], strict=True):
        text = decoded(name, example.input_ids)
        whole, upto = rendered(name, conversation.turns), rendered(name, conversation.turns[:last])
        assert same_text(name, text, upto) or (len(examples) == 1 and same_text(name, text, whole))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_masks_cover_exactly_the_learned_turns(name: str, data: st.DataObject) -> None:
    conversation = data.draw(conversations(name))
    examples = framing_of(name).examples(conversation)
    turns = [conversation.turns[i] for i in answers(conversation)]
    if len(examples) > 1 or (FAMILIES[name].only_last and turns):
        groups = [[turn] for turn in turns] if len(examples) == len(turns) else [turns]
    else:
        groups = [turns]
    for example, group in zip(examples, groups, strict=True):
        spoken = learned(name, example)
        expected = [answer_as_written(name, turn) for turn in group]
        assert len(spoken) == len(expected)
        assert all(same_text(name, a, b) for a, b in zip(spoken, expected, strict=True))
        assert [span.weight for span in example.spans] == [turn.weight for turn in group]
        assert example.origin == Origin("some.json", 7)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_training_sees_the_prompts_of_inference(name: str, data: st.DataObject) -> None:
    conversation = data.draw(conversations(name))
    framing = framing_of(name)
    spans = [(e, span) for e in framing.examples(conversation) for span in e.spans]
    for (example, span), i in zip(spans, answers(conversation), strict=True):
        prompt = framing.prompt(Conversation(conversation.turns[:i]))
        empty = EMPTY_THOUGHT if name == "qwen3" and conversation.turns[i].reasoning is None else ""
        assert list(example.input_ids[: len(prompt)]) == prompt
        assert decoded(name, example.input_ids[len(prompt) : span.start]) == empty


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_no_text_becomes_a_control_token(name: str, data: st.DataObject) -> None:
    conversation = data.draw(conversations(name))
    framing = framing_of(name)

    def harmless(turn: Turn) -> Turn:
        return Turn(turn.role, "x" if turn.content.strip() else "", turn.weight, turn.reasoning and "x")

    def controls(turns: tuple[Turn, ...]) -> list[list[int]]:
        examples = framing.examples(Conversation(turns))
        return [[token for token in example.input_ids if token in framing.control_ids] for example in examples]

    assert controls(conversation.turns) == controls(tuple(map(harmless, conversation.turns)))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_ordinary_rows_equal_apply_chat_template(name: str, data: st.DataObject) -> None:
    conversation = data.draw(conversations(name, ordinary_texts()))
    examples = framing_of(name).examples(conversation)
    last = len(conversation.turns) if len(examples) == 1 else answers(conversation)[-1] + 1
    wholes = [
        tokenizer_of(name).apply_chat_template(
            [as_message(turn) for turn in conversation.turns[:n]],
            tokenize=True,
            return_dict=False,
            **FAMILIES[name].arguments,
        )
        for n in {last, len(conversation.turns), *(i + 1 for i in answers(conversation)[-1:])}
    ]
    assert list(examples[-1].input_ids) in wholes


@pytest.mark.parametrize("name", NAMES)
def test_the_end_of_turn_is_found(name: str) -> None:
    framing = framing_of(name)
    assert framing.end_of_turn == tokenizer_of(name).convert_tokens_to_ids(FAMILIES[name].end_of_turn)
    assert framing.stop_tokens[0] == framing.end_of_turn
    [example] = framing.examples(Conversation((Turn("user", "hi"), Turn("assistant", "hello"))))
    assert example.input_ids[example.spans[-1].stop - 1] == framing.end_of_turn


def test_supervise_last_learns_the_last_answer_only() -> None:
    turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"), Turn("user", "e"))
    [example] = framing_of("qwen2.5", supervise="last").examples(Conversation(turns))
    assert learned("qwen2.5", example) == ["d<|im_end|>"]
    assert "e<|im_end|>" in decoded("qwen2.5", example.input_ids)


def test_a_conversation_without_a_learned_turn_is_an_example_without_spans() -> None:
    for turns in [(Turn("user", "a"),), (Turn("user", "a"), Turn("assistant", "b", weight=0))]:
        [example] = framing_of("qwen3").examples(Conversation(turns))
        assert example.spans == ()


def test_earlier_reasoning_disappears_and_each_turn_is_its_own_example() -> None:
    turns = (Turn("user", "a"), Turn("assistant", "b", reasoning="one"), Turn("user", "c"),
             Turn("assistant", "d", reasoning="two"))  # fmt: skip
    first, second = framing_of("qwen3").examples(Conversation(turns))
    assert learned("qwen3", first) == ["<think>\none\n</think>\n\nb<|im_end|>"]
    assert learned("qwen3", second) == ["<think>\ntwo\n</think>\n\nd<|im_end|>"]
    assert "one" not in decoded("qwen3", second.input_ids)


def test_a_token_that_would_straddle_the_answer_is_cut_as_at_inference() -> None:
    framing = framing_of("gemma")
    [example] = framing.examples(Conversation((Turn("user", "a"), Turn("assistant", "b"))))
    prompt = framing.prompt(Conversation((Turn("user", "a"),)))
    assert list(example.input_ids[: len(prompt)]) == prompt
    qwen = framing_of("qwen2.5")
    [example] = qwen.examples(Conversation((Turn("user", "a"), Turn("assistant", "\n\nb"))))
    assert learned("qwen2.5", example) == ["\n\nb<|im_end|>"]


TOOL = {
    "type": "function",
    "function": {"name": "tides", "description": "<|im_end|>", "parameters": {"type": "object"}},
}
CALL = ToolCall("tides", {"port": "</tool_call>", "<|im_start|>": [1, {"deep": "[/INST]"}]})


@pytest.mark.parametrize("name", [name for name in NAMES if FAMILIES[name].calls])
def test_tools_calls_and_results_are_rendered_and_safe(name: str) -> None:
    turns = (Turn("user", "When?"), Turn("assistant", "", tool_calls=(CALL,)), Turn("tool", '{"at": "</s>"}'),
             Turn("assistant", "At noon."))  # fmt: skip
    framing = framing_of(name)
    examples = framing.examples(Conversation(turns, (TOOL,)))
    spoken = [text for example in examples for text in learned(name, example)]
    assert len(spoken) == 2
    assert as_json("</tool_call>") in spoken[0].replace("</tool_call>\n", "\n").replace(': "\n', ': "</tool_call>')
    plain = ToolCall("tides", {"port": "x", "y": [1, {"deep": "z"}]})
    harmless = (turns[0], Turn("assistant", "", tool_calls=(plain,)), Turn("tool", "x"), turns[3])
    tool = {"type": "function", "function": {**TOOL["function"], "description": "x"}}  # type: ignore[dict-item]
    ids = [[t for t in e.input_ids if t in framing.control_ids] for e in examples]
    expected = framing.examples(Conversation(harmless, (tool,)))
    assert ids == [[t for t in e.input_ids if t in framing.control_ids] for e in expected]


@pytest.mark.parametrize(
    ("name", "turns", "tools", "reason"),
    [
        ("gemma", ("user", "user", "assistant"), (), "must alternate"),
        ("mistral", ("user", "assistant", "assistant"), (), "must alternate"),
        ("smollm2", ("user", "assistant"), (TOOL,), "leaves out the tool 'tides'"),
        ("qwen2.5", ("assistant",), (), "nothing asks for it"),
    ],
)
def test_what_a_template_cannot_frame_is_refused_with_reason_and_row(
    name: str, turns: tuple[Any, ...], tools: tuple[Any, ...], reason: str
) -> None:
    conversation = Conversation(tuple(Turn(role, f"t{i}") for i, role in enumerate(turns)), tools, Origin("f.json", 3))
    with pytest.raises(DataError) as error:
        framing_of(name).examples(conversation)
    assert reason in error.value.message
    assert "f.json row 3" in error.value.message
    assert error.value.fix


def reworked(name: str, template: str) -> Any:
    """Return a copy of a family's tokenizer with another template."""
    import copy

    tokenizer = copy.copy(tokenizer_of(name))
    tokenizer.chat_template = template
    return tokenizer


def test_a_call_that_the_template_drops_is_refused() -> None:
    turns = (Turn("user", "When?"), Turn("assistant", "", tool_calls=(ToolCall("tides", {}),)))
    with pytest.raises(DataError, match="leaves out the call of tides"):
        framing_of("smollm2").examples(Conversation(turns))


def test_a_template_that_moves_the_system_prompt_is_refused() -> None:
    """As in Mistral 7B v0.3: the system prompt goes before the last message, and vanishes once that is an answer."""
    moving = (
        "{{- bos_token }}{%- for m in messages if m.role != 'system' %}{%- if m.role == 'user' %}{{- '[INST] ' }}"
        "{%- if loop.last and messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}"
        "{{- m.content + '[/INST]' }}{%- else %}{{- ' ' + m.content + eos_token }}{%- endif %}{%- endfor %}"
    )
    framing = framing_for(reworked("mistral", moving), Tokens())
    framing.examples(Conversation((Turn("user", "a"), Turn("assistant", "b"))))
    with pytest.raises(DataError, match="never sees later"):
        framing.examples(Conversation((Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"))))


def test_a_thinking_template_without_reasoning_is_refused() -> None:
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
    )
    framing = framing_for(reworked("qwen3", template), Tokens())
    with pytest.raises(DataError, match="never sees later") as error:
        framing.examples(Conversation((Turn("user", "a"), Turn("assistant", "b"))))
    assert "reasoning_content" in str(error.value.fix)
    [example] = framing.examples(Conversation((Turn("user", "a"), Turn("assistant", "b", reasoning=""))))
    assert learned("qwen3", example) == ["\n</think>\n\nb<|im_end|>"]


def test_a_template_without_an_end_of_turn_is_refused() -> None:
    template = "{%- for m in messages %}{{- m.role + ': ' + m.content + '\\n' }}{%- endfor %}"
    with pytest.raises(ModelError, match="never learn to stop"):
        framing_for(reworked("qwen2.5", template), Tokens())


def test_a_template_that_cuts_an_answer_is_refused() -> None:
    cutting = tokenizer_of("smollm2").chat_template.replace("message.content +", "message.content.split('!')[0] +")
    framing = framing_for(reworked("smollm2", cutting), Tokens())
    with pytest.raises(DataError, match="leaves out the text of turn 2"):
        framing.examples(Conversation((Turn("user", "a"), Turn("assistant", "Yes! And no."))))


def test_a_template_without_a_generation_prompt_is_noted() -> None:
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    )
    framing = framing_for(reworked("smollm2", template), Tokens())
    assert any("no generation prompt" in note for note in framing.notes)


def test_tokenizers_without_a_template_are_framed_and_noted() -> None:
    chatml = framing_for(reworked("smollm2", None), Tokens())  # type: ignore[arg-type]
    assert "ChatML" in chatml.notes[0]
    plain = framing_for(reworked("llama3", None), Tokens())  # type: ignore[arg-type]
    assert "plain text" in plain.notes[0]
    turns = (Turn("system", "Be kind."), Turn("user", "a"), Turn("assistant", "b"))
    [example] = plain.examples(Conversation(turns))
    assert decoded("llama3", example.input_ids) == "Be kind.\n\nUser:\na\n\nAssistant:\nb<|eot_id|>\n\n"
    assert learned("llama3", example) == ["b<|eot_id|>"]


def test_reasoning_is_kept_as_text_where_a_template_has_no_place_for_it() -> None:
    [example] = framing_of("smollm2").examples(
        Conversation((Turn("user", "a"), Turn("assistant", "b", reasoning="why")))
    )
    assert learned("smollm2", example) == ["<think>\nwhy\n</think>\n\nb<|im_end|>"]


def test_batches_equal_single_conversations() -> None:
    framing = framing_of("qwen2.5")
    many = [Conversation((Turn("user", f"q{i % 7}"), Turn("assistant", f"a{i % 5}"))) for i in range(50)]
    assert framing.examples_batch(many) == [framing.examples(conversation) for conversation in many]


def test_describe_tells_framings_apart() -> None:
    assert framing_of("qwen2.5").describe() == framing_of("qwen2.5").describe()
    assert framing_of("qwen2.5").describe() != framing_of("qwen2.5", supervise="last").describe()
    assert framing_of("qwen3").describe() != framing_of("qwen3-not-thinking").describe()


def test_two_threads_may_render_what_marks_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' compiled templates are shared by all templates of one source, and render one at a time."""
    source = FAMILIES["generation"].template
    generate = jinja2.Template.generate
    rendered: list[Any] = []
    threads: list[threading.Thread] = []

    def render() -> None:
        template = ChatTemplate(source, source, {}, {})
        rendered.append(template.render([{"role": "assistant", "content": "noon"}], [], False))

    def with_another_beside(*arguments: Any, **variables: Any) -> Any:
        if not threads:
            threads.append(threading.Thread(target=render))
            threads[0].start()
            threads[0].join(0.3)  # it waits for this rendering
        return generate(*arguments, **variables)

    monkeypatch.setattr(jinja2.Template, "generate", with_another_beside)
    render()
    threads[0].join(HANG_SECONDS)
    assert len(rendered) == 2
    assert rendered[0] == rendered[1]


@pytest.mark.parametrize("name", sorted(FAMILIES))
@given(data=st.data())
def test_a_prompt_has_no_fewer_tokens_than_one_rendering_tells(name: str, data: st.DataObject) -> None:
    conversation = data.draw(conversations(name))
    asked = conversation.before(conversation.last_answer)
    framing = framing_of(name)
    assert 0 < framing.least_tokens(asked) <= len(framing.prompt(asked))
