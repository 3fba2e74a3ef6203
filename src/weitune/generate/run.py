"""A run, with engines that answer with its adapters.

run = Run("runs/zhenhuan")
run.chat("Who are you?")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from weitune.progress import Note
from weitune.run.run_folder import RunFolder, Which

if TYPE_CHECKING:
    from weitune.generate.dialogue import History
    from weitune.generate.engine import Engine

_ENGINES_KEPT = 2


class Run(RunFolder):
    """A run on disk, finished or not.

    run = Run("runs/zhenhuan")
    run.chat("Who are you?")
    run.chat("And who am I?", history=[{"role": "user", "content": "Who are you?"}, …], temperature=0.7)
    """

    def __init__(self, path: str | Path, *, accept_changed_base: bool = False, say: Note | None = None) -> None:
        super().__init__(path, accept_changed_base=accept_changed_base, say=say)
        self._engines: dict[tuple[Which, str | None], Engine] = {}

    def engine(self, checkpoint: Which = "last", *, device: str | None = None) -> Engine:
        """Return the engine of an adapter, loading it on first use.

        The two used most recently stay in memory (such as the tuned model and its base), each a whole model. Raises
        RunError or ModelError if it cannot be loaded.
        """
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
        **sampling: Any,
    ) -> str:
        """Return the model's answer to ``text``.

        ``history`` has the turns said before. ``system`` replaces the run's own system prompt; an empty string leaves
        it out. ``sampling`` are fields of :class:`.Sampling`, such as ``temperature=0.7``.
        Raises RunError, ModelError, or InputError if the question is too long for the model.
        """
        from weitune.generate.dialogue import Dialogue
        from weitune.generate.sampling import Sampling

        options = Sampling(**sampling)
        dialogue = Dialogue(self.recipe.system if system is None else system, history)
        stream = dialogue.ask(self.engine(checkpoint, device=device), text, options)
        return "".join(stream)
