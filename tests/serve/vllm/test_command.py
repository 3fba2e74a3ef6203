"""The command that starts vLLM: what it says, what lies beside it, and what is refused before it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import weitune
from tests.export.runs import SYSTEM, save_adapter, save_run
from tests.serve.live import two_runs
from tests.serve.vllm.test_template import rendered
from tests.tiny import SHAPE, TEMPLATES, save_tiny, save_tiny_adapter, tiny_tokenizer
from weitune import Run
from weitune.errors import InputError, ModelError
from weitune.export.source.adapter_weights import AdapterWeights
from weitune.export.source.export_source import open_export_sources
from weitune.generate.plain_adapter import PlainAdapter
from weitune.serve.vllm.command import Command, Listening, vllm_command
from weitune.serve.vllm.middleware import VARIABLE

LISTENING = Listening("127.0.0.1", 9000)
ASKED = [{"role": "user", "content": "Who are you?"}]


def command_for(runs: dict[str, Run], cache: Path, listening: Listening = LISTENING, **more: Any) -> Command:
    return vllm_command(open_export_sources(runs), cache, listening, **{"context_tokens": 4096, **more})


def after(command: Command, option: str) -> str:
    """Return the argument of ``option``."""
    return command.arguments[command.arguments.index(option) + 1]


def settings_of(command: Command) -> Any:
    """Return the settings of the middleware."""
    folder = Path(command.environment["PYTHONPATH"])
    return json.loads((folder / "weitune_vllm" / "middleware.json").read_text())


def template(command: Command) -> str:
    return Path(after(command, "--chat-template")).read_text(encoding="utf-8")


def test_each_run_and_the_base_have_their_own_framing(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)  # with a system prompt, and without one
    third = save_run(tmp_path / "third", system="You are a lamp.", model=runs["first"].recipe.model)
    command = command_for({**runs, "third": third}, tmp_path / "cache")
    assert after(command, "--middleware") == "weitune_vllm.middleware.Entrance"
    folder = Path(command.environment["PYTHONPATH"])
    assert {path.name for path in (folder / "weitune_vllm").iterdir()} == {
        "middleware.py",
        "place.py",
        "middleware.json",
    }
    assert settings_of(command) == {
        "base": "base", "body_bytes": 4 << 20, "bound_to": "127.0.0.1", "hosts": [], "origins": [],
    }  # fmt: skip
    own = TEMPLATES["chatml-default"].template
    assert own
    for model, system in (("first", "你是甄嬛。"), ("second", None), ("third", "You are a lamp."), ("base", None)):
        opening = [{"role": "system", "content": system}] if system else []
        expected = rendered(own, opening + ASKED)
        assert rendered(template(command), ASKED, **{VARIABLE: model}) == expected
        assert ("You are Tiny." in expected) == (system is None)  # the base's own default


def test_the_base_keeps_its_template_beside_runs_of_the_tutorials_framing(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", tokens={"template": "tutorial"})
    text = template(command_for({"run": run}, tmp_path / "cache"))
    own = TEMPLATES["chatml-default"].template
    assert own
    assert rendered(text, ASKED, **{VARIABLE: "base"}) == rendered(own, ASKED)
    assert SYSTEM in rendered(text, ASKED, **{VARIABLE: "run"})


def test_without_a_system_prompt_the_template_asks_for_no_model(tmp_path: Path) -> None:
    command = command_for({"second": two_runs(tmp_path)["second"]}, tmp_path / "cache")
    assert after(command, "--middleware") == "weitune_vllm.middleware.Entrance"  # it refuses other sites' pages
    assert settings_of(command)["base"] is None
    assert rendered(template(command), ASKED) == rendered(TEMPLATES["chatml-default"].template or "", ASKED)


def test_with_a_key_the_middleware_asks_for_it(tmp_path: Path) -> None:
    listening = Listening("127.0.0.1", 9000, "sesame")
    command = command_for({"second": two_runs(tmp_path)["second"]}, tmp_path / "cache", listening)
    assert after(command, "--middleware") == "weitune_vllm.middleware.Entrance"
    assert command.secrets == {"VLLM_API_KEY": "sesame"}
    assert settings_of(command)["base"] is None


def test_what_the_command_says(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    listening = Listening("0.0.0.0", 9000, "sesame", ("gpu.example",), ("https://a.example",), 1000)  # noqa: S104
    command = command_for(runs, tmp_path / "cache", listening, dtype="float32")
    for option, value in (
        ("--served-model-name", "base"), ("--host", "0.0.0.0"), ("--port", "9000"), ("--max-model-len", "1024"),  # noqa: S104
        ("--max-loras", "2"), ("--max-lora-rank", "8"), ("--allowed-origins", '["https://a.example"]'),
        ("--chat-template-content-format", "string"), ("--dtype", "float32"),
    ):  # fmt: skip
        assert after(command, option) == value
    assert str(command).startswith("VLLM_API_KEY=… PYTHONPATH=")
    assert "sesame" not in str(command)
    folder = Path(after(command, "--generation-config"))
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "do_sample": False, "temperature": 0.0, "eos_token_id": [492, 490], "pad_token_id": 490,
    }  # fmt: skip
    assert settings_of(command) == {
        "base": "base", "body_bytes": 1000, "bound_to": "0.0.0.0", "hosts": ["gpu.example"],  # noqa: S104
        "origins": ["https://a.example"],
    }  # fmt: skip
    assert after(command_for(runs, tmp_path / "cache", context_tokens=99), "--max-model-len") == "99"


def plain_adapters(folder: Path, **tokenizers: str | None) -> dict[str, PlainAdapter]:
    """Return adapters of one base, some with a tokenizer of their own beside."""
    base = save_tiny(folder / "base")
    for name, tokenizer in tokenizers.items():
        save_tiny_adapter(folder / name, base)
        if tokenizer is not None:
            tiny_tokenizer(tokenizer).save_pretrained(folder / name)
    return {name: PlainAdapter(folder / name, model=str(base)) for name in tokenizers}


def test_the_tokenizer_of_an_adapter_made_elsewhere_is_named(tmp_path: Path) -> None:
    found = plain_adapters(tmp_path, without=None, own="chatml")
    assert "--tokenizer" not in command_for({"without": found["without"]}, tmp_path / "cache").arguments
    assert after(command_for({"own": found["own"]}, tmp_path / "cache"), "--tokenizer") == str(tmp_path / "own")
    assert after(command_for(dict(found), tmp_path / "cache"), "--tokenizer") == str(tmp_path / "own")


def test_adapters_with_different_tokenizers_are_not_served_together(tmp_path: Path) -> None:
    found = plain_adapters(tmp_path, without=None, own="qwen3")
    with pytest.raises(ModelError, match="one tokenizer for all models, and those of 'without' and 'own' differ"):
        command_for(dict(found), tmp_path / "cache")


def test_a_gguf_base_is_said_to_need_vllms_plugin(tmp_path: Path, smollm2: str) -> None:
    run = save_run(tmp_path / "run", "llama", model=smollm2)
    command = command_for({"run": run}, tmp_path / "cache")
    assert command.arguments[2].endswith(".gguf")
    assert "vllm-gguf-plugin" in command.notes[-1]


def test_it_becomes_vllm_with_what_it_needs_in_the_environment(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$PYTHONPATH" "$VLLM_API_KEY" "$@"\n')
    program.chmod(0o755)
    command = Command(("vllm", "serve", "a b"), {"PYTHONPATH": "/files"}, {"VLLM_API_KEY": "sesame"}, ())
    assert str(command) == "VLLM_API_KEY=… PYTHONPATH=/files vllm serve 'a b'"
    fields = f"{command.arguments!r}, {dict(command.environment)!r}, {dict(command.secrets)!r}, ()"
    code = f"from weitune.serve.vllm.command import Command; Command({fields}).run()"
    paths = [str(Path(weitune.__file__).parents[1]), "/plugins"]
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        env={"PATH": str(program.parent), "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.stdout.splitlines() == [os.pathsep.join(["/files", *paths]), "sesame", "serve", "a b"]


def test_another_server_does_not_change_the_files_of_the_first(tmp_path: Path) -> None:
    one = command_for({"run": save_run(tmp_path / "a", system="One.")}, tmp_path / "cache")
    text = template(one)
    two = command_for({"run": save_run(tmp_path / "b", system="Two.")}, tmp_path / "cache")
    assert template(one) == text != template(two)
    again = command_for({"run": Run(tmp_path / "a")}, tmp_path / "cache")
    assert again == one
    assert not list((tmp_path / "cache").glob(".*"))


def nested(folder: Path, family: str) -> Path:
    """Write a tiny model whose configuration wraps that of a text model."""
    import transformers

    shape = {key: value for key, value in SHAPE.items() if key != "attn_implementation"}
    if family == "qwen3_5":
        template_, types = "chatml", ["linear_attention", "full_attention"]
        linear = dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads"), 4)
        linear |= dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16)
        text = transformers.Qwen3_5TextConfig(**shape, **linear, layer_types=types)
        vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
                  "num_position_embeddings": 64, "patch_size": 16, "deepstack_visual_indexes": []}  # fmt: skip
        config: Any = transformers.Qwen3_5Config(text_config=text.to_dict(), vision_config=vision)
        kind: Any = transformers.Qwen3_5ForConditionalGeneration
    else:
        template_, types = "gemma", ["sliding_attention", "full_attention"]
        text = transformers.Gemma3TextConfig(**shape, sliding_window=16, layer_types=types)
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "image_size": 28, "patch_size": 14}  # fmt: skip
        config = transformers.Gemma3Config(text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4)
        kind = transformers.Gemma3ForConditionalGeneration
    tokenizer = tiny_tokenizer(template_)
    torch.manual_seed(0)
    model = kind(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def nested_run(folder: Path, family: str) -> Run:
    """Write a run on such a model, with an adapter on the layers that training finds."""
    model = nested(folder.parent / family, family)
    run = save_run(folder, "llama", model=str(model), system=None)
    save_adapter(folder / "adapter", model)
    return run


def test_an_adapter_by_the_text_models_names_gets_those_of_the_wrapper(tmp_path: Path) -> None:
    """As weitune 0.1.0 wrote them for Qwen3.5, of which transformers trained the text model alone."""
    run = nested_run(tmp_path / "run", "qwen3_5")
    module = json.loads(after(command_for({"run": run}, tmp_path / "cache"), "--lora-modules"))
    before, served = (AdapterWeights(Path(folder)) for folder in (run.path / "adapter", module["path"]))
    names = {layer.replace("model.layers.", "model.language_model.layers."): layer for layer in before.updates}
    assert served.updates.keys() == names.keys() != before.updates.keys()
    for layer, update in served.updates.items():
        old = before.updates[names[layer]]
        torch.testing.assert_close(update.scale * update.b @ update.a, old.scale * old.b @ old.a)


def test_an_adapter_whose_names_vllm_does_not_find_is_refused(tmp_path: Path) -> None:
    run = nested_run(tmp_path / "run", "qwen3_5")
    path = run.path / "adapter" / "adapter_model.safetensors"
    renamed = {name.replace(".layers.", ".blocks."): tensor for name, tensor in load_file(path).items()}
    save_file(renamed, path, metadata={"format": "pt"})
    with pytest.raises(ModelError) as error:
        command_for({"run": run}, tmp_path / "cache")
    layers = len(AdapterWeights(run.path / "adapter").updates)
    assert f"vLLM would leave out {layers} of the {layers} layers of the adapter 'run' without an error" in str(
        error.value
    )
    assert "Qwen3_5ForConditionalGeneration" in error.value.message
    assert "`merged`" in error.value.fix
    assert not (tmp_path / "cache").exists()


def test_an_adapter_of_a_wrapped_text_model_by_the_wrappers_names_is_served(tmp_path: Path) -> None:
    run = nested_run(tmp_path / "run", "gemma3")
    path = run.path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    assert any(".language_model.layers." in name for name in tensors)
    towers = {name: tensor for name, tensor in tensors.items() if "vision_tower" in name and ".lora_B." in name}
    assert towers
    with pytest.raises(ModelError, match="vision_tower"):
        command_for({"run": run}, tmp_path / "cache")
    still = {name: torch.zeros_like(tensor) for name, tensor in towers.items()}  # as text leaves them
    save_file({**tensors, **still}, path, metadata={"format": "pt"})
    command = command_for({"run": run}, tmp_path / "cache")
    assert after(command, "--max-model-len") == "1024"  # of the text model's configuration
    folder = Path(after(command, "--generation-config"))
    assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0


@pytest.mark.parametrize(
    ("old", "new"), [("model.layers.", "layers.0."), ("base_model.model.", "base_model.model.model.language_model.")]
)
def test_names_that_a_plain_text_model_lacks_are_refused(old: str, new: str, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "llama")
    path = run.path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    renamed = {(name.replace(old, new) if ".0." in name else name): tensor for name, tensor in tensors.items()}
    save_file(renamed, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="vLLM would leave out 7 of the 14 layers"):
        command_for({"run": run}, tmp_path / "cache")


def test_ranks_and_scales_of_layers_are_made_even_for_releases_that_ignore_them(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "llama", variant="rslora")
    command = command_for({"run": run}, tmp_path / "cache")
    module = json.loads(after(command, "--lora-modules"))
    config = json.loads((Path(module["path"]) / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 4, False)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    before, even = AdapterWeights(run.path / "adapter"), AdapterWeights(Path(module["path"]))
    assert before.updates.keys() == even.updates.keys()
    for name, update in before.updates.items():
        found = even.updates[name]
        assert (found.rank, found.scale) == (4, 1)
        torch.testing.assert_close(found.b @ found.a, update.scale * (update.b @ update.a), rtol=1e-6, atol=1e-7)


def test_an_even_adapter_is_served_from_where_it_is(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "llama")
    module = json.loads(after(command_for({"run": run}, tmp_path / "cache"), "--lora-modules"))
    assert module == {"name": "run", "path": str(run.path / "adapter")}


def test_files_beside_the_model_lend_no_names(tmp_path: Path) -> None:
    """Only what vLLM loads counts: a copy of another precision may have other names."""
    run = save_run(tmp_path / "run", "llama")
    model = Path(run.recipe.model)
    expected = command_for({"run": run}, tmp_path / "cache").arguments
    save_file({"lm_head.weight": torch.zeros(1)}, model / "model.fp16.safetensors")
    (model / "other.safetensors.index.json").write_text('{"weight_map": {"x.weight": "other.safetensors"}}')
    assert command_for({"run": run}, tmp_path / "cache").arguments == expected


def test_a_cache_that_cannot_be_written_to_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = save_run(tmp_path / "run", "llama")
    with pytest.raises(InputError, match=r"cannot be written to '.*/file/vllm': Not a directory"):
        command_for({"run": run}, tmp_path / "file" / "vllm")
