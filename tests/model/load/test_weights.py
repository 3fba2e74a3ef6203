"""A loaded model is ready to train and to answer, whatever its configuration asks for besides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken

from tests.families import save_family
from tests.tiny import save_tiny
from weitune.data.conversation import Conversation, Turn
from weitune.data.frame.choose import framing_for
from weitune.errors import ModelError
from weitune.generate.engine import Engine
from weitune.generate.sampling import Sampling
from weitune.model.load.locate import ModelFiles
from weitune.model.load.tokenizer import load_tokenizer, open_framing
from weitune.model.load.weights import load_model
from weitune.recipe.schema import Tokens


@pytest.mark.parametrize("family", ["jamba", "mixtral"])
def test_a_model_that_wants_a_loss_of_its_router_answers_prompts_together(family: str, tmp_path: Path) -> None:
    answers = []
    for wanted in (False, True):
        loaded = load_model(str(save_family(tmp_path / str(wanted), family, output_router_logits=wanted)), device="cpu")
        engine = Engine(loaded.model, loaded.tokenizer, framing_for(loaded.tokenizer, Tokens()))
        prompts = [Conversation((Turn("user", text),)) for text in ("Who are you?", "Tell me a story about the sea.")]
        answers.append(engine.answers(prompts, Sampling(temperature=0, max_new_tokens=6)))
    assert answers[0] == answers[1]


def test_a_head_of_its_own_is_not_called_tied_whatever_the_configuration_says(tmp_path: Path) -> None:
    """As that of Mistral Small 3.1; PEFT would put the embeddings in its place."""
    folder = save_tiny(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}), encoding="utf-8")
    model = load_model(str(folder), device="cpu").model
    assert not torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)
    assert not model.config.tie_word_embeddings


def test_a_template_that_only_a_processors_file_has_is_read(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", template="chatml")
    template = load_tokenizer(ModelFiles(folder)).chat_template
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = folder / name
        if name.endswith("jinja"):
            path.unlink(missing_ok=True)
        else:
            config = json.loads(path.read_text(encoding="utf-8"))
            config.pop("chat_template", None)
            path.write_text(json.dumps(config), encoding="utf-8")
    assert load_tokenizer(ModelFiles(folder)).chat_template is None
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")
    assert load_tokenizer(ModelFiles(folder)).chat_template == template


def test_what_transformers_says_of_a_tokenizer_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ModelFiles(save_tiny(tmp_path / "model"))
    assert not any("splits text" in note for note in open_framing(files, Tokens()).framing.notes)
    backend = load_tokenizer(files).backend_tokenizer
    backend.add_tokens([AddedToken(f"word{i}", normalized=False) for i in range(100_001)])
    backend.save(str(files.folder / "tokenizer.json"))  # transformers looks at large vocabularies alone
    config = json.loads((files.folder / "config.json").read_text(encoding="utf-8"))
    old = {**config, "model_type": "mistral", "transformers_version": "4.50.0"}
    (files.folder / "config.json").write_text(json.dumps(old), encoding="utf-8")
    assert any("splits text" in note for note in open_framing(files, Tokens()).framing.notes)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: NoRust())
    with pytest.raises(ModelError, match="only a slow Python tokenizer"):
        load_tokenizer(files)


class NoRust:
    chat_template = "{{ messages }}"
