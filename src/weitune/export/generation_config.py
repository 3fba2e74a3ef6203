"""The generation config of an export: the base's, with the tokens at which the tuned model stops."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weitune.model.locate import ModelFiles

FILE = "generation_config.json"


def read_generation_config(files: ModelFiles) -> dict[str, Any]:
    """Return the base's generation config, empty if it has none."""
    path = files.folder / FILE
    if files.gguf or not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def base_stop_tokens(files: ModelFiles, config: Any) -> list[int]:
    """Return the tokens at which the base itself stops."""
    known = read_generation_config(files).get("eos_token_id", config.eos_token_id)
    return [known] if isinstance(known, int) else list(known or ())


def write_generation_config(folder: Path, files: ModelFiles, stop_tokens: Sequence[int], pad: int | None) -> None:
    """Write the base's generation config with ``stop_tokens``, without its sampling.

    Sampling that a base ships (Qwen's temperature and repetition penalty) would answer otherwise than the run does.
    """
    base = read_generation_config(files)
    kept = {key: base[key] for key in ("bos_token_id", "pad_token_id") if base.get(key) is not None}
    config = {**kept, "do_sample": False, "eos_token_id": list(stop_tokens)}
    if "pad_token_id" not in config:
        config["pad_token_id"] = pad if pad is not None else stop_tokens[0]
    (folder / FILE).write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n", encoding="utf-8")
