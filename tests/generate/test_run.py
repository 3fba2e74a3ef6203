"""A run answers with the adapter asked for, and keeps the engines used last."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from weitune import Run
from weitune.errors import InputError
from weitune.generate import open_model


def test_chat_answers_with_the_adapter_asked_for(tiny_run: Path) -> None:
    run = Run(tiny_run)
    answers = {which: run.chat("你是谁？", checkpoint=which, max_new_tokens=8) for which in ("last", "base", 5, 10)}
    assert len(set(answers.values())) == 4
    assert run.chat("你是谁？", max_new_tokens=8) == answers["last"]
    assert run.chat("你是谁？", max_new_tokens=8, system="") != answers["last"]
    assert run.chat("你是谁？", max_new_tokens=8, history=[{"role": "user", "content": "x"}]) != answers["last"]
    assert run.chat("x", max_new_tokens=8, temperature=1, seed=1) == run.chat(
        "x", max_new_tokens=8, temperature=1, seed=1
    )


def test_chat_uses_the_runs_own_system_prompt(tiny_run: Path) -> None:
    run = Run(tiny_run)
    assert run.chat("x", max_new_tokens=8) == run.chat("x", max_new_tokens=8, system=run.recipe.system)
    assert run.chat("x", max_new_tokens=8) != run.chat("x", max_new_tokens=8, system="Someone else.")


def test_streams_and_coroutines_say_the_same(tiny_run: Path) -> None:
    run = Run(tiny_run)
    options = {"max_new_tokens": 8, "system": "Be brief."}
    expected = run.chat("你是谁？", **options)
    pieces = list(run.stream_chat("你是谁？", **options))
    assert "".join(pieces) == expected
    assert len(pieces) > 1

    async def both() -> list[str]:
        streamed = [piece async for piece in run.stream_chat_async("你是谁？", **options)]
        assert streamed == pieces
        return await asyncio.gather(*(run.chat_async("你是谁？", checkpoint=which, **options) for which in ("last", 5)))

    assert asyncio.run(both()) == [expected, run.chat("你是谁？", checkpoint=5, **options)]


def test_answers_in_json(tiny_run: Path) -> None:
    pytest.importorskip("llguidance")
    run, form = Run(tiny_run), {"type": "json_schema", "json_schema": {"schema": {"enum": ["涨潮", "low"]}}}
    answer = run.chat("Which?", response_format=form)
    assert answer in {'"涨潮"', '"low"'}
    assert "".join(run.stream_chat("Which?", response_format=form)) == answer
    assert asyncio.run(run.chat_async("Which?", response_format=form)) == answer
    assert run.chat("Which?", response_format={"type": "json_object"}, max_new_tokens=8).startswith("{")
    assert run.chat("Which?", response_format={"type": "text"}, max_new_tokens=8) == run.chat(
        "Which?", max_new_tokens=8
    )
    with pytest.raises(InputError, match="response_format must be of type"):
        run.chat("Which?", response_format={"type": "xml"})


def test_a_cancelled_answer_leaves_no_thread(tiny_run: Path) -> None:
    run = Run(tiny_run)

    async def go() -> None:
        pieces = run.stream_chat_async("Tell me a story.", max_new_tokens=400)
        assert await anext(pieces)
        await pieces.aclose()
        task = asyncio.create_task(run.chat_async("Tell me a story.", max_new_tokens=400))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert not [thread for thread in threading.enumerate() if thread.name == "generate"]
    assert run.chat("x", max_new_tokens=4) == Run(tiny_run).chat("x", max_new_tokens=4)


def test_wrong_options_are_refused_before_anything_loads(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_model, "load_engine", None)
    with pytest.raises(InputError, match="temperature must be 0 or more"):
        Run(tiny_run).chat("x", temperature=-1)


def test_the_two_engines_used_last_stay_loaded(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path | None] = []
    original = open_model.load_engine

    def counting(recipe: object, adapter: Path | None, **options: object) -> object:
        loaded.append(adapter)
        return original(recipe, adapter, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(open_model, "load_engine", counting)
    run = Run(tiny_run)
    for which in ("last", "base", "last", "base", "last", 5, "last", "base"):
        run.engine(which)
    assert loaded == [tiny_run / "adapter", None, tiny_run / "checkpoint-5", None]
