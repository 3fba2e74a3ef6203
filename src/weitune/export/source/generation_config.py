"""The generation config of an export: the base's, with the tokens at which the tuned model stops, and greedy.

Two kinds of programs read the file, and each has its own word for greedy decoding:

    transformers     do_sample false
    vLLM, SGLang     temperature 0; they do not know do_sample, and sample at 1 without a temperature

Both words stand in the file. transformers ignores the temperature while it does not sample, and says so once when it
loads the file. A request's own temperature replaces the file's in vLLM and SGLang.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weitune.errors import ModelError
from weitune.model.load.locate import ModelFiles

FILE = "generation_config.json"
GREEDY: dict[str, Any] = {"do_sample": False, "temperature": 0.0}
"""Greedy decoding, in the words of every program that reads the file."""


def read_generation_config(files: ModelFiles) -> dict[str, Any]:
    """Return the base's generation config, empty if it has none. Raises ModelError if it is broken."""
    path = files.folder / FILE
    if files.gguf or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError("export.generation_config.not_json", path=path, error=error) from None
    if not isinstance(found, dict):
        raise ModelError("export.generation_config.holds_not_object", path=path, name__=type(found).__name__)
    return found


def base_stop_tokens(files: ModelFiles, config: Any) -> list[int]:
    """Return the tokens at which the base itself stops: those of its generation config, else of its configuration.

    A configuration that wraps a text model has them at its top or in the text model's part, in this order, as
    transformers looks for them.
    """
    known = read_generation_config(files).get("eos_token_id")
    for part in (config, config.get_text_config()):
        known = getattr(part, "eos_token_id", None) if known is None else known
    return [known] if isinstance(known, int) else list(known or ())


def write_generation_config(folder: Path, files: ModelFiles, stop_tokens: Sequence[int], pad: int | None) -> None:
    """Write the base's generation config with ``stop_tokens``, without its sampling.

    Sampling that a base ships (Qwen's temperature and repetition penalty) would answer otherwise than the run does.
    """
    base = read_generation_config(files)
    kept = {key: base[key] for key in ("bos_token_id", "pad_token_id") if base.get(key) is not None}
    config = {**kept, **GREEDY, "eos_token_id": list(stop_tokens)}
    if "pad_token_id" not in config:
        config["pad_token_id"] = pad if pad is not None else stop_tokens[0]
    (folder / FILE).write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n", encoding="utf-8")
