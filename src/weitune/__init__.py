"""Fine-tune chat language models with LoRA, and talk to the result.

    from weitune import Recipe, train

    run = train(Recipe(model="Qwen/Qwen2.5-0.5B-Instruct", data=["dialogues.json"]))
    print(run.chat("Who are you?"))

The names in ``__all__`` are the public interface; each is imported when it is first used, so that ``import weitune``
costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weitune.generate.run import Run
    from weitune.recipe.load import load_recipe
    from weitune.recipe.schema import Recipe
    from weitune.run.liveness import is_training
    from weitune.training.run import train

    __version__: str

__all__ = ["Recipe", "Run", "__version__", "is_training", "load_recipe", "train"]

_HOMES = {
    "Recipe": "weitune.recipe.schema",
    "Run": "weitune.generate.run",
    "is_training": "weitune.run.liveness",
    "load_recipe": "weitune.recipe.load",
    "train": "weitune.training.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name == "__version__":
        from importlib.metadata import version

        return version("weitune")
    if name not in _HOMES:
        raise AttributeError(f"module 'weitune' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
