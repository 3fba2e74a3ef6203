"""Models are imported without the compiler and distributed tensors, and both are there as soon as they are used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families import FAMILIES, family_model
from tests.tiny import save_tiny_run

HEAVY = ("torch._inductor", "torch._dynamo.eval_frame", "torch.distributed.tensor", "peft", "bitsandbytes")


def _printed(program: str, *arguments: str) -> list[str]:
    """Run ``program`` in a process of its own, and return what it prints."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


CHAT = f"""
import sys
from weitune.cli import main

assert main(["chat", sys.argv[1], "--prompt", "hi", "--max-new-tokens", "2"]) == 0
print([name for name in {HEAVY!r} if name in sys.modules])
"""


def test_a_chat_imports_neither_compiler_nor_peft(tmp_path: Path) -> None:
    assert _printed(CHAT, str(save_tiny_run(tmp_path / "run")))[-1] == "[]"


COMPILER = """
import sys
from weitune.model.lean_imports import Compiler, import_models

import_models()
import torch
from transformers import masking_utils

assert "sympy" not in sys.modules
stand_in = sys.modules["torch._dynamo"]
assert isinstance(stand_in, Compiler)
seen = []

@torch.compiler.disable
def aside(x):
    "Added by hand."
    seen.append(torch.compiler.is_compiling())
    return x + 1

assert aside(torch.zeros(1)) == 1 and aside.__doc__ == "Added by hand."
assert sys.modules["torch._dynamo"] is stand_in
import torch._dynamo.config as config

real = sys.modules["torch._dynamo"]
assert real is not stand_in and real is torch._dynamo
assert config is real.config is sys.modules["torch._dynamo.config"]

@torch.compile(backend="eager")
def compiled(x):
    seen.append(torch.compiler.is_compiling())
    return aside(2 * x)

assert compiled(torch.ones(1)) == 3
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

assert type(masking_utils.TransformGetItemToIndex()) is TransformGetItemToIndex
import json; print(json.dumps(seen))
"""


def test_the_compiler_is_imported_when_it_is_used_and_leaves_out_what_was_decorated_before() -> None:
    eager, *while_compiling = json.loads(_printed(COMPILER)[-1])
    assert eager is False
    assert while_compiling[-1] is False  # `aside` was not compiled


TENSORS = """
import sys
from weitune.model.lean_imports import import_models

import_models()
import torch.distributed
assert "torch.distributed.tensor" not in sys.modules and torch.distributed.is_available()
named = torch.distributed.tensor.DTensor  # as PEFT asks for it
from torch.distributed.tensor import DTensor

assert named is DTensor and torch.distributed.tensor is sys.modules["torch.distributed.tensor"]

from transformers.models.qwen2 import Qwen2ForCausalLM  # the list of classes is whole
from transformers.models.mamba.configuration_mamba import MambaConfig
"""


def test_distributed_tensors_are_imported_when_they_are_used() -> None:
    _printed(TENSORS)


SHAPES = """
import sys
from weitune.model.lean_imports import import_models

import_models()
import torch

x = torch.ones(2, 3, requires_grad=True)
y = 2 * x
assert torch.equal(torch.autograd.grad(y, x, torch.ones(2, 3), retain_graph=True)[0], torch.full((2, 3), 2.0))
assert "sympy" not in sys.modules
try:
    torch.autograd.grad(y, x, torch.ones(3, 2))
except RuntimeError as error:
    assert "Mismatch in shape" in str(error)
else:
    raise AssertionError("shapes that differ were taken for equal")
import torch.fx.experimental.symbolic_shapes

torch.fx.experimental.symbolic_shapes.ShapeEnv()
assert type(sys.modules["torch.fx.experimental.symbolic_shapes"]).__name__ == "module" and "sympy" in sys.modules
"""


def test_gradients_are_checked_without_sympy() -> None:
    _printed(SHAPES)


LAUNCHED = """
import sys
from weitune.model.lean_imports import import_models

import_models()
assert "torch.distributed.tensor" in sys.modules and "torch._dynamo.eval_frame" in sys.modules
"""


def test_processes_that_train_together_import_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    _printed(LAUNCHED)


COLLECTIONS = """
import gc
from weitune.model.lean_imports import no_collections

with no_collections():
    assert not gc.isenabled()
    kept = [[] for _ in range(1000)]
assert gc.isenabled() and gc.get_freeze_count() >= 1000
gc.disable()
with no_collections():
    pass
assert not gc.isenabled()
"""


def test_the_search_for_cycles_goes_on_after_the_block() -> None:
    _printed(COLLECTIONS)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_model_has_the_names_and_shapes_of_the_whole_one(name: str) -> None:
    from weitune.model.load.text_model import empty_model, model_from_config, text_config

    config = text_config(family_model(name).config)
    expected, empty = model_from_config(config), empty_model(config)
    assert _shapes(empty) == _shapes(expected)
    assert any(parameter.is_meta for parameter in empty.parameters())


def _shapes(model: object) -> dict[str, object]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in model.named_parameters()}  # type: ignore[attr-defined]
