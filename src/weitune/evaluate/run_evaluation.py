"""Evaluate a run: its base and its adapters, on rows that were not learned.

    rows ─▶ examples ─▶ loss, perplexity        ┐
        └─▶ questions ─▶ answers ─▶ measures    ├─▶ Evaluation
    general questions ─▶ loss, right answers    ┤
    training questions ─▶ answers known by heart┘

One model after the other is in memory (two at most), each with its adapter merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from weitune.data.conversation import Example
from weitune.data.frame.framing import Framing
from weitune.data.preference.values import Group, Item
from weitune.data.prepare.holdout import ItemSet, hold_out
from weitune.data.prepare.prepare import prepare_items
from weitune.errors import DataError, InputError, RunError
from weitune.evaluate.engine_losses import EngineLosses
from weitune.evaluate.evaluation import (
    AnsweredGeneralQuestion,
    AnsweredQuestion,
    EvaluatedRows,
    Evaluation,
    GeneralScores,
    Memorised,
    ModelScores,
)
from weitune.evaluate.gate import Bounds, judge_bounds
from weitune.evaluate.general import GeneralQuestion, general_questions, right_by_language, shares
from weitune.evaluate.general_base import GeneralResult, of_base
from weitune.evaluate.intervals import paired_change
from weitune.evaluate.metrics import score
from weitune.evaluate.pairs import Sums, score_pairs
from weitune.evaluate.questions import Question, first_questions, learned_questions, questions_in, rows_of, short_enough
from weitune.generate.engine import BATCH_SIZE, Engine
from weitune.generate.run import Run
from weitune.generate.sampling import Sampling
from weitune.generate.stream import Answer
from weitune.messages import say
from weitune.model.load.fingerprint import base_fingerprints, stored_state
from weitune.model.load.tokenizer import open_framing
from weitune.progress import Progress, Stage, enter_phase
from weitune.recipe.schema import Recipe
from weitune.run.machine import arithmetic
from weitune.run.run_folder import Which

_GENERAL_TOKENS = 48


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """What models are evaluated on: examples for the loss, and questions to answer."""

    name: str
    examples: Sequence[Example]
    questions: Sequence[Question]
    learned: Sequence[Question] = ()
    """Questions of the training data, to find answers that were learned by heart."""
    groups: Sequence[Group] = ()
    """Of preferences; the ``examples`` are then their liked answers."""
    unmeasured: str = ""
    """Why there are no ``learned`` questions, if some were asked for."""

    @classmethod
    def of_items(
        cls, name: str, items: ItemSet[Item], questions: Sequence[Question], learned: Sequence[Question]
    ) -> EvaluationSet:
        every = [items[i] for i in range(len(items))]
        groups = [item for item in every if isinstance(item, Group)]
        liked = [
            answer for group in groups for answer, is_liked in zip(group.answers, group.liked, strict=True) if is_liked
        ]
        examples = [item for item in every if isinstance(item, Example)]
        return cls(name, examples + liked, questions, learned, groups)


@dataclass(frozen=True, slots=True)
class Options:
    """How an evaluation is made."""

    max_new_tokens: int = 128
    batch_size: int = BATCH_SIZE
    general: bool = True
    device: str | None = None
    schema: Mapping[str, Any] | None = None
    """What answers to the questions of the rows must fit, as JSON; other questions are answered freely."""


@dataclass(frozen=True, slots=True)
class _ModelResult:
    scores: ModelScores
    answers: list[str]
    general_answers: list[str]
    general_right: dict[str, list[bool]]
    sums: Sequence[Sums]
    """Log-probabilities of the answers of each group."""


def evaluation_set(
    run: Run, files: Sequence[str] = (), limit: int | None = None, training_rows: int = 0
) -> EvaluationSet:
    """Return the run's validation rows, or those in ``files``; at most ``limit`` of them are asked as questions.

    The first ``training_rows`` questions of the training data come with them, if these are there.

    Raises RunError if the run has no validation data and no file is given, DataError if the data have problems.
    """
    recipe = run.recipe
    files = files or recipe.validation_files
    if not files and recipe.validation is None:
        if run.made_elsewhere:
            raise RunError("evaluate.run_evaluation.made_elsewhere", path=run.path)
        raise RunError("evaluate.run_evaluation.no_validation", path=run.path)
    framing = open_framing(run.base_files(), recipe.tokens).framing
    if files:
        read_as, items = _prepared(recipe, framing, files)
        questions = questions_in(files, read_as)
        learned, unmeasured = _learned(run, framing, training_rows)
        rows = EvaluationSet.of_items(", ".join(files), items, questions[:limit], learned)
        return replace(rows, unmeasured=unmeasured)
    fraction = recipe.validation_fraction
    assert fraction is not None  # noqa: S101  (for mypy)
    trained, held = hold_out(prepare_items(recipe, framing), fraction)
    questions = questions_in(recipe.data, recipe, rows_of(held))
    name = say("evaluate.run_evaluation.held_out", fraction=fraction)
    learned = first_questions(trained, recipe.data, recipe, training_rows) if training_rows else ()
    return EvaluationSet.of_items(name, held, questions[:limit], learned)


def _learned(run: Run, framing: Framing, count: int) -> tuple[Sequence[Question], str]:
    """Return the first ``count`` questions that the run learned, or why there are none."""
    if not count:
        return (), ""
    if run.made_elsewhere:
        return (), say("evaluate.run_evaluation.unmeasured_made_elsewhere")
    data = ", ".join(run.recipe.data)
    try:
        found = learned_questions(run.recipe, framing, count)
    except InputError:
        return (), say("evaluate.run_evaluation.unmeasured_unread", data=data)
    return found, "" if found else say("evaluate.run_evaluation.unmeasured_no_questions", data=data)


def unmeasured(rows: EvaluationSet, evaluation: Evaluation) -> str:
    """Return why ``evaluation`` does not tell what was learned by heart, if that was asked for and it does not."""
    if rows.learned and not any(model.memorised for model in evaluation.models):
        return say("evaluate.run_evaluation.unmeasured_too_long", tokens=evaluation.max_new_tokens)
    return rows.unmeasured


def _prepared(recipe: Recipe, framing: Framing, files: Sequence[str]) -> tuple[Recipe, ItemSet[Item]]:
    """Return the examples or groups in ``files``, and the recipe that they were read by.

    A run that learned from preferences can be evaluated on dialogues, too. Raises DataError if they are neither.
    """
    try:
        return recipe, prepare_items(recipe, framing, files=files)
    except DataError:
        dialogues = recipe.model_copy(update={"preference": None})
        if recipe.preference is not None:
            with suppress(DataError):
                return dialogues, prepare_items(dialogues, framing, files=files)
        raise


def evaluate(
    run: Run, rows: EvaluationSet, which: Sequence[Which], options: Options, stage: Stage, bounds: Bounds | None = None
) -> Evaluation:
    """Evaluate the base and every adapter in ``which``, in order; judge the adapters by ``bounds``, if given.

    Raises InputError if there are bounds but nothing was asked that they could be judged by.
    """
    if bounds is not None and not (options.general and rows.questions):
        raise InputError("evaluate.gate.not_measured")
    enter_phase("evaluating")
    general = general_questions() if options.general else []
    base = _evaluate_model(run, rows, "base", general, options, stage)
    tuned = [_evaluate_model(run, rows, each, general, options, stage, base.sums) for each in which]
    results = [base, *(_with_change(result, base.general_right) for result in tuned)]
    models = [result.scores for result in results]
    answers = {result.scores.which: result.answers for result in results}
    general_answers = {result.scores.which: result.general_answers for result in results}
    return Evaluation(
        rows=EvaluatedRows(rows.name, len(rows.examples), len(rows.questions)),
        max_new_tokens=options.max_new_tokens,
        models=models,
        answers=[
            AnsweredQuestion(question.text, question.reference, {name: said[at] for name, said in answers.items()})
            for at, question in enumerate(rows.questions)
        ],
        general=[
            AnsweredGeneralQuestion(
                question.prompt, question.accept, {name: said[at] for name, said in general_answers.items()}
            )
            for at, question in enumerate(general)
        ],
        schema=options.schema,
        gate=judge_bounds(models[0], models[1:], bounds) if bounds is not None else None,
    )


def _with_change(result: _ModelResult, before: Mapping[str, list[bool]]) -> _ModelResult:
    general = result.scores.general
    if general is None:
        return result
    change = {language: paired_change(before[language], right) for language, right in result.general_right.items()}
    return replace(result, scores=replace(result.scores, general=replace(general, change=change)))


def _evaluate_model(
    run: Run,
    rows: EvaluationSet,
    which: Which,
    general: Sequence[GeneralQuestion],
    options: Options,
    stage: Stage,
    base: Sequence[Sums] | None = None,
) -> _ModelResult:
    name = f"step {which}" if isinstance(which, int) else which
    engine = run.engine(which, device=options.device)
    measure = EngineLosses(engine)
    loss = measure(rows.examples, stage(say("evaluate.run_evaluation.loss", name=name)))
    sums = measure.answers(rows.groups, stage(say("evaluate.run_evaluation.pairs", name=name))) if rows.groups else []
    answering = stage(say("evaluate.run_evaluation.answers", name=name))
    answers = _answers(engine, rows.questions, options.max_new_tokens, options.batch_size, answering, options.schema)
    said_in_general = _general(run, engine, measure, name, general, options, stage) if general else None
    general_answers = said_in_general.answers if said_in_general else []
    right = right_by_language(general, general_answers)
    learned = short_enough(engine.framing, rows.learned, options.max_new_tokens)
    answering = stage(say("evaluate.run_evaluation.learned", name=name))
    said = _answers(engine, learned, options.max_new_tokens, options.batch_size, answering)
    repeated = sum(question.is_answer(answer.text) for question, answer in zip(learned, said, strict=True))
    scores = ModelScores(
        which=name,
        step=which if isinstance(which, int) else None,
        loss=loss.mean,
        perplexity=loss.perplexity if loss.perplexity < float("inf") else None,
        scores=score(answers, [question.reference or "" for question in rows.questions]) if answers else None,
        general=GeneralScores(shares(right), said_in_general.loss.mean) if said_in_general else None,
        memorised=Memorised(len(learned), repeated) if learned else None,
        pairs=score_pairs(rows.groups, sums, base) if rows.groups else None,
    )
    return _ModelResult(scores, [answer.text for answer in answers], general_answers, right, sums)


def _general(
    run: Run,
    engine: Engine,
    measure: EngineLosses,
    name: str,
    questions: Sequence[GeneralQuestion],
    options: Options,
    stage: Stage,
) -> GeneralResult:
    """Return what a model says to the general questions; the base has perhaps said it in an earlier evaluation."""

    def ask() -> GeneralResult:
        plain = [example for question in questions for example in engine.framing.examples(question.answered)]
        loss = measure(plain, stage(say("evaluate.run_evaluation.general_loss", name=name)))
        answering = stage(say("evaluate.run_evaluation.general", name=name))
        asked = [Question(question.asked) for question in questions]
        answers = _answers(engine, asked, _GENERAL_TOKENS, options.batch_size, answering)
        return GeneralResult([answer.text for answer in answers], loss)

    if name != "base":
        return ask()
    model = engine.model
    about = {
        "base": [base_fingerprints(run.base_files()), stored_state(run.base_files())],
        "tokens": run.recipe.tokens.model_dump(mode="json"),
        "numbers": [str(model.dtype), run.recipe.train.storage],
        "arithmetic": arithmetic(model.device),
        "asked": [_GENERAL_TOKENS, options.batch_size],
    }
    return of_base(questions, about, ask)


def _answers(
    engine: Engine,
    questions: Sequence[Question],
    max_new_tokens: int,
    batch_size: int,
    progress: Progress,
    schema: Mapping[str, Any] | None = None,
) -> list[Answer]:
    """Return the likeliest answers, ``batch_size`` at a time; a question that is too long gets an empty one."""
    limit = engine.context_tokens
    lengths = [len(engine.framing.prompt(question.conversation)) for question in questions]
    fitting = [at for at in range(len(questions)) if limit is None or lengths[at] < limit]
    conversations = [questions[at].conversation for at in fitting]
    sampling = Sampling(max_new_tokens=max_new_tokens)
    answers = engine.answers(conversations, sampling, batch_size=batch_size, progress=progress, schema=schema)
    answered = dict(zip(fitting, answers, strict=True))
    return [answered.get(at, Answer("", (), stopped=False)) for at in range(len(questions))]
