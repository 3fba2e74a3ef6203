"""A run, with engines that answer with its adapters.

run = Run("runs/zhenhuan")
run.chat("Who are you?")
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weitune.progress import Note
from weitune.run.run_folder import RunFolder, Which

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from weitune.generate.chat_engine import ChatStream
    from weitune.generate.dialogue import History
    from weitune.generate.engine import Engine
    from weitune.generate.sampling import SamplingOptions

_ENGINES_KEPT = 2


class Run(RunFolder):
    """A run on disk, finished or not.

    run = Run("runs/zhenhuan")
    run.chat("Who are you?")
    run.chat("And who am I?", history=[{"role": "user", "content": "Who are you?"}, …], temperature=0.7)
    for piece in run.stream_chat("Tell me a story."): print(piece, end="")
    answer = await run.chat_async("Who are you?")
    """

    def __init__(self, path: str | Path, *, accept_changed_base: bool = False, say: Note | None = None) -> None:
        super().__init__(path, accept_changed_base=accept_changed_base, say=say)
        self._engines: dict[tuple[Which, str | None], Engine] = {}
        self._loading = threading.Lock()

    def engine(self, checkpoint: Which = "last", *, device: str | None = None) -> Engine:
        """Return the engine of an adapter, loading it on first use.

        The two used most recently stay in memory (such as the tuned model and its base), each a whole model. Raises
        RunError or ModelError if it cannot be loaded.
        """
        with self._loading:  # answers may be asked for in several threads
            return self._engine(checkpoint, device)

    def _engine(self, checkpoint: Which, device: str | None) -> Engine:
        key = (checkpoint, device)
        engine = self._engines.pop(key, None)
        if engine is None:
            from weitune.generate.open_model import load_engine

            folder, files = self.adapter_folder(checkpoint), self.base_files()
            while len(self._engines) >= _ENGINES_KEPT:  # before loading, so that three are never in memory
                del self._engines[next(iter(self._engines))]
            engine = load_engine(self.recipe, folder, files=files, device=device)
        self._engines[key] = engine
        return engine

    def chat(
        self,
        text: str,
        *,
        history: History = (),
        system: str | None = None,
        checkpoint: Which = "last",
        device: str | None = None,
        response_format: Mapping[str, Any] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> str:
        """Return the model's answer to ``text``.

        ``history`` has the turns said before. ``system`` replaces the run's own system prompt; an empty string leaves
        it out. ``response_format`` keeps the answer to JSON, in the form of the OpenAI protocol: ``{"type":
        "json_object"}``, or ``{"type": "json_schema", "json_schema": {"schema": {…}}}``; an answer that is cut at its
        longest length does not fit. ``sampling`` are fields of :class:`.Sampling`, such as ``temperature=0.7``.

        Raises RunError, ModelError, MissingExtraError for a response format without ``llguidance``, or InputError if
        the question is too long for the model or answers cannot be kept to the schema.
        """
        return "".join(
            self.stream_chat(
                text,
                history=history,
                system=system,
                checkpoint=checkpoint,
                device=device,
                response_format=response_format,
                **sampling,
            )
        )

    def stream_chat(
        self,
        text: str,
        *,
        history: History = (),
        system: str | None = None,
        checkpoint: Which = "last",
        device: str | None = None,
        response_format: Mapping[str, Any] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> ChatStream:
        """Return the answer of :meth:`chat` as a stream: iterate for its text, piece by piece.

        Generation starts with the first piece asked for, and ends when the stream is closed or dropped.
        """
        from weitune.generate.constrain.response_format import schema_of
        from weitune.generate.dialogue import Dialogue
        from weitune.generate.sampling import Sampling

        options, schema = Sampling(**sampling), schema_of(response_format)
        dialogue = Dialogue(self.recipe.system if system is None else system or None, history)
        return dialogue.ask(self.engine(checkpoint, device=device), text, options, schema)

    async def chat_async(
        self,
        text: str,
        *,
        history: History = (),
        system: str | None = None,
        checkpoint: Which = "last",
        device: str | None = None,
        response_format: Mapping[str, Any] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> str:
        """Return the answer of :meth:`chat` without blocking the event loop."""
        pieces = self.stream_chat_async(
            text,
            history=history,
            system=system,
            checkpoint=checkpoint,
            device=device,
            response_format=response_format,
            **sampling,
        )
        return "".join([piece async for piece in pieces])

    async def stream_chat_async(
        self,
        text: str,
        *,
        history: History = (),
        system: str | None = None,
        checkpoint: Which = "last",
        device: str | None = None,
        response_format: Mapping[str, Any] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> AsyncGenerator[str, None]:
        """Yield the answer of :meth:`chat` piece by piece, without blocking the event loop.

        The model is loaded and the answer generated in threads. Generation ends with the current token when the
        generator is closed or its task is cancelled. Answers of one engine are generated one after another.
        """
        begin = partial(
            self.stream_chat,
            text,
            history=history,
            system=system,
            checkpoint=checkpoint,
            device=device,
            response_format=response_format,
            **sampling,
        )
        stream = await asyncio.to_thread(begin)
        step: asyncio.Task[str | None] | None = None
        try:
            while True:
                step = asyncio.create_task(asyncio.to_thread(next, stream, None))
                piece = await asyncio.shield(step)
                if piece is None:
                    break
                yield piece
        finally:
            if step is not None:
                await asyncio.wait([step])  # a stream cannot be closed while another thread reads it
            await asyncio.to_thread(stream.close)
