"""What ``weitune chat`` can talk to: a run's model in transformers or in llama.cpp, or a model on a server.

Each context yields two targets, the tuned model and its base. It frees what they have loaded when it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from weitune.cli.shared.terminal import Stages
from weitune.cli.talk.session import ChatTarget
from weitune.messages import say

if TYPE_CHECKING:
    from weitune.export.llama_models import LlamaModels
    from weitune.generate.chat_engine import ChatEngine
    from weitune.generate.llama_cpp import LlamaCpp
    from weitune.generate.run import Run
    from weitune.gguf.types import GgufType
    from weitune.run.run_folder import Which

Targets = tuple[ChatTarget, ChatTarget]
_CONTEXT_TOKENS = 4096


@contextmanager
def in_transformers(run: Run, checkpoint: Which, device: str | None) -> Iterator[Targets]:
    """Yield targets that compute in transformers, in the precision of the training."""
    yield (
        ChatTarget(_named(run, checkpoint), lambda: run.engine(checkpoint, device=device)),
        ChatTarget(say("cli.targets.base"), lambda: run.engine("base", device=device)),
    )


@contextmanager
def in_llama_cpp(run: Run, checkpoint: Which, gguf_type: GgufType) -> Iterator[Targets]:
    """Yield targets that answer in llama.cpp, on a GGUF file of the base that is written once and cached."""
    with ExitStack() as loaded:

        @cache
        def load() -> tuple[LlamaCpp, LlamaModels]:
            from weitune.export.llama_models import llama_models
            from weitune.generate.llama_cpp import LlamaCpp, require_llama_cpp

            require_llama_cpp()
            which = "last" if checkpoint == "base" else checkpoint
            with Stages() as stages:
                models = loaded.enter_context(llama_models({"tuned": run}, gguf_type, stages.begin, which))
            context = min(_CONTEXT_TOKENS, models.context_tokens, models.short_tokens or _CONTEXT_TOKENS)
            llama = LlamaCpp(models.base, models.adapters, context_tokens=context, exact=models.exact)
            return loaded.enter_context(llama), models

        def engine(*, tuned: bool) -> ChatEngine:
            from weitune.generate.llama_engine import LlamaEngine

            llama, models = load()
            model = models.by_name[
                "tuned"
            ]  # the base gets the run's prompts too, so that only tuning makes a difference
            name = models.base.stem.rpartition("-")[2] if models.base.stem.endswith(gguf_type) else "GGUF"
            return LlamaEngine(llama, model.framing, model.stop_tokens, model.adapter if tuned else None, name)

        yield (
            ChatTarget(_named(run, checkpoint), lambda: engine(tuned=checkpoint != "base")),
            ChatTarget(say("cli.targets.base"), lambda: engine(tuned=False)),
        )


@contextmanager
def on_server(url: str, name: str, key: str | None) -> Iterator[Targets]:
    """Yield targets at ``url``; ``name`` is a model there, or a run's folder of that name."""
    from weitune.generate.remote import engine_on_server
    from weitune.run.run_folder import given_name

    model = given_name(Path(name)) if Path(name).is_dir() else name

    @cache
    def engine(model: str) -> ChatEngine:
        return engine_on_server(url, model, key)

    yield (
        ChatTarget(model, lambda: engine(model)),
        ChatTarget(say("cli.targets.base_on_server"), lambda: engine("base")),
    )


def _named(run: Run, checkpoint: Which) -> str:
    adapter = run.adapter_folder(checkpoint)
    if adapter is None:
        return say("cli.targets.without_adapter", model=run.recipe.model)
    return say("cli.targets.with_adapter", model=run.recipe.model, adapter=adapter.name)
