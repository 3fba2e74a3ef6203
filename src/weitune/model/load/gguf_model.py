"""Load a model from a ``.gguf`` file, for the families whose names and row order weitune knows.

    metadata   ─▶ configuration               (:mod:`weitune.gguf.configuration` for all but Llama, Qwen2 and Qwen3)
    tensors    ─▶ parameters, one at a time    dequantized from the mapped file straight into their number format

transformers' own loader takes the families that it maps, but it reads every header string through NumPy, several
times, holds the whole model in memory before it fills the parameters, and computes some models otherwise than llama.cpp
(Gemma without its windows). It is the reference of the tests for Llama, Qwen2 and Qwen3, and it loads the families that
are not known here.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weitune.errors import ModelError
from weitune.gguf.architecture import Architecture, known_architecture, stored_parameters, tensors_that_are_run
from weitune.gguf.configuration.find import configuration, is_known, require_same
from weitune.gguf.families.find import family_of
from weitune.gguf.header import GgufHeader, StoredTensor, read_header
from weitune.gguf.rope import require_kept, require_scaling, rope_scaling
from weitune.gguf.vocabulary import stop_tokens, token_id
from weitune.model.load.locate import ModelFiles
from weitune.model.load.weight_files import counted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CONFIG = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "rope.freq_base": "rope_theta",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
_HEAD_SIZE = {"llama": "rope.dimension_count", "qwen3": "attention.key_length"}
_BIASES = {
    "llama": {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_down.bias"},
    "qwen3": {"attention_bias": "blk.0.attn_q.bias"},
}
_ROPE_THETA = 10000.0
"""What llama.cpp takes where a file says nothing."""
_READERS = 4
"""Threads that dequantize weights."""
_FEW_VALUES = 1 << 20
"""Tensors of fewer, such as norms and rates, are converted in float32 before they are rounded."""
_SPECIAL = {"bos": "bos", "unknown": "unk", "padding": "pad"}


def known(header: GgufHeader) -> Architecture | None:
    """Return the architecture of a file that this module can load; None if transformers must load it."""
    mistral = header.architecture == "llama" and header.get("general.name") == "mistral"
    return None if mistral else known_architecture(header)


def gguf_config(files: ModelFiles) -> Any:
    """Return the transformers configuration of a ``.gguf`` file. Raises ModelError or what transformers raises."""
    from transformers import CONFIG_MAPPING, AutoConfig

    header = read_header(files.path)
    if known(header) is None and is_known(header):
        return _configured(header, files)
    if known(header) is None:
        config = AutoConfig.from_pretrained(
            files.folder, gguf_file=files.gguf, local_files_only=True, trust_remote_code=False
        )
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        return config
    family = header.architecture
    keys = {f"{family}.{key}": name for key, name in _CONFIG.items()}
    if family in _HEAD_SIZE:
        keys[f"{family}.{_HEAD_SIZE[family]}"] = "head_dim"
    keys["general.name"] = "_model_name_or_path"
    values = {name: header.get(key) for key, name in keys.items() if key in header.metadata}
    special = {f"{name}_token_id": token_id(header, key) for key, name in _SPECIAL.items()}
    values |= {name: token for name, token in special.items() if token is not None}
    values["eos_token_id"] = stop_tokens(header)
    if "vocab_size" not in values and "tokenizer.ggml.tokens" in header.metadata:
        values["vocab_size"] = header.metadata["tokenizer.ggml.tokens"].count
    if scaling := rope_scaling(header, values.get("rope_theta", _ROPE_THETA)):
        values = {key: value for key, value in values.items() if key != "rope_theta"} | {"rope_parameters": scaling}
    values["tie_word_embeddings"] = "output.weight" not in header.tensors
    values |= {name: True for name, tensor in _BIASES.get(family, {}).items() if tensor in header.tensors}
    config = CONFIG_MAPPING[family].from_dict({"model_type": family, **values})
    config.name_or_path = str(files.folder)
    return config


def _configured(header: GgufHeader, files: ModelFiles) -> Any:
    from transformers import CONFIG_MAPPING

    kind, values = configuration(header)
    config = CONFIG_MAPPING[kind](**values)
    require_same(header, family_of(config))
    require_kept(header, config)
    config.name_or_path = str(files.folder)
    return config


def gguf_model(files: ModelFiles, dtype: torch.dtype, placement: Any) -> PreTrainedModel:
    """Return the model of a ``.gguf`` file in ``dtype``, its layers placed by ``placement`` (a ``device_map``).

    Raises ModelError if the file lacks weights, or what transformers and gguf raise.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    header = read_header(files.path)
    config, alike = gguf_config(files), known(header)
    if alike is None and not is_known(header):
        require_scaling(header, config)
        return _by_transformers(files, dtype, placement)
    architecture = alike or Architecture(family_of(config))
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    weights = {
        name: _Dequantized(name, tensors, architecture, dtype)
        for name, tensors in stored_parameters(architecture, header).items()
    }
    if alike is not None and placement == {"": torch.device("cpu")}:
        model, missing = _filled(kind, config, weights, dtype)
    else:
        model, report = kind.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, device_map=placement, output_loading_info=True
        )
        missing = report["missing_keys"]
    _require_none_missing(files, missing)
    _require_all_used(files, header, weights, model)
    model.config.name_or_path = model.name_or_path = str(files.folder)
    loaded: PreTrainedModel = model
    return loaded


def _require_none_missing(files: ModelFiles, missing: Iterable[str]) -> None:
    if names := sorted(missing):
        raise ModelError("model.gguf_model.lacks_weights", path=files.path, **counted(names))


def _require_all_used(
    files: ModelFiles, header: GgufHeader, weights: Mapping[str, _Dequantized], model: PreTrainedModel
) -> None:
    """Raise ModelError if ``model`` has no place for a tensor of the file that llama.cpp would compute with."""
    places = model.state_dict().keys()
    used = {tensor.name for name, read in weights.items() if name in places for tensor in read.stored}
    if others := sorted(tensors_that_are_run(header).keys() - used):
        raise ModelError("model.gguf_model.other_tensors", path=files.path, **counted(others))


def _filled(kind: Any, config: Any, weights: Mapping[str, _Dequantized], dtype: torch.dtype) -> tuple[Any, set[str]]:
    """Return a model of class ``kind`` with ``weights``, and the names of those that are missing.

    What ``from_pretrained`` does, without the conversions of all families' names; no tensor is on the meta device, so
    that buffers have their values from the start. Weights are read by several threads.
    """
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = kind._from_config(config, dtype=dtype)  # memory that nothing has written takes none
    model.tie_weights()
    places = {name: tensor for name, tensor in model.named_parameters() if name in weights}

    def fill(name: str) -> None:
        places[name].data = weights[name][...].to(dtype)

    with ThreadPoolExecutor(_READERS) as readers:
        for _ in readers.map(fill, places):
            pass
    return model.eval(), {name for name, _ in model.named_parameters()} - places.keys()


@dataclass(frozen=True, slots=True)
class _Dequantized:
    """A value of a state dict that is read when transformers slices it, as it slices safetensors.

    A small one comes in float32: transformers converts it, and keeps the biases of some routers as they are.
    """

    name: str
    stored: list[StoredTensor]
    architecture: Architecture
    dtype: torch.dtype

    def __getitem__(self, index: Any) -> Tensor:
        few = sum(map(prod, (tensor.shape for tensor in self.stored))) < _FEW_VALUES
        tensors = [tensor.read(torch.float32 if few else self.dtype) for tensor in self.stored]
        whole = self.architecture.to_huggingface(self.name, *tensors)
        return (whole if few else whole.to(self.dtype))[index]


def _by_transformers(files: ModelFiles, dtype: torch.dtype, placement: Any) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, GgufConfig

    model: PreTrainedModel
    with redirect_stderr(io.StringIO()):  # the reader draws a progress bar even where there is no terminal
        model, report = AutoModelForCausalLM.from_pretrained(
            files.folder,
            gguf_file=files.gguf,
            quantization_config=GgufConfig(dequantize=True),
            dtype=dtype,
            device_map=placement,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    _require_none_missing(files, report["missing_keys"])  # transformers draws them at random
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are plain numbers now
    return model
