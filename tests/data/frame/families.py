"""Six families of chat models, as their publishers describe the format: tokenizer pieces, control tokens, template.

The templates are written here from those descriptions, with what makes each family awkward: a default system prompt
(Qwen2.5, SmolLM2), earlier reasoning that disappears (Qwen3), trimmed contents (Llama 3, Gemma), a system prompt inside
the first user turn and strict alternation (Mistral, Gemma), SentencePiece's spaces (Mistral), added tokens of white
space (Gemma).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import CORPUS

_TOOLS_HERMES = (
    "{{- '\\n\\n# Tools\\nCall functions as JSON within <tool_call></tool_call>.\\n<tools>' }}"
    "{%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}{{- '\\n</tools>' }}"
)
_CALLS_HERMES = (
    "{%- for call in message.tool_calls %}"
    '{{- \'\\n<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}"
)
_ANSWERS_HERMES = (
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}"
)

QWEN25 = f"""\
{{%- set given = messages[0].content if messages[0].role == 'system' else 'You are Qwen.' %}}
{{{{- '<|im_start|>system\\n' + given }}}}
{{%- if tools %}}{_TOOLS_HERMES}{{%- endif %}}
{{{{- '<|im_end|>\\n' }}}}
{{%- for message in messages %}}
{{%- if message.role == 'tool' %}}{_ANSWERS_HERMES}
{{%- elif message.role == 'assistant' and message.tool_calls %}}
{{{{- '<|im_start|>assistant' }}}}
{{%- if message.content %}}{{{{- '\\n' + message.content }}}}{{%- endif %}}
{_CALLS_HERMES}{{{{- '<|im_end|>\\n' }}}}
{{%- elif not (message.role == 'system' and loop.first) %}}
{{{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}}}
{{%- endif %}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}{{{{- '<|im_start|>assistant\\n' }}}}{{%- endif %}}"""

QWEN3 = f"""\
{{%- if messages[0].role == 'system' or tools %}}
{{{{- '<|im_start|>system\\n' + (messages[0].content if messages[0].role == 'system' else '') }}}}
{{%- if tools %}}{_TOOLS_HERMES}{{%- endif %}}
{{{{- '<|im_end|>\\n' }}}}
{{%- endif %}}
{{%- set last = namespace(query=-1) %}}
{{%- for message in messages %}}
{{%- if message.role == 'user' %}}{{%- set last.query = loop.index0 %}}{{%- endif %}}
{{%- endfor %}}
{{%- for message in messages %}}
{{%- if message.role == 'tool' %}}{_ANSWERS_HERMES}
{{%- elif message.role == 'assistant' %}}
{{{{- '<|im_start|>assistant\\n' }}}}
{{%- set thought = message.reasoning_content | default('') %}}
{{%- if loop.index0 > last.query and (loop.last or thought) %}}
{{{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}}}
{{%- endif %}}
{{{{- message.content.lstrip('\\n') }}}}
{{%- if message.tool_calls %}}{_CALLS_HERMES}{{%- endif %}}
{{{{- '<|im_end|>\\n' }}}}
{{%- elif not (message.role == 'system' and loop.first) %}}
{{{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}}}
{{%- endif %}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}
{{{{- '<|im_start|>assistant\\n' }}}}
{{%- if enable_thinking is defined and not enable_thinking %}}{{{{- '<think>\\n\\n</think>\\n\\n' }}}}{{%- endif %}}
{{%- endif %}}"""

LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
{%- set role = 'ipython' if message.role == 'tool' else message.role %}
{{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
{%- if message.tool_calls %}
{%- if message.tool_calls | length != 1 %}{{- raise_exception('one tool call at a time') }}{%- endif %}
{%- set call = message.tool_calls[0].function %}
{{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- '}' }}
{%- elif message.role == 'tool' %}{{- message.content | tojson }}
{%- else %}{{- message.content | trim }}
{%- endif %}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

MISTRAL = """\
{%- set start = 1 if messages[0].role == 'system' else 0 %}
{%- set turn = namespace(user=true, last=0) %}
{%- for message in messages[start:] %}
{%- if message.role == 'user' %}{%- set turn.last = loop.index0 %}{%- endif %}
{%- if message.role in ('user', 'assistant') and not message.tool_calls %}
{%- if (message.role == 'user') != turn.user %}{{- raise_exception('user and assistant must alternate') }}{%- endif %}
{%- set turn.user = not turn.user %}
{%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in messages[start:] %}
{%- if message.role == 'user' %}
{%- if tools and loop.index0 == turn.last %}
{{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
{%- endif %}
{{- '[INST] ' }}
{%- if start and loop.first %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- message.content + '[/INST]' }}
{%- elif message.tool_calls %}
{{- '[TOOL_CALLS] [' }}
{%- for call in message.tool_calls %}
{%- if call.id | length != 9 %}{{- raise_exception('tool call ids have nine characters') }}{%- endif %}
{{- {'name': call.function.name, 'arguments': call.function.arguments, 'id': call.id} | tojson }}
{{- ', ' if not loop.last else ']' + eos_token }}
{%- endfor %}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS] ' + {'content': message.content, 'call_id': message.tool_call_id} | tojson + '[/TOOL_RESULTS]' }}
{%- else %}{{- ' ' + message.content | trim + eos_token }}
{%- endif %}
{%- endfor %}"""

GEMMA = """\
{{- bos_token }}
{%- set start = 1 if messages[0].role == 'system' else 0 %}
{%- for message in messages[start:] %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant') }}
{%- endif %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{%- if start and loop.first %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

SMOLLM2 = """\
{%- for message in messages %}
{%- if loop.first and message.role != 'system' %}{{- '<|im_start|>system\\nYou are SmolLM.<|im_end|>\\n' }}{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

GENERATION = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}{% generation %}{{- message.content }}{% endgeneration %}
{%- else %}{{- message.content }}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
"""Marks what the assistant generates, but stops before the end of the turn."""


@dataclass(frozen=True)
class Family:
    """What a tokenizer of the family has. ``style``: how text becomes pieces; ``drops``: what contents lose."""

    template: str
    special: tuple[str, ...]
    eos: str
    end_of_turn: str
    style: str = "bytes"
    bos: str | None = None
    plain: tuple[str, ...] = ()
    trims: bool = False
    strict: bool = False
    """User and assistant must alternate."""
    calls: bool = True
    """The template knows tools."""
    only_last: bool = False
    """Reasoning stays only in the last turn, so every learned turn is an example of its own."""
    arguments: dict[str, Any] = field(default_factory=dict)


_HERMES = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_HEADERS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_MISTRAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]", "[/TOOL_RESULTS]")  # fmt: skip
_GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")

FAMILIES = {
    "qwen2.5": Family(QWEN25, _IM, "<|im_end|>", "<|im_end|>", plain=_HERMES[:2]),
    "qwen3": Family(QWEN3, _IM, "<|im_end|>", "<|im_end|>", plain=(*_HERMES, "<think>", "</think>"), only_last=True),
    "qwen3-not-thinking": Family(QWEN3, _IM, "<|im_end|>", "<|im_end|>", plain=(*_HERMES, "<think>", "</think>"),
                                 only_last=True, arguments={"enable_thinking": False}),
    "llama3": Family(LLAMA3, _HEADERS, "<|eot_id|>", "<|eot_id|>", bos="<|begin_of_text|>", trims=True, calls=False),
    "mistral": Family(MISTRAL, _MISTRAL, "</s>", "</s>", style="metaspace", bos="<s>", trims=True, strict=True),
    "mistral-legacy": Family(MISTRAL, _MISTRAL, "</s>", "</s>", style="prepend", bos="<s>", trims=True, strict=True),
    "gemma": Family(GEMMA, _GEMMA, "<eos>", "<end_of_turn>", style="gemma", bos="<bos>", trims=True, strict=True,
                    calls=False, plain=("\n\n", "\n\n\n", "  ", "<strong>")),
    "smollm2": Family(SMOLLM2, (*_IM, "<repo_name>", "<reponame>"), "<|im_end|>", "<|im_end|>", calls=False),
    "generation": Family(GENERATION, _IM, "<|im_end|>", "<|im_end|>", calls=False),
}  # fmt: skip


@cache
def tokenizer_of(name: str) -> Any:
    """Return a small fast tokenizer of the family."""
    return build(FAMILIES[name])


def build(family: Family) -> Any:
    """Return a small fast tokenizer with the tokens and the template of ``family``."""
    core = _core(family.style)
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in family.special])
    core.add_tokens([AddedToken(text, special=False, normalized=False) for text in family.plain])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=family.bos, eos_token=family.eos, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = family.template
    return tokenizer


def _core(style: str) -> Tokenizer:
    """Return a tokenizer trained on a few lines: byte-level, or SentencePiece's ways to write a space."""
    if style == "bytes":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=490, initial_alphabet=alphabet, show_progress=False)
        core.train_from_iterator(CORPUS.splitlines(), trainer)
        return core
    return _sentencepiece(style)


def _sentencepiece(style: str) -> Tokenizer:
    """Return a BPE with byte fallback, whose merges can spell `<s>`, as vocabularies made by SentencePiece can."""
    pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += sorted({char for char in CORPUS if char not in " \n"} | set('▁<>[]/|{}":,s_'))
    merges = [("s", ">"), ("<", "s>"), ("h", "e"), ("▁", "t"), ("▁t", "he"), ("▁", "a"), ("▁", "▁")]
    pieces += ["".join(pair) for pair in merges]
    if style == "gemma":
        pieces += ["\n"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))  # noqa: S106
    stripped = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if style == "metaspace":
        core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
        stripped.append(decoders.Strip(" ", 1, 0))
    elif style == "prepend":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        stripped.append(decoders.Strip(" ", 1, 0))
    else:
        core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence(stripped)
    return core


def as_message(turn: Any) -> dict[str, Any]:
    """Return a plain turn as transformers expects it."""
    message = {"role": turn.role, "content": turn.content}
    return message if turn.reasoning is None else {**message, "reasoning_content": turn.reasoning}


def as_json(value: Any) -> str:
    """Return ``value`` as templates write it."""
    return json.dumps(value, ensure_ascii=False)
