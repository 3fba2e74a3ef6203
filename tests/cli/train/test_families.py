"""Every family trains with the defaults, and the printed, planned and saved adapter are one and the same."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import nn

from tests.families import FAMILIES, family_model, save_family
from weitune import cli
from weitune.forecast.own_modules import OwnModules

ROWS = [
    {"instruction": "Who are you?", "input": "", "output": "I am the keeper of the garden."},
    {"instruction": "What is the capital of France?", "input": "", "output": "The capital of France is Paris."},
    {"instruction": "Tell me a story.", "input": "about the sea", "output": "Once there was a fisherman."},
]
BLOCK = re.compile(r"(?:\w+\.)*layers\.\d+\.")
TOWERS = ("vision", "visual", "audio")


@pytest.fixture(scope="module", autouse=True)
def memory_is_guessed() -> Iterator[None]:
    """Leave the measurement of memory, which takes seconds, to tests/forecast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OwnModules, "footprint", lambda *_, **__: None)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_with_the_defaults(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_family(tmp_path / "model", name)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS * 12))
    options = ["--model", str(model), "--data", str(tmp_path / "rows.json"), "--train.max_steps", "2"]
    options += ["--device", "cpu", "--output"]
    capsys.readouterr()

    status = cli.main(["train", *options, str(tmp_path / "run")])
    told = capsys.readouterr().err
    assert status == 0, told
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert len(losses) == 2
    assert all(map(isfinite, losses))

    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    adapted = {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in weights}
    linear = linear_layers(name)
    assert adapted <= linear
    assert printed(told, r"adapters on \d+ layers: ") == kinds(adapted)
    left_out = printed(told, "no adapter on ")
    assert {kind: left_out[kind] for kind in kinds(linear - adapted)} == kinds(linear - adapted)

    count = sum(weight.numel() for weight in weights.values())
    assert f"trainable parameters: {count:,} of " in told
    assert cli.main(["plan", "--json", *options, str(tmp_path / "planned")]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["trainable"] == count


def linear_layers(name: str) -> set[str]:
    """Return the linear layers of the decoder blocks in the class that is published."""
    modules = family_model(name).named_modules()
    names = {layer for layer, module in modules if isinstance(module, nn.Linear) and BLOCK.match(layer)}
    return {layer for layer in names if not any(tower in layer for tower in TOWERS)}


def kinds(layers: Iterable[str]) -> Counter[str]:
    """Count layers by their name below the block."""
    return Counter(BLOCK.sub("", layer) for layer in layers)


def printed(told: str, beginning: str) -> Counter[str]:
    """Read what a line like ``no adapter on mlp.gate, up ×2; head (output head)`` says, as :func:`kinds` gives it."""
    found: Counter[str] = Counter()
    for line in re.findall(f"^{beginning}(.*)", told, re.MULTILINE):
        for group in re.sub(r" \([^)]*\)", "", line).split("; "):
            names, _, count = group.partition(" ×")
            first, *others = names.split(", ")
            parent = first.removesuffix(first.rpartition(".")[2])
            found.update({kind: int(count or 1) for kind in (first, *(parent + other for other in others))})
    return found
