"""Tiny chat models and tokenizers, built in-process: real architectures, real tokenizer files, random weights.

``tiny_model`` has two layers, hidden size 64 and 512 tokens in float32. ``tiny_tokenizer`` is a byte-level BPE trained
on the few lines below, with the control tokens and the chat template of a family. Both take milliseconds and give the
same result every time, so a test may keep figures from them within one version of the libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCABULARY = 512
MERGED = 490
"""Tokens of the BPE; the control tokens follow. As in Qwen, the model's vocabulary is larger than the tokenizer's."""

CORPUS = """\
You are a helpful assistant. Who are you? I am the assistant, and I am here to help you with what you ask.
What is the capital of France? The capital of France is Paris. What can you do? I can answer what you ask me.
Thank you for the answer. You are welcome; tell me what else you would like to know about the house and the garden.
The river runs past the old house, and the children play in the garden until the evening light is gone.
Tell me a story about the sea. Once there was a fisherman who went out to sea every morning and came back every night.
How do I cook rice? Wash the rice, add water, bring the water to the boil, and let it stand until it is done.
你是谁？我是你的助手，很高兴为你服务。你是什么人？我是皇帝身边的女人，我家住在河边。
今天天气怎么样？今天天气很好，我们可以去花园走走。你喜欢什么？我喜欢看花，也喜欢听故事。
请告诉我一个故事。从前有一个女人，她住在河边的房子里，每天早上都去花园看花。
谢谢你的回答。不客气，你还想知道什么？你现在要扮演皇帝身边的女人，请用她的话回答我的问题。
皇上今天来了吗？皇上今天没有来，皇上在花园里。你家有几个人？我家有三个人，我的父亲，我的母亲和我。
"""

_CHATML_TURN = "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
_CHATML = (
    "{%- for message in messages %}" + _CHATML_TURN + "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
_CHATML_DEFAULT = (
    "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are Tiny.<|im_end|>\\n' }}{%- endif %}"
    + _CHATML
)
# Like Qwen3: an answer after the last question carries a thinking block, an earlier one has lost it.
_QWEN3 = (
    """\
{%- set asked = namespace(at=-1) %}
{%- for message in messages %}{%- if message.role == 'user' %}{%- set asked.at = loop.index0 %}{%- endif %}{%- endfor %}
{%- for message in messages %}
{%- if message.role == 'assistant' and loop.index0 > asked.at %}
{{- '<|im_start|>assistant\\n<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' }}
{{- message.content + '<|im_end|>\\n' }}
{%- else %}
"""
    + "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    + """
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
)
_LLAMA3 = (
    "{{ bos_token }}{%- for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
# Like Mistral: the system prompt opens the first user turn, and roles must alternate.
_MISTRAL = """\
{%- set start = 1 if messages[0].role == 'system' else 0 %}
{{- bos_token }}
{%- for message in messages[start:] %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{%- endif %}
{%- if message.role == 'user' %}
{{- '[INST] ' + (messages[0].content + '\\n\\n' if start and loop.first else '') + message.content + '[/INST]' }}
{%- else %}{{- ' ' + message.content + eos_token }}{%- endif %}
{%- endfor %}"""
# Like Gemma: no system role at all, the assistant is called model, and contents lose their outer spaces.
_GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{%- endif %}
{%- for message in messages %}
{%- set role = 'model' if message.role == 'assistant' else message.role %}
{{- '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""


@dataclass(frozen=True)
class Family:
    """Control tokens and chat template of a family of tokenizers; ``plain`` tokens are added but not special."""

    special: tuple[str, ...]
    eos: str
    pad: str
    template: str | None
    bos: str | None = None
    plain: tuple[str, ...] = ()


_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATES: Mapping[str, Family] = {
    "chatml": Family(_IM, "<|im_end|>", "<|endoftext|>", _CHATML),
    "chatml-default": Family(_IM, "<|im_end|>", "<|endoftext|>", _CHATML_DEFAULT),
    "qwen3": Family(_IM, "<|im_end|>", "<|endoftext|>", _QWEN3, plain=("<think>", "</think>")),
    "llama3": Family(
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>", "<|end_of_text|>", _LLAMA3, bos="<|begin_of_text|>",
    ),
    "mistral": Family(("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), "</s>", "<unk>", _MISTRAL, bos="<s>"),
    "gemma": Family(
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<pad>", _GEMMA, bos="<bos>"
    ),
    "untemplated": Family(("<|endoftext|>",), "<|endoftext|>", "<|endoftext|>", None),
    "untemplated-chatml": Family(_IM, "<|endoftext|>", "<|endoftext|>", None),
}  # fmt: skip

TEMPLATE_OF = {"qwen2": "chatml-default", "qwen3": "qwen3", "llama": "llama3", "mistral": "mistral", "gemma": "gemma"}
"""The template that each family of :func:`tiny_model` has in the wild."""

SHAPE: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,  # wide enough that the two best tokens are never within rounding of each other
    "attn_implementation": "sdpa",
}


def longrope(short: int) -> dict[str, Any]:
    """Return rotary embeddings for :data:`SHAPE` with other factors for rows of more than ``short`` tokens."""
    half = SHAPE["head_dim"] // 2
    return {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * half,
        "long_factor": [1.5 + 3 * k for k in range(half)],
        "factor": 4.0,
        "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": short,
    }


def tiny_tokenizer(template: str = "chatml") -> Any:
    """Return a fast tokenizer with the control tokens and the chat template named ``template`` (see TEMPLATES)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    family = TEMPLATES[template]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(
        CORPUS.splitlines(), trainers.BpeTrainer(vocab_size=MERGED, initial_alphabet=alphabet, show_progress=False)
    )
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in family.special])
    core.add_tokens([AddedToken(text, special=False, normalized=False) for text in family.plain])
    if family.bos:  # as the originals do: plain encoding puts the opening token first
        core.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A",
            pair=f"{family.bos} $A {family.bos} $B",
            special_tokens=[(family.bos, core.token_to_id(family.bos))],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=family.bos, eos_token=family.eos, pad_token=family.pad,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = family.template
    return tokenizer


def tiny_model(family: str = "qwen2", seed: int = 0, **config_overrides: Any) -> Any:
    """Return a causal language model of ``family`` (a key of TEMPLATE_OF) with random float32 weights, in eval mode.

    The end-of-turn and pad tokens are those of :func:`tiny_tokenizer` with the family's template, unless overridden.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokens = tiny_tokenizer(TEMPLATE_OF[family])
    shape = {
        **SHAPE,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
        **({"sliding_window": None} if family == "mistral" else {}),
        **config_overrides,
    }
    config = AutoConfig.for_model(family, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def save_tiny(folder: Path | str, family: str = "qwen2", seed: int = 0, template: str | None = None) -> Path:
    """Write a model and its tokenizer to ``folder``, as a user has them, and return the folder.

    A qwen2 gets the sampling flags that Qwen ships in its generation config; greedy decoding must not heed them.
    """
    template = template or TEMPLATE_OF[family]
    tokenizer = tiny_tokenizer(template)
    model = tiny_model(family, seed, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    if family == "qwen2":
        flags = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
        model.generation_config.update(**flags)
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    if template == "gemma":  # Gemma ends turns with a token that is not its eos, and names both here
        end_of_turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, end_of_turn]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def save_tiny_adapter(folder: Path | str, model: Path | str, seed: int = 1) -> Path:
    """Write a PEFT adapter for the model in folder ``model``, with random weights that change its answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return Path(folder)


def save_tiny_run(
    folder: Path | str, family: str = "qwen2", *, checkpoints: tuple[int, ...] = (), **recipe: Any
) -> Path:
    """Write a run as `weitune train` leaves it: model, recipe, final adapter, and a different one per checkpoint."""
    from weitune.recipe.load import build_recipe, dump_recipe

    folder = Path(folder)
    model = save_tiny(folder.parent / f"{folder.name}-model", family)
    for seed, step in enumerate(checkpoints):
        save_tiny_adapter(folder / f"checkpoint-{step}", model, seed=10 + seed)
    save_tiny_adapter(folder / "adapter", model)
    train = {"precision": "fp32", **recipe.pop("train", {})}  # answers are the same where the processor knows bf16
    tree = {"model": str(model), "data": ["dialogues.json"], "output": str(folder), "train": train, **recipe}
    (folder / "recipe.yaml").write_text(dump_recipe(build_recipe(tree)), encoding="utf-8")
    return folder
