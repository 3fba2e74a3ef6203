"""The generation config of an export: greedy decoding, and the stop tokens of the tuned model.

Two kinds of programs read the file, and each has its own setting for greedy decoding:

    transformers     do_sample false
    vLLM, SGLang     temperature 0; they do not know do_sample, and sample at 1 without a temperature

The file has both. transformers ignores the temperature while it does not sample, and logs that once when it loads the
file. A request's own temperature replaces the file's in vLLM and SGLang.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weitune.files.json_files import write_json
from weitune.model.load.config import GENERATION_CONFIG, read_generation_config
from weitune.model.load.locate import ModelFiles

GREEDY: dict[str, Any] = {"do_sample": False, "temperature": 0.0}
"""Greedy decoding, for every program that reads the file."""


def write_generation_config(folder: Path, files: ModelFiles, stop_tokens: Sequence[int], pad: int | None) -> None:
    """Write the base's generation config with ``stop_tokens``, without its sampling.

    With the sampling settings that a base ships (Qwen's temperature and repetition penalty), answers would differ from
    the run's.
    """
    base = read_generation_config(files)
    kept = {key: base[key] for key in ("bos_token_id", "pad_token_id") if base.get(key) is not None}
    config = {**kept, **GREEDY, "eos_token_id": list(stop_tokens)}
    if "pad_token_id" not in config:
        config["pad_token_id"] = pad if pad is not None else stop_tokens[0]
    write_json(folder / GENERATION_CONFIG, dict(sorted(config.items())))
