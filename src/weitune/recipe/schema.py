"""The recipe: every option of weitune, declared once.

Command-line options, YAML keys, ``docs/recipe.md`` and the editor's JSON schema all come from these classes. The text
under a field is its documentation; a unit is named there or in the field's name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from weitune.messages import say
from weitune.recipe.encodings import Encodings
from weitune.recipe.keep import KeepOrShare
from weitune.recipe.log import Log
from weitune.recipe.preference import MethodOrPreference, with_defaults
from weitune.recipe.section import Files, FractionOrFiles, Names, Ranges, RowFormat, Section, Texts, check_rules
from weitune.recipe.values import Expression, JsonObject

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a decoder block in the Llama naming that most model families share."""
AUTO = (["auto"], ["all-linear"])
"""Values of ``lora.target_modules`` for all linear layers of the decoder blocks; the second is the older name."""
TAKEN_FROM_BASE = ("pissa", "olora")
"""Values of ``lora.init`` that change the base's weights."""
Storage = Literal["auto", "fp32", "bf16", "int8", "nf4"]
Recompute = Literal["none", "feed-forward", "block"]
QUANTIZED: tuple[Storage, ...] = ("int8", "nf4")
"""Storage that rounds the base's linear layers."""


class Tokens(Section):
    """How conversations become tokens."""

    max_length: int = Field(1024, ge=2)
    """Longest example, in tokens; 2048 with `preference` if not given."""
    truncation: Literal["drop", "cut", "error"] = "drop"
    """What happens to a longer example: `drop` sets it aside, `cut` keeps its first `max_length` tokens, `error`
    refuses the data. Always counted and reported."""
    template: Literal["chat", "tutorial"] = "chat"
    """`chat` uses the tokenizer's own chat template; `tutorial` the literal ChatML framing of the self-llm tutorials
    (single turn, framing and answer tokenized apart, the pad token ends the answer)."""
    template_args: JsonObject | None = None
    """Arguments for the chat template, such as `enable_thinking: false`; used again whenever the model answers."""
    supervise: Literal["all", "last"] = "all"
    """Which assistant turns are learned: `all`, or only the `last` of each conversation."""
    learn_empty_reasoning: bool = False
    """Learn the empty reasoning block (such as `<think></think>`) that a thinking model's template writes before an
    answer without reasoning. It is context by default, since learning it teaches the model not to think
    (docs/learned.md)."""


class Lora(Section):
    """The adapter: low-rank updates of linear layers (LoRA, arXiv 2106.09685). `lora: none` trains the whole model
    instead, in fp32: for small models."""

    r: int = Field(8, ge=1)
    """Rank of the update."""
    alpha: float = Field(32, gt=0)
    """The update is scaled by alpha / r."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability of dropping an element of an adapter's input while training; 0 if a `preference` has a reference."""
    target_modules: Names = Field(["auto"])
    """Names of the linear layers that get an adapter. `auto`: every linear layer of the decoder blocks, whatever it is
    called, but not the routers of experts; on models like Llama and Qwen these are q_proj, k_proj, v_proj, o_proj,
    gate_proj, up_proj and down_proj. `all-linear` means the same."""
    experts: bool = False
    """Adapt the experts of a mixture of experts too, never the router. Where a token goes to k of them, each gets the
    rank max(1, r / k), rounded down, the scale of the other layers, and no dropout. Every expert's weights are copied
    whenever a layer runs, so this takes much more memory and time (docs/how-it-works.md)."""
    layers: Ranges | None = None
    """Decoder layers that get an adapter, from 0, such as `0-7,12`; all if not given."""
    rank_pattern: dict[Expression, Annotated[int, Field(ge=1)]] | None = None
    """Other ranks for some layers, by the end of their name or a regular expression, such as `{down_proj: 16}`."""
    alpha_pattern: dict[Expression, Annotated[float, Field(gt=0)]] | None = None
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
    def _keys_fit_together(self) -> Lora:
        taken = self.init in TAKEN_FROM_BASE
        drawn = self.init in {"default", "gaussian"}
        return check_rules(
            self,
            (bool(self.init_from and self.init != "default"), say("recipe.schema.two_starts", init=self.init)),
            (self.dora and taken, say("recipe.schema.dora_with_start", init=self.init)),
            (self.freeze_a and taken, say("recipe.schema.freeze_a_with_start", init=self.init)),
            (self.freeze_a and self.plus_ratio != 1, say("recipe.schema.freeze_a_with_plus_ratio")),
            (self.experts and self.dora, say("recipe.schema.experts_with_dora")),
            (self.experts and not drawn, say("recipe.schema.experts_with_start", init=self.init)),
        )


LoraOrNone = Annotated[
    Annotated[Lora, Tag("group")] | Annotated[Literal["none"], Tag("word")],
    Discriminator(lambda value: "word" if isinstance(value, str) else "group"),  # one branch: one list of problems
]


class Train(Section):
    """The optimisation: AdamW with betas 0.9 and 0.999."""

    batch_size: int = Field(16, ge=1)
    """Examples in one optimizer step (with `preference`, pairs or judged answers), over all devices together. An
    epoch's last step takes what is left."""
    micro_tokens: int | Literal["auto"] = "auto"
    """Tokens in one forward pass, at least 1. Changes memory, speed and the draw of dropout masks, nothing else."""
    epochs: int = Field(3, ge=1)
    """How often every example is seen."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps, if that is before the last epoch's end."""
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = 1e-4
    """Highest learning rate; 1e-5 with `preference` if not given. `auto`: a first value from the width of the model,
    steps, epochs and `lora.alpha`, where `weitune tune` has not found a better one (docs/evaluation.md)."""
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
    `quantized`. A base that was published in FP8 or MXFP4 is dequantized into this."""
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
    """Prompts answered at each evaluation; the first 3 of the validation data if not given, none if it is `[]`."""
    sample_schema: str | None = None
    """A file with a JSON schema that sample answers are kept to, as by `weitune eval --schema`."""
    sample_tokens: int = Field(64, ge=1)
    """Longest sample answer, in tokens."""
    save_on_each_node: bool = False
    """Write the run's folder on every machine, where they share no disk."""

    @field_validator("micro_tokens")
    @classmethod
    def _at_least_one_token(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(say("recipe.schema.at_least_one"))
        return value

    @property
    def rate(self) -> float:
        """The learning rate. Raises ValueError while it is left to be chosen."""
        return float(self.learning_rate)


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
    validation: FractionOrFiles | None = None
    """What the model is judged by while it trains: a fraction of `data` such as `0.02`, held out so that rows with
    the same prompt stay together and chosen without regard to the seed, or files of its own."""
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """How much the rows of a file count in the loss, by its name in `data`, such as `{extra.jsonl: 0.5}`; 1 for a file
    that is not named."""
    format: RowFormat | None = None
    """Format of the rows; recognised from the first row of each file if not given."""
    encoding: Encodings | None = None
    """Encoding of text files (JSON, CSV, TSV) as Python calls it, such as `cp949`, or of each by its name in `data`,
    such as `{old.csv: cp949}`; found out if not given."""
    columns: dict[str, str] | None = None
    """For a table with column names of its own: which column holds which part, such as
    `{user: 问题, assistant: 回答}`. Parts: system, user, assistant, liked; or system, user, chosen, rejected."""
    system: str | None = None
    """System prompt for conversations that have none of their own, in training and afterwards."""
    output: str | None = None
    """The run's folder; `runs/<model>-<time>` if not given."""
    preference: MethodOrPreference | None = None
    """Learn from answers that were compared or judged; a word is the method."""
    tokens: Tokens = Field(Tokens(), validate_default=True)
    """How conversations become tokens."""
    lora: LoraOrNone = Field(Lora(), validate_default=True)
    """The adapter; `none`: train the whole model."""
    keep: KeepOrShare | None = None
    """Examples that are learned beside `data`, so that the model keeps what it knew; a number is their share."""
    train: Train = Field(Train(), validate_default=True)
    """The optimisation."""
    log: Log = Log()
    """Where figures go besides the run's folder."""

    @field_validator("system")
    @classmethod
    def _no_lone_surrogates(cls, value: str | None) -> str | None:
        """Refuse bytes of a command line that are not valid UTF-8: no tokenizer takes them."""
        if value is not None and any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError(say("recipe.schema.not_utf_8"))
        return value

    @field_validator("tokens", "lora", "train")
    @classmethod
    def _defaults_of_preference(cls, value: Any, info: ValidationInfo) -> Any:
        return with_defaults(str(info.field_name), value, info.data.get("preference"))

    @field_validator("train")
    @classmethod
    def _patience_needs_validation(cls, value: Train, info: ValidationInfo) -> Train:
        if value.patience is not None and info.data.get("validation", ...) is None:
            raise ValueError(say("recipe.schema.patience_without_validation"))
        return value

    @property
    def adapter(self) -> Lora | None:
        """The adapter that is trained; None where the whole model is (``lora: none``)."""
        return None if self.lora == "none" else self.lora

    @property
    def validation_fraction(self) -> float | None:
        """The part of ``data`` that is held out for validation; None if there is none."""
        return self.validation if isinstance(self.validation, float) else None

    @property
    def validation_files(self) -> list[str]:
        """The validation data that have files of their own."""
        return self.validation if isinstance(self.validation, list) else []

    @property
    def may_be_sharded(self) -> bool:
        """Whether ``train.shard`` could divide the base: not if an adapter needs whole weights, or trains some."""
        lora = self.adapter
        if lora is None or lora.experts or self.train.storage in QUANTIZED:
            return False
        return not (lora.dora or lora.init in (*TAKEN_FROM_BASE, "eva") or lora.modules_to_save or lora.train_tokens)

    @model_validator(mode="after")
    def _groups_fit_together(self) -> Recipe:
        lora, train, preference = self.adapter, self.train, self.preference
        storage, precision, init = train.storage, train.precision, lora.init if lora else None
        return check_rules(
            self,
            (init == "loftq" and storage != "nf4", say("recipe.schema.loftq_without_nf4")),
            (
                init in TAKEN_FROM_BASE and storage in QUANTIZED,
                say("recipe.schema.start_with_quantized", init=init, storage=storage),
            ),
            (lora is None and precision == "bf16", say("recipe.schema.whole_model_precision")),
            (lora is None and storage not in {"auto", "fp32"}, say("recipe.schema.whole_model_storage")),
            (precision == "bf16" and storage == "fp32", say("recipe.schema.storage_wider")),
            (train.shard and not self.may_be_sharded, say("recipe.schema.shard_with_others")),
            (bool(preference and self.keep), say("recipe.preference.with_keep")),
            (bool(preference) and train.learning_rate == "auto", say("recipe.preference.with_auto_rate")),
            (bool(preference) and self.tokens.supervise != "all", say("recipe.preference.with_supervise")),
            (
                bool(preference and preference.has_reference and lora and lora.dropout),
                say("recipe.preference.with_dropout", method=preference and preference.method),
            ),
        )
