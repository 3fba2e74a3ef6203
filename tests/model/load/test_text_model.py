"""The text model of a model with a vision tower: loaded alone, it computes what the whole model computes from text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.families import WRAPPED, family_config, save_family, template_of
from tests.tiny import save_tiny, tiny_tokenizer
from weitune.errors import ModelError
from weitune.model.load.config import read_config, read_whole_config
from weitune.model.load.locate import ModelFiles
from weitune.model.load.names import model_names
from weitune.model.load.text_model import text_class
from weitune.model.load.weights import load_model

PROMPTS = torch.randint(3, 400, (2, 17), generator=torch.Generator().manual_seed(3))
MASK = torch.ones_like(PROMPTS).index_fill(1, torch.arange(4), 0)
"""Four tokens of padding before each prompt."""


def load(folder: Path) -> Any:
    return load_model(str(folder), precision="fp32", device="cpu").model


def whole(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def assert_same(text: Any, wrapper: Any) -> None:
    assert torch.allclose(logits(text, input_ids=PROMPTS), logits(wrapper, input_ids=PROMPTS), rtol=0, atol=1e-5)
    padded = {"input_ids": PROMPTS, "attention_mask": MASK}
    ours, theirs = logits(text, **padded), logits(wrapper, **padded)
    assert torch.allclose(ours[:, 4:], theirs[:, 4:], rtol=0, atol=1e-5)
    greedy = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    assert torch.equal(text.generate(**padded, **greedy), wrapper.generate(**padded, **greedy))


@pytest.mark.parametrize("family", WRAPPED)
def test_text_model_is_that_of_the_wrapper(family: str, tmp_path: Path) -> None:
    folder = save_family(tmp_path, family)
    text, wrapper = load(folder), whole(folder)
    assert_same(text, wrapper)
    assert text.config.get_text_config() is text.config
    assert text.generation_config.eos_token_id == wrapper.generation_config.eos_token_id
    numbers = sum(parameter.numel() for parameter in text.parameters())
    assert numbers < sum(parameter.numel() for parameter in wrapper.parameters())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
def test_output_head_is_tied_where_the_wrapper_ties_it(family: str, tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    config = family_config(family)
    config.tie_word_embeddings, config.text_config.tie_word_embeddings = tied, not tied  # the outer one decides
    AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, family)
    text = load(tmp_path)
    assert (text.get_output_embeddings().weight is text.get_input_embeddings().weight) == tied
    assert_same(text, whole(tmp_path))


def save_tokenizer(folder: Path, family: str) -> None:
    tiny_tokenizer(template_of(family)).save_pretrained(folder)


OLD, NEW = {"language_model.model.": "model.language_model."}, {"model.language_model.": "language_model.model."}


@pytest.mark.parametrize(
    ("family", "rename"),
    [
        ("gemma3", OLD),  # written by save_pretrained as Gemma 3 was published; these are the names in memory
        ("mistral3", OLD),
        ("qwen3_5", {"lm_head.": "lm_head."}),
        ("qwen2_5_vl", {"model.": "model.language_model.", "visual.": "model.visual."}),
    ],
)
def test_old_and_new_names_in_the_files_give_the_same_model(
    family: str, rename: dict[str, str], tmp_path: Path
) -> None:
    folder = save_family(tmp_path, family)
    before = load(folder)
    tensors = load_file(folder / "model.safetensors")
    renamed = {new_name(name, rename): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    after = load(folder)
    assert torch.equal(logits(after, input_ids=PROMPTS), logits(before, input_ids=PROMPTS))
    assert family == "qwen3_5" or renamed.keys() != tensors.keys()


def new_name(name: str, rename: dict[str, str]) -> str:
    return next((new + name.removeprefix(old) for old, new in rename.items() if name.startswith(old)), name)


def test_tensors_of_the_tower_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_family(tmp_path, "gemma3")
    tensors = load_file(folder / "model.safetensors")
    broken = {name: tensor.fill_(float("nan")) if "tower" in name else tensor for name, tensor in tensors.items()}
    save_file(broken, folder / "model.safetensors", metadata={"format": "pt"})
    read: list[str] = []

    class Opened:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.file = safe_open(*arguments, **options)

        def __enter__(self) -> Opened:
            self.file.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.file.__exit__(*error)

        def keys(self) -> list[str]:
            return list(self.file.keys())

        def get_slice(self, name: str) -> Any:
            return Slice(self.file.get_slice(name), name)

    class Slice:
        def __init__(self, part: Any, name: str) -> None:
            self.part, self.name = part, name

        def __getitem__(self, index: Any) -> torch.Tensor:
            read.append(self.name)
            return self.part[index]

    monkeypatch.setattr("safetensors.safe_open", Opened)
    load(folder)
    text = {name for name in tensors if name.startswith("language_model.")}
    assert set(read) == text
    assert text < tensors.keys()


def test_weights_that_the_text_model_lacks_are_an_error(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "gemma3")
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_weights_that_a_tower_lacks_are_none(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "gemma3")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if name.startswith("language_model.")},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    load(folder)


def test_a_tower_that_cannot_be_made_here_is_not_needed(tmp_path: Path) -> None:
    """Gemma 3n's wants a package that is no dependency."""
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    config = Gemma3nTextConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, hidden_size_per_layer_input=16,
        vocab_size_per_layer_input=512, laurel_rank=8, num_kv_shared_layers=0, activation_sparsity_pattern=None,
        layer_types=["sliding_attention", "full_attention"], altup_num_inputs=2,
    )  # fmt: skip
    model = Gemma3nForCausalLM(config).eval()
    names = {name: name.replace("model.", "model.language_model.", 1) for name in model.state_dict()}
    del names["lm_head.weight"]  # tied
    tensors = {names[name]: tensor for name, tensor in model.state_dict().items() if name in names}
    tensors["model.vision_tower.conv_stem.weight"] = torch.zeros(2, 2)
    save_file({name: t.contiguous() for name, t in tensors.items()}, tmp_path / "model.safetensors")
    outer = {"model_type": "gemma3n", "architectures": ["Gemma3nForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps({**outer, "text_config": config.to_dict()}))
    save_tokenizer(tmp_path, "gemma3")
    assert torch.equal(logits(load(tmp_path), input_ids=PROMPTS), logits(model, input_ids=PROMPTS))
    assert model_names(ModelFiles(tmp_path)).in_wrapper("model.norm") == "model.language_model.norm"


def test_experts_are_laid_out_by_the_wrappers_rules(tmp_path: Path) -> None:
    """transformers has rules for the files of Qwen3-VL-MoE, and none for its text model."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    dense = family_config("qwen3_vl")
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    text = {**dense.text_config.to_dict(), **experts, "model_type": "qwen3_vl_moe_text"}
    config = Qwen3VLMoeConfig(text_config=text, vision_config=dense.vision_config.to_dict())
    Qwen3VLMoeForConditionalGeneration(config).float().save_pretrained(tmp_path)
    save_tokenizer(tmp_path, "qwen3_vl")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    published = {n: t.transpose(1, 2).contiguous() if ".mlp.experts." in n else t for n, t in tensors.items()}
    assert any(published[name].shape != tensors[name].shape for name in tensors)
    save_file(published, path, metadata={"format": "pt"})
    assert_same(load(tmp_path), whole(tmp_path))


def test_configuration_is_that_of_the_text_model(tmp_path: Path) -> None:
    files = ModelFiles(save_family(tmp_path, "gemma3"))
    config = read_config(files)
    assert config.model_type == "gemma3_text"
    assert config.architectures == ["Gemma3ForCausalLM"]
    assert config.max_position_embeddings == read_whole_config(files).text_config.max_position_embeddings
    assert config.eos_token_id == family_config("gemma3").text_config.eos_token_id
    path = files.folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [1, 7]}))
    assert read_config(files).eos_token_id == [1, 7]  # transformers takes the outer one first


def test_whole_configuration_of_a_text_model_is_its_own(tmp_path: Path) -> None:
    files = ModelFiles(save_tiny(tmp_path, "qwen2"))
    assert read_config(files).to_dict() == read_whole_config(files).to_dict()
    assert not model_names(files).wrapped


def test_family_without_a_causal_class_gets_one_over_its_decoder() -> None:
    kind = text_class(family_config("qwen3_vl").text_config)
    assert kind.__name__ == "Qwen3VLTextForCausalLM"
    assert text_class(family_config("qwen3_vl").text_config) is kind


def test_logits_to_keep_choose_rows(tmp_path: Path) -> None:
    model = load(save_family(tmp_path, "qwen3_vl"))
    every = logits(model, input_ids=PROMPTS)
    assert torch.allclose(logits(model, input_ids=PROMPTS, logits_to_keep=2), every[:, -2:], atol=1e-6)
    assert torch.allclose(logits(model, input_ids=PROMPTS, logits_to_keep=torch.tensor([1, 5])), every[:, [1, 5]])
