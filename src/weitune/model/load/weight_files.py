"""The files in a folder that hold a model's weights: one rule for training, chat, exports and memory estimates.

    model.safetensors               the weights
    model.safetensors.index.json    names shards, which are the weights
    both                            refused, because programs differ in which of them they read
    any other *.safetensors         ignored: a variant of another precision, an adapter or a second copy

transformers would also load an adapter beside the model, and a file that ``config.json`` names; both are refused.
Headers are compared with the index, so that an error names a shard that is missing, truncated or from another model.

Cost: the header of every file, a few KiB each, is read.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitune.errors import ModelError
from weitune.messages import say
from weitune.model.file_names import ADAPTER_FILES, MODEL_FILES

CONFIG, SINGLE = MODEL_FILES
INDEX = f"{SINGLE}.index.json"
_SHARD = re.compile(r"model.*-\d+-of-\d+\.safetensors")
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A tensor as the header of its file describes it."""

    file: str
    dtype: str
    """By its name in safetensors, such as ``BF16``."""
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in the file."""
    bytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights of the model in ``folder``, by name.

    Raises ModelError if there are none, or if programs would differ in what they read.
    """
    return [folder / name for name in _chosen(folder)]


def stored_weights(folder: Path) -> dict[str, StoredWeight]:
    """Return every tensor of the model in ``folder``, in the order of the files and of the names in them.

    Raises ModelError as :func:`weight_files` does, and if a file is incomplete or the index does not fit the files.
    """
    chosen = _chosen(folder)
    weights: dict[str, StoredWeight] = {}
    for file in chosen:
        for name, tensor in sorted(read_safetensors_header(folder / file).items()):
            if name in weights:
                first = weights[name].file
                raise ModelError("model.weight_files.weight_twice", folder=folder, name=name, first=first, second=file)
            weights[name] = tensor
    if (folder / INDEX).is_file():
        _check_index(folder, _weight_map(folder), weights)
    return weights


def read_safetensors_header(path: Path) -> dict[str, StoredWeight]:
    """Return the tensors of a safetensors file. Raises ModelError if the file is incomplete."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > size - _LENGTH.size:
                raise ValueError(say("model.weight_files.header_too_long", header_bytes=length, file_bytes=size))
            header: dict[str, Any] = json.loads(file.read(length))
        first = _LENGTH.size + length
        tensors = {name: _stored(path.name, entry, first) for name, entry in header.items() if name != "__metadata__"}
        end = max((tensor.start + tensor.bytes for tensor in tensors.values()), default=first)
        if end != size:
            raise ValueError(say("model.weight_files.length_differs", file_bytes=size, described_bytes=end))
    except OSError as error:
        raise ModelError("model.weight_files.cannot_be_read", path=path, reason=error.strerror or error) from None
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError("model.weight_files.not_a_safetensors_file", path=path, reason=error) from None
    return tensors


def _stored(file: str, entry: Mapping[str, Any], first: int) -> StoredWeight:
    start, stop = (int(offset) for offset in entry["data_offsets"])
    return StoredWeight(file, str(entry["dtype"]), tuple(map(int, entry["shape"])), first + start, stop - start)


def _chosen(folder: Path) -> list[str]:
    _check_nothing_beside(folder)
    single, index = (folder / SINGLE).is_file(), (folder / INDEX).is_file()
    shards = sorted(set(_weight_map(folder).values())) if index else _shards(folder)
    if single and index and shards == [SINGLE]:
        return shards
    if single and shards and index:
        raise ModelError("model.weight_files.single_file_and_index", folder=folder, names=some_names(shards))
    if single and shards:
        raise ModelError("model.weight_files.single_file_and_shards", folder=folder, names=some_names(shards))
    if single:
        return [SINGLE]
    if not index:
        raise _none(folder, shards)
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise ModelError("model.weight_files.lacks_files", folder=folder, shards=len(shards), **counted(missing))
    return shards


def _check_nothing_beside(folder: Path) -> None:
    """Raise ModelError for files that would make transformers load weights other than the folder's own."""
    if (folder / ADAPTER_FILES[0]).is_file():
        raise ModelError("model.weight_files.adapter_beside_model", folder=folder)
    named = read_model_json(folder / CONFIG).get("transformers_weights") if (folder / CONFIG).is_file() else None
    usual = [name for name in (SINGLE, INDEX) if (folder / name).is_file()]
    if named is not None and usual != [named]:
        raise ModelError("model.weight_files.config_names_other_file", folder=folder, named=named)


def _weight_map(folder: Path) -> dict[str, str]:
    """Return the file of each tensor, by the index. Raises ModelError if it is not an index."""
    weight_map = read_model_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_name, weight_map.values())):
        raise ModelError("model.weight_files.not_an_index", folder=folder)
    return weight_map


def _is_name(file: object) -> bool:
    """Return whether ``file`` is the name of a safetensors file in the folder itself."""
    return isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors")


def _check_index(folder: Path, weight_map: Mapping[str, str], weights: Mapping[str, StoredWeight]) -> None:
    if lost := [f"{name} in {file}" for name, file in weight_map.items() if name not in weights]:
        raise ModelError("model.weight_files.index_names_other_weights", folder=folder, **counted(lost))


def _none(folder: Path, shards: list[str]) -> ModelError:
    if shards:
        return ModelError("model.weight_files.shards_without_index", folder=folder, names=some_names(shards))
    if others := sorted(path.name for path in folder.glob("*.safetensors")):
        return ModelError("model.weight_files.only_other_safetensors", folder=folder, names=some_names(others))
    if ggufs := sorted(path.name for path in folder.glob("*.gguf")):
        names = some_names(ggufs)
        return ModelError("model.weight_files.only_gguf_files", folder=folder, names=names, path=folder / ggufs[0])
    if any(folder.glob("*.bin")):
        return ModelError("model.weight_files.only_pickles", folder=folder)
    return ModelError("model.weight_files.no_weights", folder=folder)


def _shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors") if _SHARD.fullmatch(path.name))


def some_names(names: Sequence[str]) -> str:
    """Return the first three of ``names`` in one line."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def counted(names: Sequence[str]) -> dict[str, Any]:
    """Return the values ``count`` and ``names`` of a message about ``names``."""
    return {"count": len(names), "names": some_names(names)}


def read_model_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model. Raises ModelError if it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError("model.weight_files.cannot_be_read", path=path, reason=error.strerror or error) from None
    except ValueError as error:
        raise ModelError("model.weight_files.not_json", path=path, reason=error) from None
    if not isinstance(value, dict):
        raise ModelError("model.weight_files.not_json_object", path=path)
    return value
