"""What answers rows: a base or a run in this process, or a model on a server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

from weitune.data.calls.derive import answer_form
from weitune.data.calls.form import AnswerForm
from weitune.data.calls.marks import Marks
from weitune.data.calls.reader import Said, read_answer
from weitune.data.conversation import Conversation
from weitune.data.frame.choose import check_arguments
from weitune.data.frame.framing import Framing
from weitune.generate.engine import Engine
from weitune.generate.open_model import load_engine
from weitune.generate.remote import RemoteEngine
from weitune.generate.run import Run
from weitune.generate.sampling import Sampling
from weitune.generate.stream import Answer
from weitune.model.file_names import ADAPTER_FILES, MODEL_FILES
from weitune.model.load.fingerprint import base_fingerprints
from weitune.model.load.locate import ModelFiles, locate_base
from weitune.model.load.tokenizer import open_framing
from weitune.recipe.schema import Recipe
from weitune.run.manifest import sha256_of
from weitune.run.run_folder import Which

Finished = Iterator[tuple[int, Answer | None]]
"""The number of a conversation and its answer, as answers finish; None if the prompt leaves no room for one."""


class Answerer(Protocol):
    """Answers many conversations."""

    @property
    def identity(self) -> Mapping[str, str]:
        """What decides the answers beside the conversations and the sampling, by the names that people read."""

    def finished(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        seeds: Sequence[int | None],
        schema: Mapping[str, Any] | None = None,
    ) -> Finished:
        """Yield the answers as they finish, each drawn with its own seed and kept to ``schema``.

        Raises InputError if there can be none.
        """


class LocalAnswerer:
    """A model in this process, which is loaded when the first answer is asked for."""

    def __init__(self, load: Callable[[], Engine], identity: Mapping[str, str], batch_size: int) -> None:
        self._load, self.identity, self._batch_size = load, identity, batch_size

    def finished(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        seeds: Sequence[int | None],
        schema: Mapping[str, Any] | None = None,
    ) -> Finished:
        engine = self._load()
        prompts = [engine.framing.prompt(conversation) for conversation in conversations]
        fitting = [at for at, prompt in enumerate(prompts) if engine.fits(prompt, schema)]
        yield from ((at, None) for at in sorted({*range(len(prompts))} - {*fitting}))
        answers = engine.finished(
            [prompts[at] for at in fitting],
            sampling,
            seeds=[seeds[at] for at in fitting],
            batch_size=self._batch_size,
            schema=schema,
        )
        calls = _Calls(engine.framing)
        for number, answer in answers:
            conversation = conversations[fitting[number]]
            yield fitting[number], calls.read(answer, conversation) if schema is None else answer


class _Calls:
    """Reads calls out of answers, as the template of a framing writes them and a server reads them."""

    def __init__(self, framing: Framing) -> None:
        self._framing = framing

    @cached_property
    def _form(self) -> tuple[AnswerForm, Marks]:
        return answer_form(self._framing)

    def read(self, answer: Answer, conversation: Conversation) -> Answer:
        """Return ``answer`` with the calls of tools that ``conversation`` offers beside its text.

        One whose calls cannot be read, or that is cut, stays as it is.
        """
        if not conversation.tools or not answer.stopped:
            return answer
        form, marks = self._form
        text = marks.of_tokens(answer.tokens, self._framing.decode)
        said = read_answer(text, form, marks, conversation.tools)
        return replace(answer, text=_shown(said), calls=said.calls) if said.calls else answer


def _shown(said: Said) -> str:
    """Return content after reasoning in tags, as engines have it in one text."""
    return f"<think>\n{said.reasoning}\n</think>\n\n{said.content}" if said.reasoning else said.content


def base_answerer(recipe: Recipe, batch_size: int, device: str | None = None) -> LocalAnswerer:
    """Return the answerer of the recipe's model. Raises ModelError if there is none.

    Raises RecipeError if the model's template does not read an argument that the recipe gives.
    """
    if recipe.tokens.template_args:
        check_arguments(open_framing(locate_base(recipe, weights=False), recipe.tokens).framing, recipe.tokens)
    files = locate_base(recipe)
    return LocalAnswerer(
        lambda: load_engine(recipe, None, files=files, device=device), _identity(recipe, files), batch_size
    )


def run_answerer(run: Run, which: Which, batch_size: int, device: str | None = None) -> LocalAnswerer:
    """Return the answerer of a run with one of its adapters. Raises RunError or ModelError if there is none."""
    identity, folder = _identity(run.recipe, run.base_files()), run.adapter_folder(which)
    if folder is not None:
        weights = next(path for name in (MODEL_FILES[1], ADAPTER_FILES[1]) if (path := folder / name).is_file())
        identity = {**identity, "adapter": sha256_of(weights)}
    return LocalAnswerer(lambda: run.engine(which, device=device), identity, batch_size)


def _identity(recipe: Recipe, files: ModelFiles) -> dict[str, str]:
    framing = recipe.tokens.model_dump(mode="json", include={"template", "template_args"})
    return {**base_fingerprints(files), "tokens": json.dumps(framing, sort_keys=True)}


class RemoteAnswerer:
    """A model on a server, which is asked several questions at a time."""

    def __init__(self, engine: RemoteEngine, batch_size: int) -> None:
        self._engine, self._batch_size = engine, batch_size

    @property
    def identity(self) -> Mapping[str, str]:
        return {"model": f"{self._engine.model} · {self._engine.about}"}

    def finished(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        seeds: Sequence[int | None],
        schema: Mapping[str, Any] | None = None,
    ) -> Finished:
        with ThreadPoolExecutor(self._batch_size) as pool:
            asked = {
                pool.submit(self._answer, conversation, replace(sampling, seed=seed), schema): at
                for at, (conversation, seed) in enumerate(zip(conversations, seeds, strict=True))
            }
            try:
                yield from ((asked[answer], answer.result()) for answer in as_completed(asked))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, conversation: Conversation, sampling: Sampling, schema: Mapping[str, Any] | None) -> Answer:
        stream = self._engine.stream(conversation, sampling, schema)
        for _ in stream:
            pass
        return stream.answer
