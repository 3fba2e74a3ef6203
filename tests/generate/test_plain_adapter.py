"""Adapters of other programs open as PEFT, LLaMA-Factory, Unsloth and ms-swift write them, and nothing is guessed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.export.runs import save_adapter
from tests.tiny import save_tiny, save_tiny_adapter, save_tiny_run, tiny_tokenizer
from weitune import Run
from weitune.cli import main
from weitune.errors import ModelError, RunError
from weitune.generate.plain_adapter import PlainAdapter, open_run

SHORT = {"max_new_tokens": 8, "device": "cpu"}
QUESTION = "Who are you?"


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in float32 on every processor, as PEFT does here."""
    monkeypatch.setattr("weitune.model.load.weights.choose_dtype", lambda precision, device: torch.float32)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """An adapter as PEFT writes it: two files and a card."""
    return save_tiny_adapter(tmp_path / "mine", base)


def configure(folder: Path, **keys: Any) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **keys}), encoding="utf-8")


def as_peft(folder: Path, base: Path) -> None:
    configure(folder, base_model_name_or_path=str(base))


def as_llama_factory(folder: Path, base: Path) -> None:
    """The base's path, the tokenizer, and what its trainer writes beside."""
    configure(folder, base_model_name_or_path=str(base), use_rslora=False, peft_version="0.15.2")
    tiny_tokenizer("chatml-default").save_pretrained(folder)
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
        (folder / name).write_bytes(b"a pickle that nobody opens")
    (folder / "trainer_state.json").write_text('{"global_step": 30}')
    (folder / "all_results.json").write_text("{}")


def as_unsloth(folder: Path, base: Path) -> None:
    auto = {"base_model_class": "Qwen2ForCausalLM", "parent_library": "transformers", "unsloth_fixed": True}
    configure(folder, base_model_name_or_path=str(base), auto_mapping=auto, qalora_group_size=16)
    tiny_tokenizer("chatml-default").save_pretrained(folder)


def as_ms_swift(folder: Path, base: Path) -> None:
    """The base's path on the machine that trained; a pattern for the layers; settings with ids beside."""
    layers = "|".join(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    targets = rf"^(model)(?!.*lm_head).*\.({layers})$"
    configure(folder, base_model_name_or_path=str(base), modules_to_save=[], target_modules=targets)
    (folder / "additional_config.json").write_text('{"lora_dtype": null, "lorap_emb_lr": 1e-06}')
    settings = {
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "model_type": "qwen2_5",
        "system": "You are Maren.",
        "use_hf": False,
    }
    (folder / "args.json").write_text(json.dumps(settings))


WRITERS = {"peft": as_peft, "llama-factory": as_llama_factory, "unsloth": as_unsloth, "ms-swift": as_ms_swift}


def expected_answer(base: Path, adapter: Path, system: str | None = None, template: str | None = None) -> str:
    """Return what PEFT itself answers, framed by transformers."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter))
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True, chat_template=template
    )["input_ids"]
    stops = [tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")]
    model.get_base_model().generation_config = GenerationConfig()
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False,
                         eos_token_id=stops, pad_token_id=stops[1])[0, ids.shape[1]:].tolist()  # fmt: skip
    end = next((at for at, token in enumerate(out) if token in stops), len(out))
    text: str = tokenizer.decode(out[:end], skip_special_tokens=False)
    return text.rstrip("\ufffd")


def state_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_it_answers_as_peft_does_and_nothing_is_written(
    writer: str, base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    WRITERS[writer](adapter, base)
    before = state_of(adapter)
    monkeypatch.chdir(tmp_path)
    arguments = ["chat", str(adapter), "--prompt", QUESTION, "--max-new-tokens", "8", "--device", "cpu"]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.out == expected_answer(base, adapter) + "\n"
    assert shown.err.count("has no fingerprint of its base model") == 1
    assert ("--system 'You are Maren.'" in shown.err) == (writer == "ms-swift")
    assert main([*arguments, "--system", "You are Maren."]) == 0
    assert capsys.readouterr().out == expected_answer(base, adapter, "You are Maren.") + "\n"
    assert main([*arguments, "--checkpoint", "base"]) == 0
    assert capsys.readouterr().out != expected_answer(base, adapter) + "\n"
    assert state_of(adapter) == before


def not_on_the_hub(model: str, *others: object) -> Path:
    raise ModelError("model.locate.no_such_model_on_huggingface", model=model)


def test_a_base_that_is_not_here_must_be_given(
    base: Path, adapter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_ms_swift(adapter, Path("/root/.cache/of/another/machine"))
    arguments = ["chat", str(adapter), "--prompt", QUESTION, "--max-new-tokens", "8", "--device", "cpu"]
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert "is not here: /root/.cache/of/another/machine" in shown
    assert "--model Qwen/Qwen2.5-7B-Instruct" in shown
    assert main([*arguments, "--model", str(base)]) == 0
    assert capsys.readouterr().out == expected_answer(base, adapter) + "\n"
    configure(adapter, base_model_name_or_path="models/of-another-machine")  # looks like a hub's id
    monkeypatch.setattr("weitune.model.load.locate._from_huggingface", not_on_the_hub)
    assert main(arguments) == 2
    assert "--model" in capsys.readouterr().err
    configure(adapter, base_model_name_or_path=None)
    assert main(arguments) == 2
    assert "names no base model" in capsys.readouterr().err


def test_a_hub_id_is_looked_up_with_its_revision(adapter: Path) -> None:
    configure(adapter, base_model_name_or_path="Qwen/Qwen2.5-7B-Instruct", revision="v1")
    assert (open_run(adapter).recipe.model, open_run(adapter).recipe.revision) == ("Qwen/Qwen2.5-7B-Instruct", "v1")
    other = open_run(adapter, model="unsloth/Qwen2.5-7B-Instruct")
    assert (other.recipe.model, other.recipe.revision) == ("unsloth/Qwen2.5-7B-Instruct", None)


def test_its_own_tokenizer_and_template_go_before_the_bases(base: Path, adapter: Path) -> None:
    as_peft(adapter, base)
    framed = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + ':' + message.content + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}"
    )
    plain = open_run(adapter).chat(QUESTION, **SHORT)
    (adapter / "chat_template.jinja").write_text(framed, encoding="utf-8")
    by_template = open_run(adapter).chat(QUESTION, **SHORT)
    assert by_template == expected_answer(base, adapter, template=framed) != plain
    (adapter / "chat_template.jinja").unlink()
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": framed}), encoding="utf-8")
    assert open_run(adapter).chat(QUESTION, **SHORT) == by_template
    assert open_run(adapter).base_files().tokenizer_folder == base
    tokenizer = tiny_tokenizer("chatml-default")
    tokenizer.chat_template = framed
    tokenizer.save_pretrained(adapter)
    assert open_run(adapter).base_files().tokenizer_folder == adapter
    assert open_run(adapter).chat(QUESTION, **SHORT) == by_template


def unfit(**keys: Any) -> Callable[[Path, Path], None]:
    return lambda adapter, base: configure(adapter, base_model_name_or_path=str(base), **keys)


def pickled(adapter: Path, base: Path) -> None:
    as_peft(adapter, base)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def without_weights(adapter: Path, base: Path) -> None:
    as_peft(adapter, base)
    (adapter / "adapter_model.safetensors").unlink()


def broken_config(adapter: Path, base: Path) -> None:
    (adapter / "adapter_config.json").write_text("{")


def of_a_larger_model(adapter: Path, base: Path) -> None:
    """With a layer that the base does not have: PEFT passes over its tensors without a word."""
    as_peft(adapter, base)
    tensors = load_file(adapter / "adapter_model.safetensors")
    more = {name.replace("layers.1", "layers.2"): tensor.clone() for name, tensor in tensors.items()}
    save_file({**tensors, **more}, adapter / "adapter_model.safetensors")


def of_a_smaller_model(adapter: Path, base: Path) -> None:
    as_peft(adapter, base)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({n: t for n, t in tensors.items() if "layers.1" not in n}, adapter / "adapter_model.safetensors")


def beside_a_model(adapter: Path, base: Path) -> None:
    as_peft(adapter, base)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(base / name, adapter / name)


def with_a_larger_vocabulary(adapter: Path, base: Path) -> None:
    as_peft(adapter, base)
    tokenizer = tiny_tokenizer("chatml-default")
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|extra_{k}|>" for k in range(40)]})
    tokenizer.save_pretrained(adapter)


@pytest.mark.parametrize(
    ("spoil", "message", "fix"),
    [
        (pickled, "as a pickle (adapter_model.bin)", "save_pretrained"),
        (without_weights, "no adapter_model.safetensors", "Copy the adapter again"),
        (broken_config, "adapter_config.json' cannot be read", "Copy the adapter again"),
        (unfit(peft_type="IA3"), "of the kind IA3", "Merge it"),
        (unfit(task_type="SEQ_CLS"), "trained for the task SEQ_CLS, not to generate text", "CAUSAL_LM"),
        (unfit(use_something_new=True), "needs use_something_new, which PEFT", "pip install -U peft"),
        (of_a_larger_model, "tensors that this model has no place for", "trained on"),
        (of_a_smaller_model, "is incomplete", ""),
        (beside_a_model, "an adapter (adapter_config.json) and a whole model (model.safetensors)", "Move the one away"),
        (with_a_larger_vocabulary, "control tokens, such as 512", "--model"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_cannot_be_opened_is_refused_with_the_fix(
    spoil: Callable[[Path, Path], None], message: str, fix: str, base: Path, adapter: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    spoil(adapter, base)
    out = tmp_path / "out"
    for arguments in (["chat", str(adapter), "--prompt", "x", "--max-new-tokens", "1", "--device", "cpu"],
                      ["export", str(adapter), "--format", "merged", "--no-verify", "--output", str(out)]):  # fmt: skip
        assert main(arguments) == 2
        shown = capsys.readouterr()
        if arguments[0] == "chat" or spoil is not of_a_larger_model:  # the export names the weights that it lacks
            assert message in shown.err
            assert fix in shown.err
        assert "Traceback" not in shown.err
        assert shown.out == ""
    assert not out.exists()


def test_folders_of_checkpoints_and_a_checkpoint_alone(base: Path, adapter: Path, tmp_path: Path) -> None:
    """As ms-swift writes them: adapters in checkpoint-N, settings above."""
    output = tmp_path / "output"
    for seed, step in ((3, 10), (4, 20)):
        as_ms_swift(save_tiny_adapter(output / f"checkpoint-{step}", base, seed=seed), base)
    run = open_run(output)
    assert run.checkpoints() == [10, 20]
    assert run.adapter_folder() == output / "checkpoint-20"
    assert run.adapter_folder(10) == output / "checkpoint-10"
    assert run.chat(QUESTION, **SHORT) == open_run(output / "checkpoint-20").chat(QUESTION, **SHORT)
    assert open_run(output / "checkpoint-10").name == "checkpoint-10"
    for which, known in ((7, "It has 10, 20"), ("best", "It has 10, 20")):
        with pytest.raises(RunError, match=f"no checkpoint {which!r}") as refused:
            run.adapter_folder(which)  # type: ignore[arg-type]
        assert known in refused.value.fix
    as_peft(adapter, base)
    with pytest.raises(RunError, match="no checkpoint 'best'"):
        open_run(adapter).adapter_folder("best")


def test_a_recipe_beside_an_adapter_makes_it_no_part_of_a_run(base: Path, adapter: Path) -> None:
    as_peft(adapter, base)
    (adapter.parent / "recipe.yaml").write_text("model: another\ndata: [rows.jsonl]\n", encoding="utf-8")
    assert isinstance(open_run(adapter), PlainAdapter)


def test_a_checkpoint_copied_out_of_its_run_keeps_its_recipe_and_its_base(tmp_path: Path) -> None:
    from tests.run.test_base_check import record

    run = save_tiny_run(tmp_path / "run", checkpoints=(5,), system="You are Maren.")
    record(run)
    basis = json.loads((run / "environment.json").read_text())["basis"]
    recipe = Run(run).recipe.model_dump(mode="json")
    (run / "checkpoint-5" / "state.json").write_text(json.dumps({"step": 5, "basis": basis, "recipe": recipe}))
    with pytest.raises(RunError, match="is a checkpoint of the run"):
        open_run(run / "checkpoint-5")
    alone = Path(shutil.copytree(run / "checkpoint-5", tmp_path / "alone"))
    opened = open_run(alone)
    assert isinstance(opened, PlainAdapter)
    assert opened.recipe.system == "You are Maren."
    assert opened.chat(QUESTION, **SHORT) == Run(run).chat(QUESTION, checkpoint=5, **SHORT)
    save_tiny(Path(opened.recipe.model), seed=9)
    with pytest.raises(RunError, match="is not the one that it was trained on"):
        open_run(alone).base_files()


def test_what_was_pushed_opens_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save_tiny_run(tmp_path / "run", system="You are Maren.", tokens={"max_length": 256})
    monkeypatch.chdir(tmp_path)
    assert main(["push", "run", "--to", "me/mine", "--dry-run", "--output", "pushed"]) == 0
    shutil.move("run-model", "elsewhere")
    with pytest.raises(RunError, match="the base of the adapter 'pushed' is not here: run-model"):
        _ = open_run("pushed").recipe
    opened = open_run("pushed", model="elsewhere")
    assert opened.recipe.system == "You are Maren."
    assert opened.recipe.tokens.max_length == 256
    answer = opened.chat(QUESTION, **SHORT)
    shutil.move("elsewhere", "run-model")
    assert answer == Run(run).chat(QUESTION, **SHORT)
    Path("pushed", "recipe.yaml").write_text("model: [of, another, program]")
    lines: list[str] = []
    assert open_run("pushed", model="run-model", say=lines.append).recipe.system is None
    assert ["is not used, because it cannot be read: the recipe has 2 problems" in line for line in lines] == [True]


@pytest.mark.parametrize(
    ("writer", "format_"),
    [("peft", "merged"), ("llama-factory", "merged"), ("llama-factory", "gguf"), ("peft", "gguf-adapter"),
     ("peft", "ollama")],
)  # fmt: skip
def test_it_is_exported_and_proved_on_the_general_questions(
    writer: str, format_: str, base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if format_ != "merged":
        pytest.importorskip("xllamacpp")
    WRITERS[writer](adapter, base)
    monkeypatch.chdir(tmp_path)
    before = state_of(adapter)
    arguments = [
        "export",
        str(adapter),
        "--format",
        format_,
        "--type",
        "F32",
        "--prompts",
        "2",
        "--system",
        "Be Maren.",
    ]
    assert main(arguments) == 0
    out = tmp_path / "export" / "mine" / (format_ if format_ != "gguf" else "gguf-f32")
    verdict = json.loads((out / "verification.json").read_text(encoding="utf-8"))
    assert verdict["verdict"] == "passed"
    assert verdict["prompts"] == 2
    assert all("data cannot be used" not in note for note in verdict["notes"])
    about = json.loads((out / "weitune.json").read_text(encoding="utf-8"))
    assert (about["run"], about["system"], about["base_model"]) == ("mine", "Be Maren.", str(base))
    assert state_of(adapter) == before
    if format_ == "merged":
        source = adapter if writer == "llama-factory" else base
        assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("config", [{"use_dora": True}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}}])
def test_variants_of_lora(config: dict[str, Any], base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "mine"
    save_adapter(adapter, base, **config)
    as_peft(adapter, base)
    assert open_run(adapter).chat(QUESTION, **SHORT) == expected_answer(base, adapter)
    assert main(["export", str(adapter), "--format", "merged", "--prompts", "2", "--output", str(tmp_path / "o")]) == 0


def test_modules_trained_whole_answer_and_are_not_exported(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "mine"
    save_adapter(adapter, base, modules_to_save=["lm_head"])
    as_peft(adapter, base)
    assert open_run(adapter).chat(QUESTION, **SHORT) == expected_answer(base, adapter)
    assert main(["export", str(adapter), "--format", "merged", "--output", str(tmp_path / "o")]) == 2
    assert "modules_to_save" in capsys.readouterr().err


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["q_proj", "embed_tokens"]])
def test_an_adapter_on_one_of_two_tied_layers_leaves_the_other(targets: list[str], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base, adapter = save_tiny(tmp_path / "tied"), tmp_path / "mine"
    model = AutoModelForCausalLM.from_pretrained(base)
    model.config.tie_word_embeddings, model.lm_head.weight = True, model.model.embed_tokens.weight
    model.save_pretrained(base)
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    save_adapter(adapter, base, target_modules=targets, scale=3)
    as_peft(adapter, base)
    assert open_run(adapter).chat(QUESTION, **SHORT) == expected_answer(base, adapter)


def test_it_is_served_under_its_folders_name(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp")
    pytest.importorskip("uvicorn")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from weitune.export.llama_models import llama_models

    as_llama_factory(adapter, base)
    framed = (adapter / "chat_template.jinja").read_text(encoding="utf-8").replace("You are Tiny.", "You are tuned.")
    (adapter / "chat_template.jinja").write_text(framed, encoding="utf-8")
    (tmp_path / "link").symlink_to(adapter)
    run = save_tiny_run(tmp_path / "run", model=str(base), system="You are Ida.")
    dry = ["--dry-run", "--port", "0", "--type", "F32"]
    assert (
        main(["serve", str(adapter), f"other={run}", str(tmp_path / "link"), "--system", "You are Maren.", *dry]) == 0
    )
    shown = capsys.readouterr().err
    assert "model 'mine', system prompt: You are Maren." in shown
    assert "model 'other', system prompt: You are Ida." in shown
    assert "model 'link'" in shown
    with llama_models({"mine": open_run(adapter)}, "F32", lambda title: lambda done, total: None) as models:
        assert models.by_name["mine"].framing.describe()["template"] == framed
        assert models.by_name["base"].framing.describe()["template"] != framed
    assert main(["serve", str(adapter), "--engine", "vllm", "--dry-run", "--model", str(base)]) == 0
    assert f'"name": "mine", "path": "{adapter}"' in capsys.readouterr().out


def test_it_is_judged_by_rows_that_are_given(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_peft(adapter, base)
    assert main(["eval", str(adapter)]) == 2
    assert "--data FILE" in capsys.readouterr().err
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"instruction": QUESTION, "input": "", "output": "I am the assistant."}]))
    before = state_of(adapter)
    arguments = ["eval", str(adapter), "--data", str(rows), "--no-general", "--max-new-tokens", "2", "--device", "cpu"]
    assert main([*arguments, "--json"]) == 0
    shown = capsys.readouterr()
    assert [model["which"] for model in json.loads(shown.out)["models"]] == ["base", "last"]
    assert "written" not in shown.err
    assert state_of(adapter) == before
    (tmp_path / "taken").write_text("")
    assert main([*arguments, "--output", str(tmp_path / "taken" / "below")]) == 2
    shown = capsys.readouterr()
    assert "chrF" in shown.out
    assert "cannot be written to" in shown.err
    assert main([*arguments, "--output", str(tmp_path / "judged")]) == 0
    assert sorted(path.name for path in (tmp_path / "judged").iterdir()) == ["evaluation.json", "report.html"]
    assert "Evaluation of mine" in (tmp_path / "judged" / "report.html").read_text(encoding="utf-8")


def test_options_of_plain_adapters_are_refused_for_runs(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_tiny_run(tmp_path / "run")
    for arguments in (["chat", str(run), "--prompt", "x", "--model", "m"],
                      ["eval", str(run), "--system", "s"],
                      ["export", str(run), "--format", "merged", "--model", "m"],
                      ["serve", str(run), "--dry-run", "--system", "s"]):  # fmt: skip
        assert main(arguments) == 2
        assert "made elsewhere" in capsys.readouterr().err
    with pytest.raises(RunError, match="is an adapter that was made elsewhere, not a run"):
        Run(adapter)
    with pytest.raises(RunError, match="Leave --model out"):
        open_run(run, model="m")
