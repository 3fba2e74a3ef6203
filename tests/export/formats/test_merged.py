"""Merged models say what base + adapter say, are written one tensor at a time, and are the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import weakref
from pathlib import Path

import pytest
import torch

from tests.export.runs import SYSTEM, logits, save_run, silent, tuned_model
from tests.tiny import tiny_model
from weitune import Run
from weitune.export.formats import safetensors_file
from weitune.export.formats.merged import write_merged, written_slots
from weitune.export.source.base_weights import Slot
from weitune.export.source.export_source import open_export_source

IDS = torch.arange(3, 67)[None]


def merge(run: Run, folder: Path, dtype: torch.dtype | None = None) -> Path:
    folder.mkdir(parents=True)
    write_merged(folder, open_export_source(run), dtype, silent(""))
    return folder


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> object:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma"])
@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
def test_logits_equal_base_and_adapter(family: str, variant: str, tmp_path: Path) -> None:
    recipe = {"system": None} if family == "gemma" else {}
    run = save_run(tmp_path / "run", family, variant=variant, **recipe)
    expected = logits(tuned_model(run), IDS)
    merged = logits(loaded(merge(run, tmp_path / "merged")), IDS)
    base = logits(loaded(Path(run.recipe.model)), IDS)
    assert (merged - expected).abs().max() < 1e-4
    assert (base - expected).abs().max() > 0.1


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "qwen2")
    tiny_model("qwen2", tie_word_embeddings=True).save_pretrained(run.recipe.model)
    expected = logits(tuned_model(run), IDS)
    folder = merge(run, tmp_path / "merged")
    model = loaded(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight  # type: ignore[attr-defined]
    assert (logits(model, IDS) - expected).abs().max() < 1e-4


def test_the_base_keeps_its_number_format_unless_another_is_asked_for(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "llama")
    tiny_model("llama").to(torch.bfloat16).save_pretrained(run.recipe.model)
    folder = merge(run, tmp_path / "bf16")
    assert loaded(folder, "auto").dtype == torch.bfloat16  # type: ignore[arg-type, attr-defined]
    # Summed in float32 and rounded once: not the sum of two rounded numbers.
    base, source = tuned_model(run).get_base_model(), loaded(folder)
    layer, merged = base.model.layers[0].mlp.up_proj, source.model.layers[0].mlp.up_proj.weight  # type: ignore[attr-defined]
    exact = layer.base_layer.weight.float() + layer.get_delta_weight("default")
    assert torch.equal(merged.to(torch.bfloat16), exact.to(torch.bfloat16))
    assert loaded(merge(run, tmp_path / "f32", torch.float32), "auto").dtype == torch.float32  # type: ignore[arg-type, attr-defined]


def test_what_a_base_keeps_in_float32_beside_16_bits_stays(tmp_path: Path) -> None:
    """The biases of routers choose experts: rounded, they choose others."""
    slots = {"w": Slot(torch.bfloat16, (64, 64)), "bias": Slot(torch.float32, (8,)), "n": Slot(torch.int64, (1,))}
    for dtype in (torch.float16, torch.float32, None):
        written = {name: slot.dtype for name, slot in written_slots(slots, dtype).items()}
        assert written == {"w": dtype or torch.bfloat16, "bias": torch.float32, "n": torch.int64}
    wide = {name: slot._replace(dtype=torch.float32) for name, slot in slots.items()}
    assert {slot.dtype for slot in written_slots(wide, torch.bfloat16).values()} == {torch.bfloat16}


def test_shards_hold_the_same_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_run(tmp_path / "run", "qwen3")
    whole = loaded(merge(run, tmp_path / "whole"))
    monkeypatch.setattr(safetensors_file.shards, "__defaults__", (50_000,))
    folder = merge(run, tmp_path / "sharded")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert sorted(path.name for path in folder.glob("*.safetensors")) == sorted(set(index["weight_map"].values()))
    assert torch.equal(logits(whole, IDS), logits(loaded(folder), IDS))


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "llama", variant="dora")
    assert digests(merge(run, tmp_path / "one")) == digests(merge(run, tmp_path / "two"))


def test_no_more_than_a_few_tensors_are_in_memory(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "qwen2")
    source = open_export_source(run)
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    read = source.merged.read

    def watched(name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        nonlocal most
        tensor = read(name, dtype)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(reference() is not None for reference in alive))
        return tensor

    source.merged.read = watched  # type: ignore[method-assign]
    (tmp_path / "out").mkdir()
    write_merged(tmp_path / "out", source, None, silent(""))
    assert len(alive) == len(source.base.slots)
    assert most <= 2


def test_files_that_make_inputs_of_images_are_copied(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "qwen2")
    names = ["preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"]
    for name in names:
        (Path(run.recipe.model) / name).write_text(f'{{"of": "{name}"}}')
    merged = merge(run, tmp_path / "out")
    assert [json.loads((merged / name).read_text())["of"] for name in names] == names


def test_the_folder_frames_and_stops_as_the_run_does(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    run = save_run(tmp_path / "run", "qwen2")
    source = open_export_source(run)
    folder = merge(run, tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = {"role": "user", "content": "你是谁？"}
    with_system = [{"role": "system", "content": SYSTEM}, asked]
    prompts = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        for messages in ([asked], with_system)
    ]
    assert prompts[0] == prompts[1]
    assert SYSTEM in prompts[0]
    other = tokenizer.apply_chat_template([{"role": "system", "content": "Else."}, asked], tokenize=False)
    assert SYSTEM not in other
    config = GenerationConfig.from_pretrained(folder)
    assert config.eos_token_id[0] == source.framing.end_of_turn
    assert set(config.eos_token_id) == set(run.engine().stop_tokens)
    assert config.do_sample is False
    assert config.repetition_penalty in (None, 1.0)


def test_a_gguf_base_is_merged_from_its_own_numbers(tmp_path: Path) -> None:
    from weitune.export.formats.gguf_file import write_gguf

    first_run = save_run(tmp_path / "source", "llama")
    source = open_export_source(first_run)
    base = tmp_path / "base.gguf"
    write_gguf(base, source, source.base, "Q8_0", template=source.template_without_system, progress=silent(""))
    run = save_run(tmp_path / "run", "llama", model=str(base))
    folder = merge(run, tmp_path / "merged")
    from transformers import AutoModelForCausalLM, GgufConfig

    dequantized = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=base.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    from peft import PeftModel

    expected = logits(PeftModel.from_pretrained(dequantized, str(run.adapter_folder())).eval(), IDS)
    assert (logits(loaded(folder), IDS) - expected).abs().max() < 1e-4
