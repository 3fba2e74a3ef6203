"""The one engine that generates: for chat, evaluation and samples.

    Conversation ── framing.prompt ──▶ tokens ── decode ──▶ tokens ── Detokenizer ──▶ text

A model whose blocks are plain ones is decoded by :mod:`weitune.generate.decode`, any other by transformers' own
``generate``, so that every architecture that it knows has the right cache. The generation config that a model
ships (Qwen's has temperature, top_p and repetition_penalty) is ignored: only :class:`.Sampling` counts, and greedy
means the likeliest token.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from weitune.data.conversation import Conversation
from weitune.errors import InputError
from weitune.generate.constrain.mask import AnswerGrammar, Grammars
from weitune.generate.decode.by_transformers import TransformersDecoder, for_generation
from weitune.generate.decode.choose import Chooser
from weitune.generate.decode.decoder import StepDecoder
from weitune.generate.decode.draft import Draft
from weitune.generate.decode.probe import decodable_blocks
from weitune.generate.decode.rows import Row, decode_rows
from weitune.generate.detokenize import Detokenizer
from weitune.generate.processors import processors
from weitune.generate.sampling import Sampling
from weitune.generate.stream import Answer, AnswerStream, Cancelled, TokenQueue
from weitune.messages import say
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.load.config import loaded_stop_tokens
from weitune.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from weitune.data.frame.framing import Framing

BATCH_SIZE = 32
"""Conversations that are answered at a time."""


class Engine:
    """A model that answers conversations.

    A conversation is answered as it is given: the caller adds the run's system prompt (:meth:`.with_system`), as
    training does.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        framing: Framing,
        *,
        in_step: bool = False,
        fixed: bool = False,
    ) -> None:
        """Answer with ``model``, which stays the caller's: it may be one that is being trained, or a PEFT model.

        Answers end at the framing's stop tokens and at those in the model's generation config. ``in_step``: all
        processes of a run generate the same answers together, and each goes on until the last one has finished.
        ``fixed``: the weights stay as they are, so copies may be made of them that answer faster.
        """
        # PEFT puts the adapter into the layers of the model it wraps, so that model generates as tuned.
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.tokenizer = tokenizer
        self.framing = framing
        self._in_step, self._fixed = in_step, fixed
        self._one_at_a_time = threading.Lock()  # readers in several threads take turns
        self.stop_tokens = frozenset([*framing.stop_tokens, *loaded_stop_tokens(self.model)])
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.stop_tokens, default=0)
        self._transformers = TransformersDecoder(self.model, self.stop_tokens, pad, in_step)
        self._grammars = Grammars(tokenizer, framing, self.stop_tokens)

    @property
    def context_tokens(self) -> int | None:
        """How many tokens the model can read and write together; None if its configuration does not say."""
        limit: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return limit

    @property
    def about(self) -> str:
        """What computes the answers, and where: ``float32 on cpu``."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return say("generate.engine.about", dtype=dtype, device=self.model.device)

    @property
    def notes(self) -> Sequence[str]:
        return self.framing.notes

    def prompt_tokens(self, conversation: Conversation) -> int:
        return len(self.framing.prompt(conversation))

    def prompt(self, conversation: Conversation, schema: Mapping[str, Any] | None = None) -> list[int]:
        """Return the prompt's tokens. Raises InputError if they leave no room for an answer kept to ``schema``."""
        tokens = self.framing.prompt(conversation)
        if not self.fits(tokens, schema):
            raise InputError("generate.engine.too_long", prompt_tokens=len(tokens), context_tokens=self.context_tokens)
        return tokens

    def fits(self, prompt: Sequence[int], schema: Mapping[str, Any] | None = None) -> bool:
        """Return whether a prompt in tokens leaves room for an answer kept to ``schema``."""
        opening = () if schema is None else self._grammars.opening
        return self.context_tokens is None or len(prompt) + len(opening) < self.context_tokens

    def stream(
        self, conversation: Conversation, sampling: Sampling | None = None, schema: Mapping[str, Any] | None = None
    ) -> AnswerStream:
        """Return the answer as a stream of text; with ``schema`` it is JSON that fits it, unless it is cut.

        Raises InputError if the conversation is too long, or answers cannot be kept to the schema.
        """
        sampling = sampling or Sampling()
        grammar = self._grammar(schema)
        prompt = [*self.prompt(conversation, schema), *(grammar.opening if grammar else ())]
        limit = self._limit(prompt, sampling)

        def start(streamer: TokenQueue, cancelled: Cancelled) -> None:
            if self._blocks is None:
                self._generate([prompt], limit, sampling, None, grammar, streamer=streamer, stopping=[cancelled])
                return
            for _, token in self._decoded([prompt], [limit], sampling, [sampling.seed], 1, grammar):
                streamer.add(token)
                if cancelled.event.is_set():
                    break

        return AnswerStream(start, Detokenizer(self.tokenizer), self.stop_tokens)

    def answer(self, conversation: Conversation, sampling: Sampling | None = None) -> Answer:
        """Return the whole answer. Raises InputError if the conversation is too long."""
        return self.answers([conversation], sampling)[0]

    def answers(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Answer]:
        """Return the answers in order, generated ``batch_size`` at a time, equal to those given one by one.

        ``progress`` is called with (conversations answered, conversations in all). With ``schema``, every answer that
        is not cut is JSON that fits it.

        Equal means to rounding: sums over a batch may differ in the last bit, which can turn a near tie. Raises
        InputError if a conversation is too long.
        """
        prompts = [self.prompt(conversation, schema) for conversation in conversations]
        return self.answers_to(prompts, sampling, batch_size=batch_size, progress=progress, schema=schema)

    def answers_to(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Answer]:
        """Return the answers to prompts in tokens, each of which :meth:`fits`, as :meth:`answers` does."""
        answers: dict[int, Answer] = {}
        for at, answer in self.finished(prompts, sampling, batch_size=batch_size, schema=schema):
            answers[at] = answer
            if progress is not None:
                progress(len(answers), len(prompts))
        return [answers[at] for at in range(len(prompts))]

    def finished(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | None = None,
        *,
        seeds: Sequence[int | None] | None = None,
        batch_size: int = BATCH_SIZE,
        schema: Mapping[str, Any] | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        """Yield every answer with the number of its prompt as soon as it is finished.

        ``seeds`` has one for every prompt in place of the sampling's.
        """
        sampling = sampling or Sampling()
        grammar = self._grammar(schema)
        prompts = [[*prompt, *grammar.opening] for prompt in prompts] if grammar else prompts
        seeds = [sampling.seed] * len(prompts) if seeds is None else seeds
        limits = [self._limit(prompt, sampling) for prompt in prompts]
        if self._blocks is None:
            yield from self._generated_answers(prompts, limits, sampling, seeds, batch_size, grammar)
            return
        tokens: list[list[int]] = [[] for _ in prompts]
        for at, token in self._decoded(prompts, limits, sampling, seeds, batch_size, grammar):
            tokens[at].append(token)
            if token in self.stop_tokens or len(tokens[at]) == limits[at]:
                yield at, self._read(tokens[at])

    def _grammar(self, schema: Mapping[str, Any] | None) -> AnswerGrammar | None:
        return None if schema is None else self._grammars.of(schema)

    @cached_property
    def _blocks(self) -> BlockDecoder | None:
        """The model's blocks, if it is decoded here."""
        if self._in_step:
            return None
        with self._one_at_a_time, for_generation(self.model):
            return decodable_blocks(self.model)

    @cached_property
    def _fixed_decoder(self) -> StepDecoder:
        assert self._blocks is not None  # noqa: S101  (for mypy)
        return StepDecoder(self.model, self._blocks, fixed=True)

    @cached_property
    def _draft(self) -> Draft | None:
        return Draft.of(self._fixed_decoder) if self._fixed else None

    def _decoded(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        sampling: Sampling,
        seeds: Sequence[int | None],
        batch_size: int,
        grammar: AnswerGrammar | None,
    ) -> Iterator[tuple[int, int]]:
        """Yield the number of a prompt and a new token of its answer, until all are answered."""
        assert self._blocks is not None  # noqa: S101  (for mypy)
        with self._one_at_a_time, for_generation(self.model):
            decoder = self._fixed_decoder if self._fixed else StepDecoder(self.model, self._blocks)
            rows = [
                Row(
                    at,
                    prompt,
                    limit,
                    Chooser(
                        replace(sampling, seed=seed),
                        prompt,
                        decoder.device,
                        None if grammar is None else grammar.mask(),
                    ),
                )
                for at, (prompt, limit, seed) in enumerate(zip(prompts, limits, seeds, strict=True))
            ]
            rows.sort(key=lambda row: len(row.prompt))
            for row, token in decode_rows(decoder, rows, self.stop_tokens, batch_size, lambda: self._draft):
                yield row.number, token

    def _generated_answers(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        sampling: Sampling,
        seeds: Sequence[int | None],
        batch_size: int,
        grammar: AnswerGrammar | None,
    ) -> Iterator[tuple[int, Answer]]:
        """Answer with transformers."""
        for batch in self._transformers.batches(list(map(len, prompts)), limits, batch_size):
            asked, own_seeds = [prompts[at] for at in batch], [seeds[at] for at in batch]
            generated = self._generate(asked, limits[batch[0]], sampling, own_seeds, grammar)
            for at, row in zip(batch, generated.tolist(), strict=True):
                yield at, self._read(row)

    def _limit(self, prompt: Sequence[int], sampling: Sampling) -> int:
        room = sampling.max_new_tokens if self.context_tokens is None else self.context_tokens - len(prompt)
        return max(1, min(sampling.max_new_tokens, room))

    def _read(self, row: Sequence[int]) -> Answer:
        end = next((at for at, token in enumerate(row) if token in self.stop_tokens), len(row))
        detokenizer = Detokenizer(self.tokenizer)
        return Answer("".join(map(detokenizer.add, row[:end])), tuple(row[:end]), stopped=end < len(row))

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        limit: int,
        sampling: Sampling,
        seeds: Sequence[int | None] | None = None,
        grammar: AnswerGrammar | None = None,
        *,
        streamer: TokenQueue | None = None,
        stopping: Sequence[Cancelled] = (),
    ) -> Tensor:
        mask = None if grammar is None else grammar.mask(len(prompts))
        with self._one_at_a_time:
            return self._transformers.generate(
                prompts,
                limit,
                lambda attention: processors(sampling, attention, seeds, mask),
                streamer=streamer,
                stopping=stopping,
            )
