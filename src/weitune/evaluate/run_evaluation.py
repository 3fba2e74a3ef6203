"""Evaluate a run: its base and its adapters, on rows that were not learned.

    rows ─▶ examples ─▶ loss, perplexity        ┐
        └─▶ questions ─▶ answers ─▶ measures    ├─▶ Evaluation
    general questions ─▶ loss, right answers    ┤
    training questions ─▶ answers known by heart┘

One model after the other is in memory (two at most), each with its adapter merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weitune.data.frame.framing import Framing
from weitune.errors import InputError
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
from weitune.evaluate.evaluation_set import EvaluationSet, Question, short_enough
from weitune.evaluate.gate import Bounds, judge_bounds
from weitune.evaluate.general import GeneralQuestion, general_questions, right_by_language, shares
from weitune.evaluate.general_base import GeneralResult, of_base
from weitune.evaluate.intervals import paired_change
from weitune.evaluate.metrics import check_installed, score
from weitune.evaluate.pairs import Sums, score_pairs
from weitune.generate.engine import BATCH_SIZE, Engine
from weitune.generate.run import Run
from weitune.generate.sampling import Sampling
from weitune.generate.stream import Answer
from weitune.messages import say
from weitune.model.load.fingerprint import base_fingerprints, stored_state
from weitune.progress import Progress, Stage, enter_phase
from weitune.recipe.schema import Recipe
from weitune.run.history import finite
from weitune.run.machine import arithmetic
from weitune.run.run_folder import Which

_GENERAL_TOKENS = 48
_THINKING = "enable_thinking"
"""The argument by which templates of thinking models ask for a thought or for none."""


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


def unmeasured(rows: EvaluationSet, evaluation: Evaluation) -> str:
    """Return why ``evaluation`` does not tell what was learned by heart, if that was asked for and it does not."""
    if rows.learned and not any(model.memorised for model in evaluation.models):
        return say("evaluate.run_evaluation.unmeasured_too_long", tokens=evaluation.max_new_tokens)
    return rows.unmeasured


def evaluate(
    run: Run, rows: EvaluationSet, which: Sequence[Which], options: Options, stage: Stage, bounds: Bounds | None = None
) -> Evaluation:
    """Evaluate the base and every adapter in ``which``, in order; judge the adapters by ``bounds``, if given.

    Raises InputError if there are bounds but nothing was asked that they could be judged by, MissingExtraError if
    answers are to be compared with references and sacrebleu is not installed.
    """
    if bounds is not None and not (options.general and rows.questions):
        raise InputError("evaluate.gate.not_measured")
    if any(question.reference is not None for question in rows.questions):
        check_installed()
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
    step = which if isinstance(which, int) else run.adapter_step(which)  # now: the run may go on meanwhile
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
        step=step,
        loss=finite(loss.mean),
        perplexity=finite(loss.perplexity),
        scores=score(answers, [question.reference for question in rows.questions]) if answers else None,
        general=GeneralScores(shares(right), finite(said_in_general.loss.mean)) if said_in_general else None,
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
    """Return what a model says to the general questions; the base has perhaps said it in an earlier evaluation.

    Where the template can ask for no thought before the answer, it does: a thought would fill all of the answer's room.
    """
    framing = _without_thought(engine.framing, run.recipe)

    def ask() -> GeneralResult:
        plain = [example for question in questions for example in framing.examples(question.answered)]
        loss = measure(plain, stage(say("evaluate.run_evaluation.general_loss", name=name)))
        answering = stage(say("evaluate.run_evaluation.general", name=name))
        asked = [Question(question.asked) for question in questions]
        answers = _answers(engine, asked, _GENERAL_TOKENS, options.batch_size, answering, framing=framing)
        return GeneralResult([answer.text for answer in answers], loss)

    if name != "base":
        return ask()
    model = engine.model
    about = {
        "base": [base_fingerprints(run.base_files()), stored_state(run.base_files())],
        "tokens": run.recipe.tokens.model_dump(mode="json"),
        "framing": engine.framing.describe(),
        "numbers": [str(model.dtype), run.recipe.train.storage],
        "arithmetic": arithmetic(model.device),
        "asked": [_GENERAL_TOKENS, options.batch_size],
        **({} if framing is engine.framing else {"thought": False}),
    }
    return of_base(questions, about, ask)


def _without_thought(framing: Framing, recipe: Recipe) -> Framing:
    """Return a framing that asks for an answer without a thought, unless its template or its recipe decides that."""
    if _THINKING not in framing.argument_names or _THINKING in (recipe.tokens.template_args or {}):
        return framing
    return framing.with_arguments({_THINKING: False})


def _answers(
    engine: Engine,
    questions: Sequence[Question],
    max_new_tokens: int,
    batch_size: int,
    progress: Progress,
    schema: Mapping[str, Any] | None = None,
    framing: Framing | None = None,
) -> list[Answer]:
    """Return the likeliest answers, ``batch_size`` at a time; a question that is too long gets an empty one.

    Questions are asked in ``framing``; in that of the engine if there is none.
    """
    framing = framing or engine.framing
    prompts = [framing.prompt(question.conversation) for question in questions]
    fitting = [at for at, prompt in enumerate(prompts) if engine.fits(prompt, schema)]
    asked, sampling = [prompts[at] for at in fitting], Sampling(max_new_tokens=max_new_tokens)
    answers = engine.answers_to(asked, sampling, batch_size=batch_size, progress=progress, schema=schema)
    answered = dict(zip(fitting, answers, strict=True))
    return [answered.get(at, Answer("", (), stopped=False)) for at in range(len(questions))]
