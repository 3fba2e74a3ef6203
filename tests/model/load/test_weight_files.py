"""Everything that reads a model's folder reads the same weights, or the folder is refused with the names in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import save_tiny, save_tiny_adapter
from weitune.errors import ModelError
from weitune.export.source.base_weights import open_weights
from weitune.forecast.memory_watch import weight_numbers
from weitune.model.load.fingerprint import base_fingerprints, model_fingerprint
from weitune.model.load.locate import locate
from weitune.model.load.weight_files import INDEX, SINGLE, read_safetensors_header, stored_weights, weight_files
from weitune.model.load.weights import load_model

NORM = "model.norm.weight"


def divide(folder: Path, count: int = 2, scale: float = 1.0) -> None:
    """Write the weights of ``folder``, times ``scale``, as shards beside what is there, with their index."""
    tensors = {name: tensor * scale for name, tensor in load_file(folder / SINGLE).items()}
    names = sorted(tensors)
    weight_map = {}
    for k in range(count):
        file = f"model-{k + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in names[k::count]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def as_shards(folder: Path) -> None:
    divide(folder)
    (folder / SINGLE).unlink()


def both(folder: Path) -> None:
    divide(folder, scale=2)


def index_left_over(folder: Path) -> None:
    both(folder)
    for path in folder.glob("model-*"):
        path.unlink()


def shards_left_over(folder: Path) -> None:
    both(folder)
    (folder / INDEX).unlink()


def shards_without_index(folder: Path) -> None:
    as_shards(folder)
    (folder / INDEX).unlink()


def lacks_a_shard(folder: Path) -> None:
    as_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def index_of_one_file(folder: Path) -> None:
    names = load_file(folder / SINGLE)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, SINGLE)}))


def shards_of_two_divisions(folder: Path) -> None:
    """An older division in three lies beside the one in two that the index names."""
    divide(folder, 3, scale=2)
    as_shards(folder)


def other_files(folder: Path) -> None:
    tensors = {name: 2 * tensor for name, tensor in load_file(folder / SINGLE).items()}
    for name in ("consolidated.safetensors", "model.fp16.safetensors", "training.safetensors"):
        save_file(tensors, folder / name, metadata={"format": "pt"})
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")


def only_consolidated(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "consolidated.safetensors")


def only_a_variant(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "model.fp16.safetensors")


def only_pickles(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")


def nothing(folder: Path) -> None:
    (folder / SINGLE).unlink()


def beside_a_gguf(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / "model.Q8_0.gguf").write_bytes(b"GGUF")


def beside_an_adapter(folder: Path) -> None:
    save_tiny_adapter(folder, folder)


def named_by_config(folder: Path) -> None:
    tensors = {name: 2 * tensor for name, tensor in load_file(folder / SINGLE).items()}
    save_file(tensors, folder / "other.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))


def cut(folder: Path) -> None:
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[:-100])


def lacks_a_weight(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    del tensors[NORM]
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def index_names_a_weight_too_many(folder: Path) -> None:
    as_shards(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


def a_weight_twice(folder: Path) -> None:
    as_shards(folder)
    for path in sorted(folder.glob("model-*")):
        tensors = load_file(path)
        save_file({**tensors, NORM: torch.zeros(64)}, path, metadata={"format": "pt"})


def index_leads_out(folder: Path) -> None:
    as_shards(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {NORM: "../x.safetensors"}}))


TAKEN: list[Callable[[Path], object]] = [
    lambda folder: None, as_shards, index_of_one_file, shards_of_two_divisions, other_files,
]  # fmt: skip
REFUSED: dict[Callable[[Path], None], list[str]] = {
    both: ["two sets of weights", SINGLE, INDEX, "model-00001-of-00002.safetensors", "Move away"],
    index_left_over: ["two sets of weights", SINGLE, INDEX, "Move away"],
    shards_left_over: ["two sets of weights", SINGLE, "model-00001-of-00002.safetensors", "no index"],
    shards_without_index: ["model-00001-of-00002.safetensors", f"no {INDEX}", f"Download {INDEX}"],
    lacks_a_shard: ["lacks 1 of the 2 files", "model-00002-of-00002.safetensors"],
    only_consolidated: [f"no {SINGLE}", "consolidated.safetensors"],
    only_a_variant: [f"no {SINGLE}", "model.fp16.safetensors"],
    only_pickles: ["only pickled weights", "can run code"],
    nothing: [f"has no {SINGLE}"],
    beside_a_gguf: [f"no {SINGLE}", "model.Q8_0.gguf", "Give the file itself"],
    beside_an_adapter: ["a model (config.json) and an adapter (adapter_config.json)", "folder of their own"],
    named_by_config: ["'other.safetensors'", "transformers_weights"],
    cut: [SINGLE, "not a whole safetensors file"],
    index_names_a_weight_too_many: [INDEX, "model.extra.weight", "not there"],
    a_weight_twice: [f"holds the weight {NORM} twice", "00001-of-00002", "00002-of-00002"],
    index_leads_out: [INDEX, "does not say which file"],
}


def loaded(folder: Path) -> dict[str, Tensor]:
    return dict(load_model(str(folder), precision="fp32", device="cpu").model.state_dict())


@pytest.mark.parametrize("arrange", TAKEN, ids=lambda each: each.__name__)
def test_all_who_read_a_folder_read_the_same(arrange: Callable[[Path], object], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    wanted, before = load_file(folder / SINGLE), base_fingerprints(locate(str(folder)))
    arrange(folder)
    files = locate(str(folder))
    exported, trained = open_weights(files), loaded(folder)
    assert exported.slots.keys() == wanted.keys() == stored_weights(folder).keys()
    for name, tensor in wanted.items():
        assert torch.equal(exported.read(name), tensor)
        assert torch.equal(trained[name], tensor)
        assert exported.slots[name] == (tensor.dtype, tuple(tensor.shape))
    assert weight_numbers(files) == sum(tensor.numel() for tensor in wanted.values())
    assert base_fingerprints(files)["model weights"] == before["model weights"]


@pytest.mark.parametrize("arrange", REFUSED, ids=lambda each: each.__name__)
def test_all_refuse_a_folder_that_programs_would_read_differently(
    arrange: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "model")
    arrange(folder)
    files = locate(str(folder))
    for read in (lambda: loaded(folder), lambda: open_weights(files), lambda: base_fingerprints(files),
                 lambda: weight_numbers(files)):  # fmt: skip
        with pytest.raises(ModelError) as refused:
            read()
        assert all(text in str(refused.value) for text in REFUSED[arrange]), str(refused.value)


def test_a_model_that_lacks_a_weight_is_not_filled_up_with_random_numbers(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    lacks_a_weight(folder)
    with pytest.raises(ModelError, match=rf"lacks 1 weights of its architecture: {NORM}") as refused:
        loaded(folder)
    assert "download is complete" in refused.value.fix


def test_files_of_other_uses_are_not_in_the_fingerprint(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    before = model_fingerprint(locate(str(folder)))
    other_files(folder)
    assert model_fingerprint(locate(str(folder))) == before
    assert weight_files(folder) == [folder / SINGLE]


def test_a_header_says_where_each_tensor_lies(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6, dtype=torch.float32).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_safetensors_header(tmp_path / "x.safetensors")
    assert {name: (weight.dtype, weight.shape, weight.bytes, weight.numel) for name, weight in found.items()} == {
        "a": ("F32", (2, 3), 24, 6), "b": ("BF16", (4,), 8, 4),
    }  # fmt: skip
    content = (tmp_path / "x.safetensors").read_bytes()
    start = found["a"].start
    assert content[start : start + 24] == tensors["a"].numpy().tobytes()


@pytest.mark.parametrize(
    "content", [b"", b"torn", b"\xff" * 20, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{]"]
)
def test_what_is_no_safetensors_file_is_said(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        read_safetensors_header(tmp_path / "x.safetensors")


def test_a_folder_that_is_refused_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from weitune.cli import main

    folder = save_tiny(tmp_path / "model")
    both(folder)
    (tmp_path / "data.json").write_text('[{"instruction": "Hi", "output": "Hello."}]')
    arguments = [
        "train",
        "--model",
        str(folder),
        "--data",
        str(tmp_path / "data.json"),
        "--output",
        str(tmp_path / "r"),
    ]
    assert main(arguments) == 2
    assert "two sets of weights" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
