"""A loaded model is ready to train and to answer, whatever its configuration asks for besides."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import save_family
from weitune.data.conversation import Conversation, Turn
from weitune.data.frame.choose import framing_for
from weitune.generate.engine import Engine
from weitune.generate.sampling import Sampling
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
