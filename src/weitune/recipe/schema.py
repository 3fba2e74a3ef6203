"""The recipe: every option of weitune, declared once.

Command-line options, YAML keys, ``docs/recipe.md`` and the editor's JSON schema all come from these classes. The text
under a field is its documentation; a unit is named there or in the field's name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a decoder block in the Llama naming that most model families share."""


def _as_list(value: Any) -> Any:
    """Let one name, or names separated by commas, stand for a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _one_as_list(value: Any) -> Any:
    """Let one file stand for a list of files (a comma may be part of a file's name)."""
    return [value] if isinstance(value, str) else value


def _one_text_as_list(value: Any) -> Any:
    """Let one text stand for a list of texts."""
    return [value] if isinstance(value, str) else value


def _fraction_or_files(value: Any) -> Any:
    """Let a number, also one written as text, stand for a fraction, and anything else for files."""
    if value is None:
        return None
    only = value[0] if isinstance(value, list) and len(value) == 1 else value
    try:
        fraction = float(only) if isinstance(only, str | int | float) and not isinstance(only, bool) else None
    except ValueError:
        fraction = None
    if fraction is None:
        if not value or value == [""]:
            raise ValueError("must be a fraction, or name at least one file")
        return _one_as_list(value)
    if not 0 < fraction < 1:
        raise ValueError("a fraction must be greater than 0 and less than 1")
    return fraction


Names = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
Files = Annotated[list[str], BeforeValidator(_one_as_list), Field(min_length=1)]
Texts = Annotated[list[str], BeforeValidator(_one_text_as_list)]


class Section(BaseModel):
    """A group of recipe fields; unknown keys are errors and values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `r: yes`, which pydantic would read as 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and not {bool, str} & {annotation, *get_args(annotation)}:
            raise ValueError("must not be a truth value")
        return value


class Tokens(Section):
    """How conversations become tokens."""

    max_length: int = Field(1024, ge=2)
    """Longest example, in tokens."""
    truncation: Literal["drop", "cut", "error"] = "drop"
    """What happens to a longer example: `drop` sets it aside, `cut` keeps its first `max_length` tokens, `error`
    refuses the data. Always counted and reported."""
    template: Literal["chat", "tutorial"] = "chat"
    """`chat` uses the tokenizer's own chat template; `tutorial` the literal ChatML framing of the self-llm tutorials
    (single turn, framing and answer tokenized apart, the pad token ends the answer)."""
    template_args: dict[str, Any] | None = None
    """Arguments for the chat template, such as `enable_thinking: false`; used again whenever the model answers."""
    supervise: Literal["all", "last"] = "all"
    """Which assistant turns are learned: `all`, or only the `last` of each conversation."""


class Lora(Section):
    """The adapter: low-rank updates of linear layers (LoRA, arXiv 2106.09685)."""

    r: int = Field(8, ge=1)
    """Rank of the update."""
    alpha: float = Field(32, gt=0)
    """The update is scaled by alpha / r."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability of dropping an element of an adapter's input while training."""
    target_modules: Names = list(PROJECTIONS)
    """Names of the linear layers that get an adapter."""


class Train(Section):
    """The optimisation: AdamW with betas 0.9 and 0.999."""

    batch_size: int = Field(16, ge=1)
    """Examples in one optimizer step, over all devices together. An epoch's last step takes what is left."""
    micro_tokens: int | Literal["auto"] = "auto"
    """Tokens in one forward pass, at least 1. Changes memory and speed, never the result."""
    epochs: int = Field(3, ge=1)
    """How often every example is seen."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps, if that is before the last epoch's end."""
    learning_rate: float = Field(1e-4, gt=0)
    """Highest learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up: to 0 along a line or a half cosine, or not at all."""
    warmup_ratio: float = Field(0.0, ge=0, le=1)
    """Share of the steps during which the learning rate rises from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm when theirs is larger."""
    seed: int = Field(42, ge=0, lt=2**63)
    """Fixes the adapter's start, the order of the examples and every dropout mask."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the base model. `auto`: bf16 on a GPU or CPU that computes in it, fp32 elsewhere. The adapter
    is always trained in fp32."""
    log_every: int = Field(10, ge=1)
    """Steps between two printed log lines; `events.jsonl` has every step."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between two checkpoints."""
    keep_checkpoints: int = Field(3, ge=1)
    """How many of the newest checkpoints stay, besides the one with the lowest validation loss."""
    evaluate_every: int = Field(50, ge=1)
    """Steps between two evaluations on the validation data, each of which writes a checkpoint. The model is also
    evaluated before the first step and after the last."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations in a row without a new lowest validation loss; `adapter` is then the best
    checkpoint's, not the last one's. Needs `validation`."""
    sample_prompts: Texts | None = None
    """Prompts that are answered at each evaluation; the first 3 of the validation data if not given. An empty list
    asks nothing."""
    sample_tokens: int = Field(64, ge=1)
    """Longest sample answer, in tokens."""

    @field_validator("micro_tokens")
    @classmethod
    def _at_least_one_token(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1")
        return value


class Recipe(Section):
    """Everything that decides the outcome of a run."""

    model: str = Field(min_length=1)
    """Local folder, hub id such as `Qwen/Qwen2.5-7B-Instruct`, `.gguf` file, or `builtin:smollm2-135m`."""
    hub: Literal["huggingface", "modelscope"] = "huggingface"
    """Where a hub id is looked up; `modelscope` needs the extra of that name."""
    revision: str | None = None
    """Branch, tag or commit of the model on its hub."""
    data: Files
    """One or more files, folders or hub ids with dialogues (docs/data.md)."""
    validation: Annotated[float | list[str], BeforeValidator(_fraction_or_files)] | None = None
    """What the model is judged by while it trains: a fraction of `data` such as `0.02`, held out so that rows with
    the same prompt stay together and chosen without regard to the seed, or files of its own."""
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """How much the rows of a file count in the loss, by its name in `data`, such as `{extra.jsonl: 0.5}`; 1 for a file
    that is not named."""
    format: Literal["alpaca", "sharegpt", "messages", "prompt-completion"] | None = None
    """Format of the rows; recognised from the first row of each file if not given."""
    columns: dict[str, str] | None = None
    """For a table with column names of its own: which column holds which part, such as
    `{user: 问题, assistant: 回答}`. Parts: system, user, assistant."""
    system: str | None = None
    """System prompt for conversations that have none of their own, in training and afterwards."""
    output: str | None = None
    """The run's folder; `runs/<model>-<time>` if not given."""
    tokens: Tokens = Tokens()
    """How conversations become tokens."""
    lora: Lora = Lora()
    """The adapter."""
    train: Train = Train()
    """The optimisation."""

    @field_validator("train")
    @classmethod
    def _patience_needs_validation(cls, value: Train, info: ValidationInfo) -> Train:
        if value.patience is not None and info.data.get("validation", ...) is None:
            raise ValueError("`patience` counts evaluations, so it needs `validation` data")
        return value
