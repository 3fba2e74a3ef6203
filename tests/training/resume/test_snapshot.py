"""A snapshot holds what PEFT would write and what AdamW knows, and puts it back to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.families import family_model
from tests.tiny import tiny_model
from weitune.errors import NonFiniteError, RunError
from weitune.model.file_names import ADAPTER_FILES, MODEL_FILES
from weitune.model.lora.adapter import attach_adapter
from weitune.model.lora.trainable_state import LoraAdapter, WholeModel
from weitune.recipe.schema import Lora, Train
from weitune.run.checkpoint import write_checkpoint
from weitune.run.names import OPTIMIZER, STATE
from weitune.training.optim import make_optimizer
from weitune.training.resume.snapshot import Snapshot, restore

CONFIG, TENSORS = ADAPTER_FILES


def moved(seed: int = 0, without_gradient: str = "") -> tuple[Any, torch.optim.Optimizer]:
    """Return an adapted model after three optimizer steps with random gradients."""
    model = attach_adapter(tiny_model(), Lora(target_modules=["q_proj", "down_proj"]), seed=seed, base="tiny")
    optimizer = make_optimizer(model.named_parameters(), Train(learning_rate=0.1))
    draw = torch.Generator().manual_seed(seed)
    for _ in range(3):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not (without_gradient and without_gradient in name):
                parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()
    return model, optimizer


def states(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return every trained tensor and its moments by name."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[name] = parameter.detach().clone()
            found |= {f"{name} {kind}": value.clone() for kind, value in optimizer.state.get(parameter, {}).items()}
    return found


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_adapter_is_what_peft_writes(tmp_path: Path) -> None:
    model, optimizer = moved()
    model.save_pretrained(str(tmp_path / "peft"), save_embedding_layers=False)
    files = dict(Snapshot.take(3, LoraAdapter(model), optimizer, {}).files())
    assert files[TENSORS] == (tmp_path / "peft" / TENSORS).read_bytes()
    ours, theirs = json.loads(files[CONFIG]), json.loads((tmp_path / "peft" / CONFIG).read_text())
    assert ours["target_modules"] == sorted(theirs["target_modules"])  # a set: PEFT's order is another in each process
    theirs["target_modules"] = ours["target_modules"]
    assert ours == theirs


def test_peft_reads_a_checkpoint(tmp_path: Path) -> None:
    model, optimizer = moved()
    checkpoint = write_checkpoint(tmp_path, 3, Snapshot.take(3, LoraAdapter(model), optimizer, {}).files())
    again = PeftModel.from_pretrained(tiny_model(), checkpoint.folder)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)


def test_restored_to_the_bit_and_goes_on_the_same(tmp_path: Path) -> None:
    model, optimizer = moved(seed=1)
    checkpoint = write_checkpoint(tmp_path, 3, Snapshot.take(3, LoraAdapter(model), optimizer, {"metric": 0.5}).files())
    assert checkpoint.state == {"step": 3, "metric": 0.5}
    fresh, fresh_optimizer = moved(seed=2)
    restore(checkpoint, LoraAdapter(fresh), fresh_optimizer)
    assert_equal(states(fresh, fresh_optimizer), states(model, optimizer))
    for one, its in ((model, optimizer), (fresh, fresh_optimizer)):
        for parameter in one.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)
        its.step()
    assert_equal(states(fresh, fresh_optimizer), states(model, optimizer))


def test_moments_in_16_bits_go_on_in_float32(tmp_path: Path) -> None:
    """As checkpoints have them of modules that were trained whole beside a base in bfloat16."""
    model, optimizer = moved()
    for state in optimizer.state.values():
        state |= {name: state[name].bfloat16() for name in ("exp_avg", "exp_avg_sq")}
    checkpoint = write_checkpoint(tmp_path, 3, Snapshot.take(3, LoraAdapter(model), optimizer, {}).files())
    fresh, fresh_optimizer = moved(seed=2)
    restore(checkpoint, LoraAdapter(fresh), fresh_optimizer)
    assert {each.dtype for state in fresh_optimizer.state.values() for each in state.values()} == {torch.float32}


def test_a_whole_model_has_its_buffers_and_one_without_keeps_the_bases(tmp_path: Path) -> None:
    model = family_model("deepseek_v3")
    optimizer = make_optimizer(model.named_parameters(), Train())
    checkpoint = write_checkpoint(tmp_path, 3, Snapshot.take(3, WholeModel(model), optimizer, {}).files())
    file = checkpoint.folder / MODEL_FILES[1]
    saved = load_file(file)
    (bias,) = [name for name in saved if name.endswith("e_score_correction_bias")]
    assert saved.keys() == model.state_dict().keys()
    fresh = family_model("deepseek_v3")
    for kept in (True, False):
        fresh.state_dict()[bias].fill_(7)
        if not kept:  # as earlier versions wrote it
            save_file({name: tensor for name, tensor in saved.items() if name != bias}, file)
        restore(checkpoint, WholeModel(fresh), make_optimizer(fresh.named_parameters(), Train()))
        assert torch.equal(fresh.state_dict()[bias], saved[bias] if kept else torch.full_like(saved[bias], 7))


def test_a_parameter_that_never_moved_has_no_moments(tmp_path: Path) -> None:
    """An expert that no token was sent to: AdamW knows nothing of it, and must know nothing of it afterwards."""
    model, optimizer = moved(without_gradient="layers.1.")
    checkpoint = write_checkpoint(tmp_path, 3, Snapshot.take(3, LoraAdapter(model), optimizer, {}).files())
    assert not [name for name in load_file(checkpoint.folder / OPTIMIZER) if "layers.1." in name]
    fresh = attach_adapter(tiny_model(), Lora(target_modules=["q_proj", "down_proj"]), seed=5, base="tiny")
    fresh_optimizer = make_optimizer(fresh.named_parameters(), Train(learning_rate=0.1))
    restore(checkpoint, LoraAdapter(fresh), fresh_optimizer)
    assert_equal(states(fresh, fresh_optimizer), states(model, optimizer))


def test_it_is_a_copy() -> None:
    model, optimizer = moved()
    snapshot = Snapshot.take(3, LoraAdapter(model), optimizer, {})
    before = dict(snapshot.files())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
        for state in optimizer.state.values():
            state["exp_avg"].add_(1.0)
            state["step"].add_(1.0)
    assert dict(snapshot.files()) == before
    assert 0.9 < snapshot.size_bytes / sum(map(len, before.values())) < 1.4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weight", "moment"])
def test_numbers_that_are_not_finite_make_no_snapshot(where: str, bad: float) -> None:
    model, optimizer = moved()
    parameter = next(p for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        (parameter if where == "weight" else optimizer.state[parameter]["exp_avg_sq"])[0, 0] = bad
    with pytest.raises(NonFiniteError, match="after step 3, numbers are not finite in 1 of the tensors"):
        Snapshot.take(3, LoraAdapter(model), optimizer, {})


def test_another_model_is_named_tensor_by_tensor(tmp_path: Path) -> None:
    model, optimizer = moved()
    checkpoint = write_checkpoint(tmp_path, 3, Snapshot.take(3, LoraAdapter(model), optimizer, {}).files())
    other = attach_adapter(tiny_model(), Lora(target_modules=["k_proj", "down_proj"]), seed=0, base="tiny")
    with pytest.raises(RunError) as caught:
        restore(checkpoint, LoraAdapter(other), make_optimizer(other.named_parameters(), Train()))
    assert "self_attn.k_proj.lora_A.weight: missing" in str(caught.value)
    assert "self_attn.q_proj.lora_A.weight: not part of this model" in str(caught.value)


def test_state_is_json(tmp_path: Path) -> None:
    model, optimizer = moved()
    files = dict(Snapshot.take(3, LoraAdapter(model), optimizer, {"recipe": {"system": "甄嬛"}}).files())
    assert json.loads(files[STATE]) == {"step": 3, "recipe": {"system": "甄嬛"}}
    with pytest.raises(ValueError, match="JSON"):
        dict(Snapshot.take(3, LoraAdapter(model), optimizer, {"metric": float("nan")}).files())
