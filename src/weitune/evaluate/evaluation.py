"""A finished run judged: its base and its adapters on rows that were not learned.

    rows ─▶ examples ─▶ loss, perplexity        ┐
        └─▶ questions ─▶ answers ─▶ measures    ├─▶ evaluation.json, and the run's report
    general questions ─▶ loss, right answers    ┘

One model after the other is in memory (two at most), each with its adapter merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from weitune.data.prepare.holdout import ExampleSet, hold_out
from weitune.data.prepare.prepare import prepare
from weitune.errors import RunError
from weitune.evaluate.general import GeneralQuestion, general_questions, share_right
from weitune.evaluate.loss import MICRO_TOKENS, measure_loss
from weitune.evaluate.metrics import score
from weitune.evaluate.questions import Question, questions_in, rows_of
from weitune.files.json_text import json_text
from weitune.files.publish import publish_text
from weitune.generate.engine import Engine
from weitune.generate.run_folder import Run, Which
from weitune.generate.sampling import Sampling
from weitune.generate.stream import Answer
from weitune.messages import say
from weitune.model.capabilities import probe
from weitune.model.fast.attention import tree_attention
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.supervised import SupervisedModel
from weitune.progress import Progress, Stage

FILE = "evaluation.json"
_GENERAL_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Rows:
    """What models are judged by."""

    name: str
    examples: ExampleSet
    questions: Sequence[Question]


@dataclass(frozen=True, slots=True)
class Options:
    """How an evaluation is made."""

    max_new_tokens: int = 128
    batch_size: int = 8
    general: bool = True
    device: str | None = None


@dataclass(slots=True)
class ModelScores:
    """One model's results."""

    which: str
    step: int | None
    loss: float
    perplexity: float
    scores: dict[str, Any]
    general: dict[str, Any] | None
    answers: list[Answer] = field(default_factory=list)
    general_answers: list[str] = field(default_factory=list)


def rows_for(run: Run, files: Sequence[str] = (), limit: int | None = None) -> Rows:
    """Return the run's validation rows, or those in ``files``; at most ``limit`` of them are asked as questions.

    Raises RunError if the run has no validation data and no file is given, DataError if data are not in order.
    """
    from weitune.data.frame.framing import framing_for
    from weitune.model.load.tokenizer import load_tokenizer

    recipe = run.recipe
    files = files or recipe.validation_files
    if not files and recipe.validation is None:
        if run.made_elsewhere:
            raise RunError("evaluate.evaluation.adapter_was_made_elsewhere", path=run.path)
        raise RunError("evaluate.evaluation.run_has_no_validation", path=run.path)
    tokenizer = load_tokenizer(run.base_files())
    framing = framing_for(tokenizer, recipe.tokens)
    if files:
        name, examples = ", ".join(files), prepare(recipe, framing, files=files)
        questions = questions_in(files, recipe)
        return Rows(name, examples, questions[:limit])
    fraction = recipe.validation_fraction
    assert fraction is not None  # noqa: S101  (for mypy)
    held = hold_out(prepare(recipe, framing), fraction)[1]
    questions = questions_in(recipe.data, recipe, rows_of(held))
    return Rows(f"{fraction:g} of the data, held out", held, questions[:limit])


def judge_models(run: Run, rows: Rows, which: Sequence[Which], options: Options, stage: Stage) -> list[ModelScores]:
    """Return the results of the base and of every adapter in ``which``, in order."""
    questions = general_questions() if options.general else []
    return [_judge(run, rows, each, questions, options, stage) for each in ("base", *which)]


def _judge(
    run: Run, rows: Rows, which: Which, general: Sequence[GeneralQuestion], options: Options, stage: Stage
) -> ModelScores:
    name = f"step {which}" if isinstance(which, int) else which
    engine = run.engine(which, device=options.device)
    examples = [rows.examples[i] for i in range(len(rows.examples))]
    plain = [example for question in general for example in engine.framing.examples(question.answered)]
    loss = _Losses(engine)
    found = loss.of(examples, stage(say("evaluate.evaluation.loss", name=name)))
    general_loss = loss.of(plain, stage(say("evaluate.evaluation.general_loss", name=name))) if plain else None
    answers = _answers(
        engine, rows.questions, options.max_new_tokens, options, stage(say("evaluate.evaluation.answers", name=name))
    )
    asked = [Question(question.asked) for question in general]
    said = [
        a.text
        for a in _answers(engine, asked, _GENERAL_TOKENS, options, stage(say("evaluate.evaluation.general", name=name)))
    ]
    right = {"right": share_right(general, said), "loss": general_loss.mean} if general_loss is not None else None
    return ModelScores(
        which=name,
        step=which if isinstance(which, int) else None,
        loss=found.mean,
        perplexity=found.perplexity,
        scores=asdict(score(answers, [question.reference or "" for question in rows.questions])) if answers else {},
        general=right,
        answers=answers,
        general_answers=said,
    )


class _Losses:
    """The loss of an engine's model, whose capabilities are tried once."""

    def __init__(self, engine: Engine) -> None:
        model = engine.model
        with tree_attention(model, on=False):
            abilities = probe(model)
            blocks = BlockDecoder.of(model) if abilities.plain_blocks else None
        self._model = SupervisedModel(model, plain_head=abilities.plain_head, blocks=blocks)
        self._abilities = abilities

    def of(self, examples: Sequence[Any], progress: Progress) -> Any:
        model, abilities = self._model.model, self._abilities
        with tree_attention(model, on=abilities.shares_rows):
            return measure_loss(self._model, examples, abilities.layout, MICRO_TOKENS, model.device, progress)


def _answers(
    engine: Engine,
    questions: Sequence[Question],
    max_new_tokens: int,
    options: Options,
    progress: Progress,
) -> list[Answer]:
    """Return the likeliest answers, in batches of similar length; a question that is too long gets an empty one."""
    limit = engine.context_tokens
    lengths = [len(engine.framing.prompt(question.conversation)) for question in questions]
    fitting = [at for at in range(len(questions)) if limit is None or lengths[at] < limit]
    order = sorted(fitting, key=lengths.__getitem__)
    found: dict[int, Answer] = {}
    for start in range(0, len(order), options.batch_size):
        batch = order[start : start + options.batch_size]
        conversations = [questions[at].conversation for at in batch]
        sampling = Sampling(max_new_tokens=max_new_tokens)
        answers = engine.answers(conversations, sampling, batch_size=options.batch_size)
        found |= dict(zip(batch, answers, strict=True))
        progress(len(found), len(order))
    return [found.get(at, Answer("", (), stopped=False)) for at in range(len(questions))]


def as_json(
    rows: Rows, judged: Sequence[ModelScores], options: Options, win: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return an evaluation for programs and for the report."""
    general = general_questions() if options.general else []
    return {
        "rows": {"name": rows.name, "examples": len(rows.examples), "questions": len(rows.questions)},
        "max_new_tokens": options.max_new_tokens,
        "models": [
            {"which": j.which, "step": j.step, "loss": j.loss, "perplexity": _finite(j.perplexity),
             "scores": j.scores, "general": j.general} for j in judged
        ],
        "answers": [
            {"prompt": question.text, "reference": question.reference,
             "said": {j.which: j.answers[at].text for j in judged}} for at, question in enumerate(rows.questions)
        ],
        "general": [
            {"prompt": question.prompt, "accept": list(question.accept),
             "said": {j.which: j.general_answers[at] for j in judged}} for at, question in enumerate(general)
        ],
        "win_rate": win,
    }  # fmt: skip


def write(folder: Path, evaluation: dict[str, Any]) -> Path:
    """Write an evaluation into ``folder`` (a run's, say), in one moment, and return its path."""
    target = folder / FILE
    publish_text(json_text(evaluation, indent=1, allow_nan=False) + "\n", target)
    return target


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
