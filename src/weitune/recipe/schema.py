"""The recipe: every option of weitune, declared once.

Command-line options, YAML keys, ``docs/recipe.md`` and the editor's JSON schema all come from these classes. The text
under a field is its documentation; a unit is named there or in the field's name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from weitune.recipe.encodings import check_encoding

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a decoder block in the Llama naming that most model families share."""


def _as_list(value: Any) -> Any:
    """Let one name, or names separated by commas, stand for a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _as_ranges(value: Any) -> Any:
    """Let a number stand for a range of one, and ranges separated by commas for a list."""
    parts = _as_list(str(value) if isinstance(value, int) else value)
    return [str(part) if isinstance(part, int) else part for part in parts] if isinstance(parts, list) else parts


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
Ranges = Annotated[
    list[Annotated[str, Field(pattern=r"^\d+(-\d+)?$")]], BeforeValidator(_as_ranges), Field(min_length=1)
]
"""Whole numbers from 0 and ranges of them with both ends, such as `0-7`."""
TAKEN_FROM_BASE = ("pissa", "olora")
"""Starts of an adapter that change the base's weights."""
Storage = Literal["auto", "fp32", "bf16", "int8", "nf4"]
Recompute = Literal["none", "feed-forward", "block"]
QUANTIZED: tuple[Storage, ...] = ("int8", "nf4")
"""Storage that rounds the base's linear layers."""


S = TypeVar("S")


def _together(section: S, *rules: tuple[bool, str]) -> S:
    """Return ``section`` unless one of ``rules``, (is broken, what to say), is. Raises ValueError with all that are."""
    broken = [message for wrong, message in rules if wrong]
    if broken:
        raise ValueError("; ".join(broken))
    return section


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
    learn_empty_reasoning: bool = False
    """Learn the empty reasoning block (such as `<think></think>`) that a thinking model's template writes before an
    answer without reasoning. It is context by default, since learning it teaches the model not to think
    (docs/data.md)."""


class Lora(Section):
    """The adapter: low-rank updates of linear layers (LoRA, arXiv 2106.09685). `lora: none` trains the whole model
    instead, in fp32: for small models."""

    r: int = Field(8, ge=1)
    """Rank of the update."""
    alpha: float = Field(32, gt=0)
    """The update is scaled by alpha / r."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability of dropping an element of an adapter's input while training."""
    target_modules: Names = list(PROJECTIONS)
    """Names of the linear layers that get an adapter; `all-linear` for all but the output head."""
    layers: Ranges | None = None
    """Decoder layers that get an adapter, from 0, such as `0-7,12`; all if not given."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] | None = None
    """Other ranks for some layers, by the end of their name or a regular expression, such as `{down_proj: 16}`."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """Other alphas for some layers, named likewise."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead (rank stabilisation, arXiv 2312.03732)."""
    dora: bool = False
    """Train the length of every row of a weight apart from its direction (DoRA, arXiv 2402.09353)."""
    init: Literal["default", "gaussian", "pissa", "olora", "eva", "loftq"] = "default"
    """How the adapter starts. `default`: A uniform, B zero. `gaussian`: A normal, B zero. `pissa` (arXiv 2404.02948)
    and `olora` (arXiv 2406.01775) take the adapter out of the base's weights; it is saved as a plain adapter of rank
    2 r that fits the base as it was. `eva` (arXiv 2410.07170): A from the inputs that the data make, B zero. `loftq`
    (arXiv 2310.08659): what 4-bit storage rounds away; needs `train.storage: nf4`."""
    init_from: str | None = None
    """Start from this adapter: a run, or a folder as PEFT writes it. It must have the rank, alpha and layers given
    here."""
    plus_ratio: float = Field(1, ge=1)
    """How many times the learning rate B gets (LoRA+, arXiv 2402.12354); its authors advise 16."""
    freeze_a: bool = False
    """Train B only (LoRA-FA, arXiv 2308.03303)."""
    modules_to_save: Names | None = None
    """Modules that are trained whole and saved with the adapter, such as `lm_head`."""
    train_tokens: Names | None = None
    """Tokens of the vocabulary whose embeddings are trained too, such as a reserved token that is given a meaning."""

    @model_validator(mode="after")
    def _one_start(self) -> Lora:
        taken = self.init in TAKEN_FROM_BASE
        return _together(
            self,
            (bool(self.init_from and self.init != "default"), "lora.init_from: an adapter that exists had its start"),
            (self.dora and taken, f"lora.dora: an adapter that {self.init} starts is saved as plain LoRA"),
            (self.freeze_a and taken, f"lora.freeze_a: after a start by {self.init} both A and B are trained"),
            (self.freeze_a and self.plus_ratio != 1, "lora.plus_ratio: with lora.freeze_a there is only B to train"),
        )


LoraOrNone = Annotated[
    Annotated[Lora, Tag("group")] | Annotated[Literal["none"], Tag("word")],
    Discriminator(lambda value: "word" if isinstance(value, str) else "group"),  # one branch: one list of problems
]


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
    storage: Storage = "auto"
    """How the frozen base lies in memory; it is computed in `precision`, layer by layer. `auto`: as it is computed.
    `bf16` halves fp32. `int8` and `nf4` (4 bits, QLoRA, arXiv 2305.14314) round its linear layers and need the extra
    `quantized`."""
    recompute: Literal["auto"] | Recompute = "auto"
    """What the backward pass computes again instead of keeping it: nothing, the feed-forward layers' inner values, or
    whole blocks. `auto`: as much as memory asks for. Changes memory and speed, never the result."""
    shard: bool = False
    """Divide the frozen base among the processes (`--devices`) instead of giving each a copy, for a base that fits no
    single device; every layer is put together while it is computed (docs/cluster.md). Changes memory and speed, never
    the result."""
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
    save_on_each_node: bool = False
    """Write the run's folder on every machine, where they share no disk."""

    @field_validator("micro_tokens")
    @classmethod
    def _at_least_one_token(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1")
        return value


class Log(Section):
    """Where figures go besides the run's folder."""

    trackers: Annotated[
        list[Literal["tensorboard", "wandb", "swanlab", "trackio", "mlflow"]], BeforeValidator(_as_list)
    ] = []
    """Trackers that get the figures of every step and evaluation, through accelerate; each needs the extra of its
    name. TensorBoard, wandb and SwanLab write into the run's folder, below `logs`, MLflow and trackio where
    `MLFLOW_TRACKING_URI` and `TRACKIO_DIR` say."""


def _needs_whole_weights(lora: Lora) -> bool:
    """Return whether the adapter looks at whole weights of the base, or trains some, apart from computing a layer."""
    return bool(lora.dora or lora.init in (*TAKEN_FROM_BASE, "eva") or lora.modules_to_save or lora.train_tokens)


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
    encoding: str | dict[str, str] | None = None
    """Encoding of text files (JSON, CSV, TSV) as Python calls it, such as `cp949`, or of each by its name in `data`,
    such as `{old.csv: cp949}`; found out if not given."""
    columns: dict[str, str] | None = None
    """For a table with column names of its own: which column holds which part, such as
    `{user: 问题, assistant: 回答}`. Parts: system, user, assistant."""
    system: str | None = None
    """System prompt for conversations that have none of their own, in training and afterwards."""
    output: str | None = None
    """The run's folder; `runs/<model>-<time>` if not given."""
    tokens: Tokens = Tokens()
    """How conversations become tokens."""
    lora: LoraOrNone = Lora()
    """The adapter; `none`: train the whole model."""
    train: Train = Train()
    """The optimisation."""
    log: Log = Log()
    """Where figures go besides the run's folder."""

    @field_validator("system")
    @classmethod
    def _characters(cls, value: str | None) -> str | None:
        """Refuse bytes of a command line that are no text: no tokenizer takes them."""
        if value is not None and any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError("must be text in UTF-8")
        return value

    @field_validator("encoding", mode="before")
    @classmethod
    def _number_for_a_name(cls, value: Any) -> Any:
        """Let `encoding: 1252` be a name: Python calls some encodings by a number."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("encoding")
    @classmethod
    def _known_encodings(cls, value: str | dict[str, str] | None) -> str | dict[str, str] | None:
        for name in value.values() if isinstance(value, dict) else [value] if value is not None else []:
            check_encoding(name)
        return value

    @field_validator("train")
    @classmethod
    def _patience_needs_validation(cls, value: Train, info: ValidationInfo) -> Train:
        if value.patience is not None and info.data.get("validation", ...) is None:
            raise ValueError("`patience` counts evaluations, so it needs `validation` data")
        return value

    @property
    def may_be_sharded(self) -> bool:
        """Whether ``train.shard`` could divide the base."""
        whole = self.lora == "none" or _needs_whole_weights(self.lora)
        return not whole and self.train.storage not in QUANTIZED

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        """Refuse what cannot go together across groups."""
        init = "none" if self.lora == "none" else self.lora.init
        storage, precision = self.train.storage, self.train.precision
        quantized = storage in QUANTIZED
        return _together(
            self,
            (
                init == "loftq" and storage != "nf4",
                "lora.init loftq: it makes good for train.storage nf4; ask for that",
            ),
            (init in TAKEN_FROM_BASE and quantized, f"lora.init {init}: it needs weights that are not {storage}"),
            (init == "none" and precision == "bf16", "train.precision: a whole model is trained in fp32"),
            (init == "none" and storage not in {"auto", "fp32"}, "train.storage: a whole model is trained in fp32"),
            (precision == "bf16" and storage == "fp32", "train.storage: fp32 is wider than train.precision bf16"),
            (
                self.train.shard and not self.may_be_sharded,
                "train.shard: it divides a base in fp32 or bf16 under plain LoRA, without lora.dora, modules_to_save, "
                "train_tokens and a start out of the base",
            ),
        )
