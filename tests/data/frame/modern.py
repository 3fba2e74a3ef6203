"""Chat models of today, by the behaviour that their publishers describe: tokens, and templates in `templates`.

The templates are written here, as small as they can be with what makes each one awkward: an end of turn that is the
next role's token (GLM), an end of sequence after the whole dialogue (Phi-3), another end in the last turn (gpt-oss),
arguments as text (DeepSeek), names of functions only in the ids of calls (Kimi K2), reasoning only beside calls
(Gemma 4), prompts that open a thought (Qwen3.5, MiniMax, DeepSeek R1) or close one (DeepSeek V3.1, EXAONE 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tests.data.frame.families import Family, build

_FOLDER = Path(__file__).parent / "templates"


def _tokens(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@dataclass(frozen=True)
class Modern:
    """A model of today. ``arguments``: each way to call its template that is worth a try."""

    template: str
    special: tuple[str, ...]
    end_of_turn: str
    end_of_call: str | None = None
    """None: the template knows no tools."""
    eos: str | None = None
    """The end of a turn if not given."""
    bos: str | None = None
    plain: tuple[str, ...] = ()
    reads: str | None = "reasoning_content"
    """The field of a message in which its template reads reasoning; None if it has no place for it."""
    frame: tuple[str, str] = ("<think>\n", "\n</think>\n\n")
    """What stands around reasoning in a content, for turns in which the template reads no field."""
    drops: Literal["", "answers", "all"] = ""
    """The turns of which the template writes no reasoning, whatever it is given; `answers` are those without a call."""
    borrowed: bool = False
    """The end of a turn is the first token of the next."""
    named_ids: bool = False
    arguments: tuple[dict[str, Any], ...] = ({},)
    always: tuple[tuple[str, Any], ...] = ()
    """Arguments that tell apart two models that share a template here."""


_IM = _tokens("<|endoftext|> <|im_start|> <|im_end|>")
_THINK = _tokens("<think> </think>")
_CALLS = _tokens("<tool_call> </tool_call> <tool_response> </tool_response>")
_MODES: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": True}, {"enable_thinking": False})
_DEEPSEEK: dict[str, Any] = {
    "special": _tokens(
        "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜> <｜tool▁sep｜> "
        "<｜tool▁calls▁begin｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜> <｜tool▁calls▁end｜> "
        "<｜tool▁outputs▁begin｜> <｜tool▁outputs▁end｜> <｜tool▁output▁begin｜> <｜tool▁output▁end｜>"
    ),
    "bos": "<｜begin▁of▁sentence｜>",
    "end_of_turn": "<｜end▁of▁sentence｜>",
    "end_of_call": "<｜end▁of▁sentence｜>",
    "plain": _THINK,
    "reads": None,
}
_GEMMA4: dict[str, Any] = {
    "special": _tokens(
        "<pad> <eos> <bos> <|turn> <turn|> <|think|> <|channel> <channel|> <|tool> <tool|> <|tool_call> <tool_call|> "
        '<|tool_response> <tool_response|> <|"|>'
    ),
    "bos": "<bos>",
    "eos": "<eos>",
    "end_of_turn": "<turn|>",
    "end_of_call": "<|tool_response>",
    "reads": "reasoning",
    "drops": "answers",
    "frame": ("<|channel>thought\n", "\n<channel|>"),
    "borrowed": True,
    "arguments": ({}, {"enable_thinking": True}),
}
_PHI = _tokens("<|endoftext|> <|system|> <|user|> <|assistant|> <|end|>")

MODERN = {
    "phi3": Modern("phi3", _PHI, "<|end|>", eos="<|endoftext|>", reads=None),
    "phi4": Modern("phi4", (*_IM, "<|im_sep|>"), "<|im_end|>", reads=None),
    "phi4-mini": Modern(
        "phi4-mini",
        (*_PHI, *_tokens("<|tool|> <|/tool|> <|tool_call|> <|/tool_call|> <|tool_response|>")),
        "<|end|>",
        "<|end|>",
        eos="<|endoftext|>",
        reads=None,
    ),
    "gemma3": Modern(
        "gemma3", _tokens("<pad> <eos> <bos> <start_of_turn> <end_of_turn>"), "<end_of_turn>", eos="<eos>", bos="<bos>",
        reads=None,
    ),
    "gemma4": Modern("gemma4", **_GEMMA4),
    "gemma4-large": Modern("gemma4", **_GEMMA4, always=(("large", True),)),
    "llama4": Modern(
        "llama4",
        _tokens("<|begin_of_text|> <|header_start|> <|header_end|> <|eot|> <|eom|> <|python_start|> <|python_end|>"),
        "<|eot|>",
        "<|eom|>",
        bos="<|begin_of_text|>",
        reads=None,
    ),
    "mistral7": Modern(
        "mistral7",
        _tokens(
            "<unk> <s> </s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] "
            "[TOOL_CALLS] [CALL_ID] [ARGS] [TOOL_RESULTS] [TOOL_CONTENT] [/TOOL_RESULTS] [THINK] [/THINK]"
        ),
        "</s>",
        "</s>",
        bos="<s>",
        reads="parts",
        frame=("[THINK]", "[/THINK]"),
    ),
    "gpt-oss": Modern(
        "gpt-oss",
        _tokens("<|startoftext|> <|return|> <|channel|> <|start|> <|end|> <|message|> <|call|>"),
        "<|return|>",
        "<|call|>",
        arguments=({}, {"reasoning_effort": "high"}),
    ),
    "qwen3": Modern("qwen3", _IM, "<|im_end|>", "<|im_end|>", plain=(*_CALLS, *_THINK), arguments=_MODES),
    "qwen3.5": Modern("qwen3.5", _IM, "<|im_end|>", "<|im_end|>", plain=(*_CALLS, *_THINK), arguments=_MODES),
    "glm4.5": Modern(
        "glm4.5",
        _tokens("<|endoftext|> [gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|>"),
        "<|user|>",
        "<|observation|>",
        eos="<|endoftext|>",
        plain=(*_THINK, *_CALLS, *_tokens("/nothink <arg_key> </arg_key> <arg_value> </arg_value>")),
        borrowed=True,
        arguments=_MODES,
    ),
    "deepseek-v3": Modern("deepseek-v3", **_DEEPSEEK),
    "deepseek-r1-old": Modern("deepseek-v3", **_DEEPSEEK, drops="answers", always=(("strips", True),)),
    "deepseek-r1": Modern("deepseek-v3", **_DEEPSEEK, drops="answers", always=(("strips", True), ("opens", True))),
    "deepseek-v3.1": Modern("deepseek-v3.1", **_DEEPSEEK, drops="all", arguments=({}, {"thinking": True})),
    "kimi-k2": Modern(
        "kimi-k2",
        _tokens(
            "[BOS] [EOS] <|im_user|> <|im_assistant|> <|im_system|> <|im_middle|> <|im_end|> "
            "<|tool_calls_section_begin|> <|tool_call_begin|> <|tool_call_argument_begin|> <|tool_call_end|> "
            "<|tool_calls_section_end|>"
        ),
        "<|im_end|>",
        "<|im_end|>",
        eos="[EOS]",
        plain=_THINK,
        reads=None,
        named_ids=True,
    ),
    "exaone4": Modern(
        "exaone4",
        _tokens("[BOS] [PAD] [|endofturn|] [|system|] [|user|] [|assistant|] [|tool|]"),
        "[|endofturn|]",
        "[|endofturn|]",
        plain=(*_THINK, *_tokens("<tool_call> </tool_call> <tool_result> </tool_result>")),
        arguments=_MODES,
    ),
    "granite": Modern(
        "granite",
        _tokens("<|end_of_text|> <|start_of_role|> <|end_of_role|>"),
        "<|end_of_text|>",
        "<|end_of_text|>",
        plain=_CALLS,
        reads=None,
    ),
    "hunyuan": Modern(
        "hunyuan",
        _tokens(
            "<｜hy_begin▁of▁sentence｜> <｜hy_User｜> <｜hy_Assistant｜> <｜hy_place▁holder▁no▁2｜> "
            "<｜hy_place▁holder▁no▁3｜>"
        ),
        "<｜hy_place▁holder▁no▁2｜>",
        plain=(*_THINK, *_tokens("<answer> </answer>")),
        reads=None,
        arguments=_MODES,
    ),
    "minimax-m2": Modern(
        "minimax-m2",
        _tokens("]~!b[ ]~b] [e~["),
        "[e~[",
        "[e~[",
        plain=(*_THINK, *_tokens("<minimax:tool_call> </minimax:tool_call>")),
    ),
}  # fmt: skip


def template_of(name: str) -> str:
    """Return the source of a template."""
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def tokenizer_of(name: str) -> Any:
    """Return a small tokenizer of the model."""
    model = MODERN[name]
    fixed = "".join(f"{{%- set {key} = {str(value).lower()} %}}" for key, value in model.always)
    source = fixed + template_of(model.template)
    eos = model.eos or model.end_of_turn
    return build(Family(source, model.special, eos, model.end_of_turn, bos=model.bos, plain=model.plain))
